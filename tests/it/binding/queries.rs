//! The queries: those that must have a plan, with what its outline must show, and those that must not, with the reason.

/// Few values, so that keys collide; NULLs wherever they may be.
pub(super) const SCHEMA: &str = "
    CREATE TYPE role AS ENUM ('read', 'write', 'admin');
    CREATE DOMAIN handle AS text;
    CREATE TABLE org (id int PRIMARY KEY, name text, public bool, settings jsonb);
    CREATE TABLE repo (id int PRIMARY KEY, org_id int, title text, meta jsonb, tags text[], role role, num numeric, price numeric(10, 2),
                       starts_at timestamptz, expires_at timestamptz, code varchar(10), big bigint, fix char(5), loc timestamp,
                       shown text COLLATE \"C\");
    CREATE TABLE member (user_id int, org_id int, role role, active bool, PRIMARY KEY (user_id, org_id));
    CREATE TABLE folder (id int PRIMARY KEY, parent int, owner int);
    CREATE TABLE bag (a int, b int, c text);
    ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE TABLE part (id int, kind int, name text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
    CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
    CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
    CREATE TABLE animal (id int PRIMARY KEY, name text);
    CREATE TABLE dog (PRIMARY KEY (id)) INHERITS (animal);
    CREATE TABLE made (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE odd (id int PRIMARY KEY, h handle, u uuid, nn int NOT NULL DEFAULT 0);
    CREATE VIEW org_repo AS SELECT r.id, r.org_id, o.name FROM repo r JOIN org o ON o.id = r.org_id WHERE o.public IS NOT FALSE;
    CREATE FUNCTION shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1) || ''!''';
";

pub(super) const ROWS: &str = r#"
    INSERT INTO org VALUES (1, 'acme', true, '{"default": "read"}'), (2, 'beta', false, '{"default": null}'), (3, NULL, NULL, NULL),
                           (4, 'acme', true, '{"default": "write"}');
    INSERT INTO repo VALUES
        (1, 1, 'one', '{"kind": "lib", "list": ["a", "b", null]}', '{x,y}', 'read', 1.0, 1.5, now() - interval '1 day',
         now() + interval '1 day', 'AB', 1, 'ab', now(), 'b'),
        (2, 1, 'two', '{"kind": null}', '{}', 'admin', 1.00, 1.50, NULL, now() - interval '2 hour', 'ab', 5, 'ab  ', NULL, 'a'),
        (3, 2, NULL, NULL, NULL, NULL, NULL, NULL, now() + interval '1 hour', NULL, NULL, NULL, NULL, NULL, NULL),
        (4, NULL, 'one', '{"list": []}', '{x,NULL,x}', 'write', 2, 2, NULL, NULL, 'one', 2, 'one', now(), 'one'),
        (5, 9, 'Two', '{"kind": "app", "list": ["b"]}', '{y}', 'admin', 1, 7, now() - interval '3 day',
         now() + interval '5 day', '1', 1, '1', now(), 'Two');
    INSERT INTO member VALUES (10, 1, 'admin', true), (10, 2, 'read', NULL), (11, 1, 'read', false), (12, 2, NULL, true),
                              (1, 4, 'write', true);
    INSERT INTO folder VALUES (1, NULL, 10), (2, 1, NULL), (3, 2, 11), (4, 2, 12), (5, NULL, 1), (6, 7, 10), (7, 6, NULL);
    INSERT INTO bag VALUES (1, 1, 'x'), (1, 1, 'x'), (1, NULL, 'y'), (NULL, 2, NULL), (2, 2, 'x'), (NULL, NULL, NULL), (3, 1, 'one');
    INSERT INTO org VALUES (5, 'one', false, NULL);
    INSERT INTO member VALUES (2, 1, NULL, false);
    INSERT INTO animal VALUES (1, 'cat');
    INSERT INTO made VALUES (1), (2);
    INSERT INTO part VALUES (1, 1, 'a'), (2, 2, 'b'), (1, 2, NULL);
    INSERT INTO odd VALUES (1, 'one', '00000000-0000-0000-0000-000000000001', 1), (2, NULL, NULL, 1);
"#;

/// What needs ICU, which the server of the newest major is built without.
pub(super) const ICU_SCHEMA: &str = "
    CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE word (id int PRIMARY KEY, l text COLLATE loose);
";

/// The reasons of queries over it.
pub(super) const ICU_REFRESH: &[(&str, &str)] = &[
    ("SELECT a.id FROM word a JOIN word b ON a.l = b.l", "an equality of text under collation public.loose"),
    ("SELECT DISTINCT l FROM word", "DISTINCT over a column of type text under collation public.loose"),
    ("SELECT l FROM word UNION SELECT l FROM word", "public.loose"),
    ("SELECT id FROM word WHERE l NOT IN (SELECT l FROM word)", "public.loose"),
    ("SELECT min(l) FROM word", "spelled differently"),
];

/// Each takes the tables to another state.
pub(super) const CHANGES: &[&str] = &[
    "UPDATE repo SET org_id = 2 WHERE id = 4; DELETE FROM org WHERE id = 2; INSERT INTO bag VALUES (4, NULL, NULL), (1, 1, 'x')",
    "DELETE FROM folder WHERE id = 2; UPDATE folder SET parent = 5 WHERE id = 6; UPDATE member SET org_id = 3 WHERE user_id = 12",
    "DELETE FROM bag WHERE a IS NULL OR b IS NULL; DELETE FROM repo WHERE id = 3; DELETE FROM org WHERE id = 3",
    "TRUNCATE member, org, part",
    "TRUNCATE repo, bag, folder, odd",
];

/// Queries, and parts of their plans' outlines, separated by semicolons.
pub(super) const INCREMENTAL: &[(&str, &str)] = &[
    // One table.
    ("SELECT id, title FROM repo", "scan public.repo"),
    ("SELECT 1, 'a'", "values"),
    ("SELECT id, public FROM org WHERE public", "filter"),
    ("SELECT id FROM repo WHERE role = 'admin' AND org_id = 1", "filter"),
    ("SELECT id FROM repo WHERE role IN ('admin', 'read')", "any of"),
    ("SELECT id FROM repo WHERE role = ANY ('{admin,write}')", "any of"),
    ("SELECT id FROM repo WHERE id = ANY ('{1,3,NULL}'::int[])", "any of"),
    ("SELECT id FROM repo WHERE code IN ('AB', 'one')", "any of"),
    ("SELECT id FROM repo WHERE 'x' = ANY (tags)", "any"),
    ("SELECT id FROM repo WHERE id NOT IN (1, 2)", "all of"),
    ("SELECT id FROM repo WHERE title IS DISTINCT FROM code", "is distinct from"),
    ("SELECT id FROM repo WHERE (title IS NOT DISTINCT FROM 'one') IS NOT FALSE", "is distinct from"),
    ("SELECT id, role::text, big::text, 'repo:' || id, lower(title) FROM repo", "map"),
    ("SELECT id, CASE WHEN meta->>'kind' = 'lib' THEN 'library' WHEN big > 1 THEN title ELSE role::text END FROM repo", "case when"),
    (
        "SELECT id, CASE title WHEN 'one' THEN 1 WHEN 'two' THEN 2 END, COALESCE(meta->>'kind', title, 'none'), NULLIF(title, \
         'one') FROM repo",
        "case when; coalesce; nullif",
    ),
    ("SELECT id FROM repo WHERE NOT (big > 1 OR title = 'one')", "not"),
    ("SELECT id FROM repo WHERE (big > 1) IS UNKNOWN", "is unknown"),
    ("SELECT id, kind FROM part WHERE name IS NOT NULL", "scan public.part"),
    ("SELECT a, b FROM bag", "scan public.bag"),
    ("SELECT id, num, price, fix FROM repo", "scan"),
    ("SELECT id, meta, tags, expires_at, loc FROM repo", "scan"),
    ("SELECT id, h FROM odd WHERE h = 'one'", "filter"),
    ("SELECT id, u, nn FROM odd", "scan"),
    ("SELECT name FROM ONLY animal", "scan"),
    ("SELECT id FROM made", "scan"),
    // The source computes.
    ("SELECT id, initcap(title) FROM repo", "remote"),
    ("SELECT id FROM repo WHERE title ~ '^t'", "remote; filter"),
    ("SELECT id, md5(title) || title FROM repo WHERE title ~* '^T'", "remote"),
    ("SELECT id, CASE WHEN code ~ '^[0-9]+$' THEN code::int END FROM repo", "remote"),
    ("SELECT id FROM repo WHERE code ~ '^[0-9]+$' OR num > 1.5", ""),
    ("SELECT r.id, o.id FROM repo r JOIN org o ON md5(o.name) = md5(r.title)", "remote; join"),
    ("SELECT id FROM repo WHERE code ~ '^[0-9]+$' AND code::int > 0", "remote; filter"),
    // Joins.
    ("SELECT r.id, o.name FROM repo r JOIN org o ON o.id = r.org_id", "join 0."),
    ("SELECT r.id, o.name, m.user_id FROM repo r, org o, member m WHERE o.id = r.org_id AND m.org_id = o.id AND r.big > 0", "join; filter"),
    ("SELECT id, name, user_id FROM org o JOIN member m ON o.id = m.org_id WHERE o.public OR m.active", "and (#"),
    ("SELECT org_id, title, user_id FROM repo JOIN member USING (org_id)", "join"),
    ("SELECT * FROM (SELECT id, org_id FROM repo) r NATURAL JOIN (SELECT user_id, org_id FROM member) m", "join"),
    ("SELECT a.user_id, b.user_id FROM member a JOIN member b ON a.org_id = b.org_id AND a.user_id < b.user_id", "join 0."),
    ("SELECT a.id, b.id FROM repo a JOIN repo b ON a.num = b.num", "canonical numeric"),
    ("SELECT a.id, b.id FROM repo a JOIN repo b ON a.fix = b.fix", "canonical character"),
    ("SELECT r.id, b.c FROM repo r JOIN bag b ON r.big = b.a", "join"),
    ("SELECT r.id, o.id FROM repo r JOIN org o ON lower(r.title) = o.name || ''", "map; join"),
    ("SELECT r.id, v.label FROM repo r JOIN (VALUES (1, 'x'), (2, NULL)) v (org, label) ON v.org = r.org_id", "join"),
    ("SELECT r.id, v.x FROM repo r CROSS JOIN (VALUES ('a'), ('b')) v (x)", "join"),
    ("SELECT r.id, t.n FROM repo r, (SELECT count(*) AS n FROM member) t", "join; group by ()"),
    ("SELECT id, name FROM org_repo WHERE id > 1", "join"),
    ("SELECT x.name, y.id FROM org_repo x JOIN org_repo y USING (org_id)", "join"),
    (
        "WITH a AS (SELECT org_id FROM member WHERE active) SELECT x.org_id, r.id FROM a x JOIN repo r USING (org_id) JOIN a y \
         ON y.org_id = r.id",
        "join",
    ),
    ("SELECT id FROM (SELECT id, title FROM repo ORDER BY title) x ORDER BY 1", "scan"),
    // Outer joins.
    ("SELECT r.id, o.name FROM repo r LEFT JOIN org o ON o.id = r.org_id", "left join"),
    ("SELECT r.id FROM repo r LEFT JOIN org o ON o.id = r.org_id AND o.public WHERE o.id IS NULL", "left join; filter #"),
    ("SELECT r.id, o.id FROM org o RIGHT JOIN repo r ON o.id = r.org_id AND r.big > 1 WHERE r.title IS NOT NULL", "left join"),
    ("SELECT r.id, m.user_id FROM repo r FULL JOIN member m ON m.org_id = r.org_id", "full join"),
    (
        "SELECT org_id, r.id, m.user_id FROM repo r FULL JOIN member m USING (org_id) WHERE org_id IS NULL OR org_id > 1",
        "full join; coalesce",
    ),
    (
        "SELECT r.id, o.name, m.user_id FROM repo r LEFT JOIN (org o JOIN member m ON m.org_id = o.id) ON o.id = r.org_id",
        "left join; join 0.",
    ),
    ("SELECT r.id, x.c FROM repo r LEFT JOIN bag x ON x.a = r.id AND x.b <> r.org_id LEFT JOIN org o ON o.id = x.b", "left join"),
    ("SELECT r.id, coalesce(o.name, 'none') FROM repo r LEFT JOIN org o ON o.id = r.org_id AND o.name LIKE 'a%'", "left join"),
    // Subqueries in conditions.
    ("SELECT id FROM repo r WHERE EXISTS (SELECT 1 FROM member m WHERE m.org_id = r.org_id AND m.active LIMIT 1)", "semi join"),
    ("SELECT id FROM repo r WHERE NOT EXISTS (SELECT 1 FROM member m WHERE m.org_id = r.org_id AND m.user_id > r.id)", "anti join; and"),
    ("SELECT id FROM repo WHERE EXISTS (SELECT FROM member WHERE active)", "semi join ()"),
    ("SELECT id FROM repo WHERE org_id IN (SELECT org_id FROM member WHERE role = 'admin')", "semi join"),
    ("SELECT id FROM repo WHERE org_id NOT IN (SELECT b FROM bag)", "not in"),
    ("SELECT id FROM repo WHERE org_id NOT IN (SELECT b FROM bag WHERE b IS NOT NULL)", "not in"),
    ("SELECT id FROM repo r WHERE r.big NOT IN (SELECT b FROM bag WHERE bag.a = r.org_id)", "not in"),
    ("SELECT id FROM repo WHERE (org_id, id) IN (SELECT org_id, user_id FROM member)", "semi join"),
    ("SELECT id FROM repo WHERE org_id = ANY (SELECT id FROM org WHERE public)", "semi join"),
    ("SELECT id FROM repo r WHERE title = 'two' OR EXISTS (SELECT 1 FROM member m WHERE m.org_id = r.org_id)", "mark join"),
    ("SELECT id FROM repo r WHERE title = 'two' OR org_id IN (SELECT b FROM bag)", "mark join"),
    ("SELECT id FROM repo r WHERE NOT (title = 'two' OR EXISTS (SELECT 1 FROM member m WHERE m.org_id = r.org_id))", "mark join"),
    ("SELECT id, EXISTS (SELECT 1 FROM member m WHERE m.org_id = r.org_id) FROM repo r", "mark join"),
    ("SELECT id, CASE WHEN org_id IN (SELECT b FROM bag) THEN 'in' ELSE 'out' END FROM repo r", "mark join"),
    (
        "SELECT r.id FROM repo r JOIN org o ON o.id = r.org_id WHERE EXISTS (SELECT 1 FROM member m WHERE m.org_id = o.id AND \
         m.user_id > r.id)",
        "semi join; join 0.",
    ),
    (
        "SELECT id FROM org o WHERE EXISTS (SELECT 1 FROM repo r WHERE r.org_id = o.id AND NOT EXISTS (SELECT 1 FROM member m \
         WHERE m.user_id = r.id))",
        "semi join; anti join",
    ),
    ("SELECT id FROM repo WHERE org_id IN (SELECT b FROM bag UNION SELECT user_id FROM member)", "semi join"),
    // Set operations.
    ("SELECT id FROM repo UNION SELECT user_id FROM member", "distinct; union all"),
    ("SELECT a, c FROM bag UNION ALL SELECT b, c FROM bag", "union all"),
    ("SELECT a FROM bag UNION SELECT b FROM bag UNION SELECT big FROM repo", "distinct; union all"),
    ("SELECT a FROM bag EXCEPT SELECT b FROM bag", "except"),
    ("SELECT a FROM bag EXCEPT ALL SELECT b FROM bag", "except all"),
    ("SELECT a FROM bag INTERSECT SELECT b FROM bag", "intersect"),
    ("SELECT a FROM bag INTERSECT ALL SELECT b FROM bag", "intersect all"),
    ("SELECT DISTINCT a, b FROM bag", "distinct"),
    ("SELECT DISTINCT o.name, m.user_id FROM repo r JOIN org o ON o.id = r.org_id JOIN member m ON m.org_id = o.id", "distinct; join 0."),
    ("SELECT DISTINCT price, fix FROM repo", "distinct"),
    // Groups.
    ("SELECT b, count(*), count(a), sum(a), min(a) FROM bag GROUP BY b", "group by (#"),
    ("SELECT count(*), sum(big), min(id), bool_and(big > 1), bool_or(big > 1) FROM repo", "group by (): count(*)"),
    ("SELECT max(a), every(a > 0) FROM bag", "group by ()"),
    ("SELECT b, count(DISTINCT c), sum(DISTINCT a) FROM bag GROUP BY b", "count(distinct"),
    ("SELECT b, count(*) FILTER (WHERE a > 1), max(a) FILTER (WHERE c = 'x') FROM bag GROUP BY b", "case when"),
    ("SELECT a + 1, count(*) FROM bag WHERE a IS NOT NULL GROUP BY a + 1 HAVING count(*) > 1 AND a + 1 > 0", "group by; filter"),
    ("SELECT o.id, o.name, count(*) FROM org o JOIN repo r ON r.org_id = o.id GROUP BY o.id", "group by"),
    ("SELECT org_id FROM member GROUP BY org_id HAVING bool_or(active)", "group by"),
    ("SELECT max(shown), min(expires_at) FROM repo", "group by"),
    ("SELECT o.id, (SELECT count(*) FROM repo r WHERE r.org_id = o.id) FROM org o", "left join; group by"),
    (
        "SELECT o.id, (SELECT max(r.id) FROM repo r WHERE r.org_id = o.id AND r.big > 0), (SELECT count(*) FROM bag) FROM org o",
        "left join; group by",
    ),
    ("SELECT o.id FROM org o WHERE (SELECT count(*) + 1 FROM repo r WHERE r.org_id = o.id) > 1", "left join; group by"),
    ("SELECT r.id, (SELECT o.name FROM org o WHERE o.id = r.org_id) FROM repo r", "left join (#1 = #0)"),
    ("SELECT r.id, (SELECT name FROM org WHERE id = 1) FROM repo r", "single"),
    // Two rows of the subquery would be an error, if there were a row outside for them.
    ("SELECT r.id, (SELECT c FROM bag WHERE bag.a = r.id) FROM repo r WHERE r.id IN (2, 3)", "single; semi join"),
    ("SELECT r.id FROM repo r WHERE r.org_id = (SELECT max(a) - 2 FROM bag)", "group by ()"),
    ("SELECT x.b, x.n FROM (SELECT b, count(*) n FROM bag GROUP BY b) x JOIN org o ON o.id = x.b WHERE x.n > 1", "group by; join"),
    ("SELECT o.id FROM org o GROUP BY o.id HAVING EXISTS (SELECT 1 FROM member m WHERE m.org_id = o.id)", "semi join; group by"),
    // The first of each.
    ("SELECT DISTINCT ON (org_id) org_id, id FROM repo ORDER BY org_id, starts_at DESC, id", "first 1 of each"),
    ("SELECT DISTINCT ON (a) a, b FROM bag ORDER BY a, b", "first 1 of each"),
    (
        "SELECT id, org_id FROM (SELECT id, org_id, row_number() OVER (PARTITION BY org_id ORDER BY expires_at DESC NULLS LAST, \
         id) rn FROM repo) x WHERE rn = 1",
        "first 1 of each",
    ),
    (
        "SELECT id, org_id FROM (SELECT id, org_id, row_number() OVER (PARTITION BY org_id ORDER BY big, id DESC) rn FROM repo) \
         x WHERE rn <= 2",
        "first 2 of each",
    ),
    ("SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) rn FROM repo) x WHERE rn < 4", "first 3 of each"),
    (
        "SELECT x.id, x.user_id FROM (SELECT r.id, m.user_id, row_number() OVER (PARTITION BY r.id ORDER BY m.user_id) rn FROM \
         repo r JOIN member m ON m.org_id = r.org_id) x WHERE 1 >= x.rn",
        "first 1 of each; join",
    ),
    ("SELECT max(title COLLATE \"C\"), min(role::text COLLATE \"C\") FROM repo", "group by (): max"),
    (
        "SELECT DISTINCT ON (org_id) org_id, id FROM repo ORDER BY org_id, title COLLATE \"C\" DESC, id",
        "first 1 of each; desc \
     nulls first",
    ),
    // Sets of functions.
    ("SELECT r.id, t.tag FROM repo r, unnest(r.tags) AS t (tag)", "unnest"),
    (
        "SELECT r.id, e.v FROM repo r CROSS JOIN LATERAL jsonb_array_elements_text(r.meta->'list') AS e (v) WHERE e.v <> 'a'",
        "jsonb_array_elements_text",
    ),
    ("SELECT o.id, t.tag FROM org o JOIN repo r ON r.org_id = o.id, unnest(r.tags) t (tag) WHERE t.tag = 'x'", "unnest; join"),
    ("SELECT x FROM unnest('{1,2}'::int[]) x", "unnest"),
    // Recursion.
    (
        "WITH RECURSIVE t (id, root) AS (SELECT id, id FROM folder WHERE parent IS NULL UNION SELECT f.id, t.root FROM folder f \
         JOIN t ON f.parent = t.id) SELECT id, root FROM t",
        "recursive; itself",
    ),
    (
        "WITH RECURSIVE t AS (SELECT id, parent FROM folder WHERE owner = 11 UNION ALL SELECT f.id, f.parent FROM t, folder f \
         WHERE f.id = t.parent) SELECT id FROM t",
        "recursive; itself",
    ),
    (
        "WITH RECURSIVE t (id, up) AS (SELECT id, parent FROM folder UNION SELECT t.id, f.parent FROM t JOIN folder f ON f.id = \
         t.up) SELECT f.owner, t.up FROM t JOIN folder f ON f.id = t.id WHERE t.up IS NOT NULL",
        "recursive; join 0.",
    ),
    (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 4) SELECT r.id, n.i FROM n JOIN repo r ON r.id = n.i",
        "recursive",
    ),
    // Time.
    ("SELECT id FROM repo WHERE expires_at > now()", "clock"),
    ("SELECT id FROM repo WHERE expires_at IS NULL OR expires_at > now()", "clock"),
    ("SELECT id FROM repo WHERE CURRENT_TIMESTAMP BETWEEN starts_at AND expires_at AND title <> 'x'", "clock; filter"),
    ("SELECT id FROM repo WHERE now() - interval '1 day 2 hours' <= starts_at", "clock"),
    ("SELECT r.id, o.id FROM repo r JOIN org o ON o.id = r.org_id WHERE NOT (r.expires_at <= now()) AND o.public", "clock; join"),
    (
        "SELECT o.id FROM org o WHERE EXISTS (SELECT 1 FROM repo r WHERE r.org_id = o.id AND r.expires_at > statement_timestamp())",
        "clock; semi",
    ),
    ("SELECT o.id, r.id FROM org o LEFT JOIN repo r ON r.org_id = o.id AND r.expires_at > now()", "clock; left join"),
];

/// Queries, and parts of their reasons.
pub(super) const REFRESH: &[(&str, &str)] = &[
    ("SELECT id FROM org ORDER BY id LIMIT 1", "it uses LIMIT"),
    ("SELECT id FROM (SELECT id FROM org ORDER BY id OFFSET 1) x", "it uses LIMIT or OFFSET"),
    ("SELECT r.id FROM repo r, org o", "every row of one table with every row of another"),
    ("SELECT r.id FROM repo r JOIN org o ON r.id < o.id", "other than an equality"),
    ("SELECT a.id FROM repo a JOIN repo b ON a.meta = b.meta", "an equality of jsonb"),
    ("SELECT DISTINCT num FROM repo", "DISTINCT over a column of type numeric"),
    ("SELECT meta FROM repo GROUP BY meta", "GROUP BY over a column of type jsonb"),
    ("SELECT num FROM repo UNION SELECT price FROM repo", "UNION"),
    ("SELECT loc FROM repo UNION ALL SELECT expires_at FROM repo", "combines a column of type timestamp"),
    ("SELECT max(title) FROM repo", "it orders text by collation"),
    ("SELECT max(num) FROM repo", "min or max of type numeric"),
    ("SELECT avg(big) FROM repo", "the aggregate pg_catalog.avg"),
    ("SELECT sum(num) FROM repo", "the aggregate pg_catalog.sum of numeric"),
    ("SELECT string_agg(title, ',' ORDER BY id) FROM repo", "the aggregate pg_catalog.string_agg"),
    ("SELECT array_agg(id) FROM repo", "array_agg"),
    ("SELECT org_id, count(*) FROM repo GROUP BY ROLLUP (org_id)", "GROUPING SETS"),
    ("SELECT DISTINCT ON (org_id) id FROM repo ORDER BY org_id, starts_at", "is not total"),
    ("SELECT DISTINCT ON (org_id) id FROM repo ORDER BY org_id, title, id", "it orders text by collation"),
    ("SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY org_id ORDER BY big) rn FROM repo) x WHERE rn = 1", "is not total"),
    ("SELECT id FROM (SELECT id, rank() OVER (PARTITION BY org_id ORDER BY id) rn FROM repo) x WHERE rn = 1", "a window function other"),
    ("SELECT id, row_number() OVER (ORDER BY id) FROM repo", "a window function"),
    ("SELECT id, rn FROM (SELECT id, row_number() OVER (ORDER BY id) rn FROM repo) x WHERE rn <= 2", "it refers to a column"),
    ("SELECT id FROM repo WHERE NOT (title = 'x' OR org_id IN (SELECT b FROM bag))", "NULL and FALSE differ"),
    ("SELECT id, org_id IN (SELECT b FROM bag) FROM repo", "NULL and FALSE differ"),
    ("SELECT id FROM repo WHERE id > ALL (SELECT a FROM bag)", "ALL of a subquery"),
    ("SELECT id, ARRAY (SELECT a FROM bag) FROM repo", "an array of a subquery"),
    ("SELECT id FROM repo r WHERE (id, org_id) NOT IN (SELECT a, b FROM bag)", "NOT IN with several columns"),
    ("SELECT id FROM repo r WHERE EXISTS (SELECT 1 FROM bag b WHERE b.a < r.id)", "no equality with the query around it"),
    (
        "SELECT id FROM repo r WHERE EXISTS (SELECT b.a FROM bag b WHERE b.a = r.id GROUP BY b.a HAVING count(*) > 1)",
        "groups, limits or combines",
    ),
    (
        "SELECT o.id, x.id FROM org o, LATERAL (SELECT r.id FROM repo r WHERE r.org_id = o.id) x",
        "from a place where it cannot be turned into a join",
    ),
    ("SELECT r.id FROM repo r LEFT JOIN org o ON r.id > o.id", "no equality between its two sides"),
    ("SELECT id, now() FROM repo", "it uses the time"),
    ("SELECT id FROM repo WHERE expires_at > now() - interval '1 month'", "it uses the time"),
    ("SELECT id FROM repo WHERE loc > now()", "it uses the time"),
    ("SELECT id FROM repo WHERE expires_at::date > CURRENT_DATE", "it uses the time"),
    ("SELECT id FROM animal", "inheritance children"),
    ("SELECT id, twice FROM made", "is generated"),
    ("SELECT o FROM org o", "whole row"),
    ("SELECT id, unnest(tags) FROM repo", "in its SELECT list"),
    ("SELECT n FROM generate_series(1, 3) n", "pg_catalog.generate_series"),
    ("SELECT id, t.o FROM repo, unnest(tags) WITH ORDINALITY t (x, o)", "WITH ORDINALITY"),
    (
        "WITH RECURSIVE t (id) AS (SELECT id FROM folder UNION (SELECT DISTINCT f.id FROM folder f JOIN t ON f.parent = t.id)) \
         SELECT id FROM t",
        "in another place than an inner join",
    ),
    (
        "WITH RECURSIVE t (id, n) AS (SELECT id, 1 FROM folder WHERE parent IS NULL UNION ALL SELECT f.id, n + 1 FROM folder f \
         JOIN t ON f.parent = t.id) SELECT count(*) FROM t",
        "counts the rows",
    ),
    ("SELECT id, shout(title) FROM repo", "public.shout, which may read tables"),
];
