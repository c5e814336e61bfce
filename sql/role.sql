-- The role factsync connects as. REPLICATION lets it create its slot and stream from it; it owns nothing and writes nothing.
-- Set its password with \password, so that it does not end up in a log.
CREATE ROLE {role} WITH LOGIN REPLICATION;
