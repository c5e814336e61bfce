//! Moving from dual writes: what is there is taken over, and what the application writes is watched before.

mod adopted;
mod shadowed;

/// What both follow: two incremental fact types, and one that is run again.
const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE repository (id int PRIMARY KEY);
CREATE TABLE topic (id int PRIMARY KEY);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 5) i;
INSERT INTO repository SELECT i FROM generate_series(1, 5) i;
INSERT INTO topic SELECT i FROM generate_series(1, 5) i";

const ROLE: &str = "has_role(User:_, String:_)";
const PUBLIC: &str = "is_public(Repository:_)";
const TOPIC: &str = "is_topic(Topic:_)";
const FACTS: [(&str, &str); 3] = [
    (ROLE, "SELECT id, role FROM member"),
    (PUBLIC, "SELECT id FROM repository"),
    // LIMIT makes it a refreshed one.
    (TOPIC, "SELECT id FROM topic ORDER BY id LIMIT 1000"),
];
