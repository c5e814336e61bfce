-- An embedded fact store as version 2 of its layout wrote it, killed before it settled its log, in SQL so that it can be read. Never changed: a later version opens it,
-- or refuses it by name.
PRAGMA application_id = 1717658484;
PRAGMA user_version = 2;
CREATE TABLE store (id INTEGER PRIMARY KEY CHECK (id = 1), offset INTEGER NOT NULL) STRICT;
CREATE TABLE policy (id INTEGER PRIMARY KEY CHECK (id = 1), filename TEXT, src TEXT NOT NULL) STRICT;
CREATE TABLE shape (id INTEGER PRIMARY KEY, predicate TEXT NOT NULL, types TEXT NOT NULL, UNIQUE (predicate, types)) STRICT;
CREATE TABLE facts1 (shape INTEGER NOT NULL, i0 TEXT NOT NULL, PRIMARY KEY (shape, i0)) STRICT, WITHOUT ROWID;
CREATE TABLE facts2 (shape INTEGER NOT NULL, i0 TEXT NOT NULL, i1 TEXT NOT NULL, PRIMARY KEY (shape, i0, i1)) STRICT, WITHOUT ROWID;
CREATE INDEX facts2_from1 ON facts2 (shape, i1, i0);
CREATE TABLE facts3 (shape INTEGER NOT NULL, i0 TEXT NOT NULL, i1 TEXT NOT NULL, i2 TEXT NOT NULL, PRIMARY KEY (shape, i0, i1, i2)) STRICT, WITHOUT ROWID;
CREATE INDEX facts3_from1 ON facts3 (shape, i1, i2, i0);
CREATE INDEX facts3_from2 ON facts3 (shape, i2, i0, i1);
CREATE TABLE facts4 (shape INTEGER NOT NULL, i0 TEXT NOT NULL, i1 TEXT NOT NULL, i2 TEXT NOT NULL, i3 TEXT NOT NULL, PRIMARY KEY (shape, i0, i1, i2, i3)) STRICT, WITHOUT ROWID;
CREATE INDEX facts4_from1 ON facts4 (shape, i1, i2, i3, i0);
CREATE INDEX facts4_from2 ON facts4 (shape, i2, i3, i0, i1);
CREATE INDEX facts4_from3 ON facts4 (shape, i3, i0, i1, i2);
CREATE TABLE facts5 (shape INTEGER NOT NULL, i0 TEXT NOT NULL, i1 TEXT NOT NULL, i2 TEXT NOT NULL, i3 TEXT NOT NULL, i4 TEXT NOT NULL, PRIMARY KEY (shape, i0, i1, i2, i3, i4)) STRICT, WITHOUT ROWID;
CREATE INDEX facts5_from1 ON facts5 (shape, i1, i2, i3, i4, i0);
CREATE INDEX facts5_from2 ON facts5 (shape, i2, i3, i4, i0, i1);
CREATE INDEX facts5_from3 ON facts5 (shape, i3, i4, i0, i1, i2);
CREATE INDEX facts5_from4 ON facts5 (shape, i4, i0, i1, i2, i3);
INSERT INTO store VALUES (1, 41);
INSERT INTO policy VALUES (1, 'main.polar', 'actor User {}');
INSERT INTO shape VALUES (1, 'has_role', '["User","String","Repository"]'), (2, 'has_role', '["User","String"]'), (3, 'f', '["A \"1\"","B","C","D","E"]');
INSERT INTO facts3 VALUES (1, 'bob', 'owner', 'acme'), (1, 'eve', 'reader', 'acme');
INSERT INTO facts2 VALUES (2, 'bob', 'owner');
INSERT INTO facts5 VALUES (3, '1', '2', '3', '4', 'žlu 日本');
CREATE TABLE log (id INTEGER PRIMARY KEY, entries TEXT NOT NULL) STRICT;
INSERT INTO log VALUES (1, '[[{"predicate":"has_role","args":[{"type":"User","id":"bob"},{"type":"String","id":"owner"}]},false],[{"predicate":"new","args":[{"type":"User","id":"ann"}]},false]]'),
    (2, '[[{"predicate":"new","args":[{"type":"User","id":"ann"}]},true]]');
