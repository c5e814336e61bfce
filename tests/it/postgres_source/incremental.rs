//! Incremental views: row changes, loads and what ends them.

use std::sync::Arc;

use factsync::{query::ViewPlan, source::Role};

use super::{
    shadow::{Incremental, Shadow, lsn, plans},
    *,
};

/// Tables of every kind.
const TABLES: &str = "
    CREATE TABLE doc (id int PRIMARY KEY, gone int, body text, note text, flag boolean, at timestamptz, kind mood, unused text);
    ALTER TABLE doc ALTER COLUMN body SET STORAGE EXTERNAL;
    ALTER TABLE doc DROP COLUMN gone;
    CREATE TABLE grants (a int, b text, role text, PRIMARY KEY (b, a));
    CREATE TABLE bag (id int, body text, unused int);
    ALTER TABLE bag ALTER COLUMN body SET STORAGE EXTERNAL;
    ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE TABLE one (id int PRIMARY KEY);
    CREATE TABLE computed (id int PRIMARY KEY, x int, twice int GENERATED ALWAYS AS (x * 2) STORED, y text);
    CREATE TABLE tree (id int, kind int, name text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
    CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1);
    CREATE TABLE tree_2 (name text, junk int, kind int NOT NULL, id int NOT NULL, PRIMARY KEY (id, kind));
    ALTER TABLE tree_2 DROP COLUMN junk;
    ALTER TABLE tree ATTACH PARTITION tree_2 FOR VALUES IN (2);
    INSERT INTO doc VALUES (1, repeat('x', 9000), NULL, true, '2020-01-02 03:04:05.678+02', 'happy', 'u');
    INSERT INTO doc VALUES (2, 'short', 'n', false, NULL, NULL, NULL);
    INSERT INTO grants VALUES (1, 'x', 'r'), (2, E'tab\\\\t', NULL);
    INSERT INTO bag VALUES (1, repeat('y', 9000), 1), (1, 'twin', 1), (1, 'twin', 2), (NULL, NULL, NULL);
    INSERT INTO one VALUES (1), (2);
    INSERT INTO computed (id, x, y) VALUES (1, 1, 'a');
    INSERT INTO tree VALUES (1, 1, 'a'), (2, 2, 'b');
";

/// One for each table.
const QUERIES: [&str; 6] = [
    "SELECT id, body, flag, at, kind FROM doc",
    "SELECT a, b, role FROM grants",
    "SELECT id, body FROM bag",
    "SELECT id FROM one",
    "SELECT id, y FROM computed",
    "SELECT id, kind, name FROM tree",
];

pub(super) async fn prepared(major: Major) -> (Cluster, String, PostgresConfig, BTreeMap<usize, Arc<ViewPlan>>) {
    let (cluster, database) = tables(major);
    let config = of_queries(&cluster, &database, &QUERIES);
    let plans = plans(&config).await;
    (cluster, database, config, plans)
}

pub(super) fn tables(major: Major) -> (Cluster, String) {
    let (cluster, database) = cluster(major);
    cluster.psql(&database, "CREATE TYPE mood AS ENUM ('happy', 'sad')");
    cluster.psql(&database, TABLES);
    (cluster, database)
}

pub(super) fn of_queries(cluster: &Cluster, database: &str, queries: &[&str]) -> PostgresConfig {
    let signatures: Vec<String> =
        queries.iter().map(|query| signature(1 + query[..query.find(" FROM").expect("a query")].matches(',').count())).collect();
    let views: Vec<(&str, &str)> = signatures.iter().map(String::as_str).zip(queries.iter().copied()).collect();
    config(&cluster.url(database), &views)
}

pub(super) fn begin(config: &PostgresConfig, plans: &BTreeMap<usize, Arc<ViewPlan>>) -> Incremental {
    Incremental::start(config, plans, None, vec![Role::Load; plans.len()], BTreeMap::new())
}

async fn every_kind_of_change(major: Major) {
    let (cluster, database, config, plans) = prepared(major).await;
    let mut followed = begin(&config, &plans);
    followed.catch_up(&cluster, &database).await;
    assert_eq!(followed.cuts.len(), 1);
    assert!(followed.failed.is_empty(), "{:?}", followed.failed);
    followed.agree(&cluster, &database);
    for change in [
        "INSERT INTO doc VALUES (3, repeat('z', 9000), '', NULL, 'infinity', 'sad', NULL)",
        // The value stored out of line is not in the message, also when the key changes.
        "UPDATE doc SET note = 'changed' WHERE id = 1; UPDATE doc SET flag = NOT flag",
        "UPDATE doc SET id = id + 10",
        "UPDATE doc SET id = 20, body = repeat('w', 9001) WHERE id = 11",
        "BEGIN; UPDATE doc SET id = -id; UPDATE doc SET id = id - 100, flag = true; DELETE FROM doc WHERE id = -113; COMMIT",
        "UPDATE grants SET role = NULL; UPDATE grants SET b = b || '!' WHERE a = 1; DELETE FROM grants WHERE a = 2",
        "INSERT INTO grants SELECT n, 'x', 'r' FROM generate_series(10, 20) n; UPDATE grants SET a = a + 100",
        "UPDATE bag SET unused = 7; UPDATE bag SET body = 'z' WHERE unused = 7 AND body IS NULL",
        "UPDATE bag SET id = 5; DELETE FROM bag WHERE ctid IN (SELECT min(ctid) FROM bag WHERE body = 'twin')",
        "INSERT INTO one VALUES (3); UPDATE one SET id = id + 10; DELETE FROM one WHERE id = 11",
        "UPDATE computed SET x = 5; UPDATE computed SET y = 'b', id = 9; INSERT INTO computed (id, x) VALUES (10, 1)",
        "INSERT INTO tree VALUES (3, 1, 'c'), (4, 2, 'd'); UPDATE tree SET name = name || '!'; DELETE FROM tree WHERE id = 4",
        "UPDATE tree SET kind = 3 - kind; UPDATE tree_2 SET name = NULL",
        "ALTER TABLE doc DROP COLUMN unused; ALTER TABLE doc ADD COLUMN later int DEFAULT 4; UPDATE doc SET later = 5, kind = 'sad'",
        "BEGIN; INSERT INTO one VALUES (90); SAVEPOINT s; DELETE FROM one; ROLLBACK TO s; INSERT INTO one VALUES (91); COMMIT",
        "BEGIN; INSERT INTO one VALUES (95); TRUNCATE one, bag; INSERT INTO one VALUES (96); COMMIT",
        "INSERT INTO bag SELECT 1, 'again', n FROM generate_series(1, 3) n; DELETE FROM bag WHERE unused = 2",
    ] {
        cluster.psql(&database, change);
        followed.catch_up(&cluster, &database).await;
        followed.agree(&cluster, &database);
    }
    // TRUNCATE of a root is announced; that its partitions have new files shows with the next heartbeat.
    cluster.psql(&database, "TRUNCATE tree");
    let (error, position, _) = followed.error().await;
    let SourceError::ViewsChanged { views, .. } = &error else { panic!("{error}") };
    assert_eq!(views, &[5]);
    let roles = (0..6).map(|view| if view == 5 { Role::Load } else { Role::Incremental }).collect();
    let again = Incremental::start(&config, &plans, position, roles, BTreeMap::new());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_told_by_15() {
    every_kind_of_change(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_told_by_18() {
    every_kind_of_change(Major::V18).await;
}

/// A small generator of its own: the seed is printed by the panic that it leads to.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn statement(&mut self) -> String {
        let (key, other, small) = (self.roll(8), self.roll(8), self.roll(3));
        match self.roll(14) {
            0 => format!("INSERT INTO doc VALUES ({key}, repeat('b', {}), 'n', true, now(), 'sad') ON CONFLICT DO NOTHING", small * 5000),
            1 => format!("UPDATE doc SET id = {other} WHERE id = {key} AND NOT EXISTS (SELECT FROM doc WHERE id = {other})"),
            2 => format!("UPDATE doc SET note = 'x{other}', flag = NULL WHERE id < {key}"),
            3 => format!("UPDATE doc SET body = repeat('c', {}) WHERE id = {key}", small * 4000),
            4 => format!("DELETE FROM doc WHERE id = {key}"),
            5 => format!(
                "INSERT INTO grants VALUES ({key}, 'b{small}', 'r') ON CONFLICT (a, b) DO UPDATE SET role = 'q', a = {}",
                other + 100
            ),
            6 => format!("DELETE FROM grants WHERE a % 8 = {key}"),
            7 => format!("INSERT INTO bag VALUES ({small}, 'twin'), ({small}, repeat('d', {}))", small * 4000),
            8 => format!("UPDATE bag SET id = {small} WHERE id = {}", (small + 1) % 3),
            9 => format!("DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE id = {small} LIMIT 2)"),
            10 => format!("INSERT INTO tree VALUES ({key}, {}, 't') ON CONFLICT (id, kind) DO UPDATE SET name = 'u{other}'", 1 + small % 2),
            11 => format!(
                "UPDATE tree SET kind = 3 - kind
                 WHERE id = {key} AND NOT EXISTS (SELECT FROM tree t WHERE t.id = {key} AND t.kind <> tree.kind)"
            ),
            12 => format!(
                "SAVEPOINT s; DELETE FROM doc; DELETE FROM one; ROLLBACK TO s; INSERT INTO one VALUES ({other}) ON CONFLICT DO NOTHING"
            ),
            _ => format!("DELETE FROM one WHERE id = {key}; TRUNCATE bag"),
        }
    }
}

async fn random_transactions(major: Major, seed: u64) {
    let (cluster, database, config, plans) = prepared(major).await;
    let mut followed = begin(&config, &plans);
    followed.until("the snapshot", |followed| !followed.cuts.is_empty()).await;
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let url = cluster.url(&database);
            tokio::spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connected");
                tokio::spawn(connection);
                let mut dice = Dice(seed * 10 + writer);
                let mut committed = 0;
                while committed < 150 {
                    let statements: Vec<String> = (0..1 + dice.roll(5)).map(|_| dice.statement()).collect();
                    // Writers may block each other or collide on a key; then one of them starts over.
                    match client.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await {
                        Ok(()) => committed += 1,
                        Err(_) => client.batch_execute("ROLLBACK").await.expect("a rollback"),
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        while !writer.is_finished() {
            followed.next().await;
        }
        writer.await.expect("no panic");
    }
    followed.catch_up(&cluster, &database).await;
    followed.agree(&cluster, &database);
    // The same over a restart.
    let (position, shadows) = followed.stop().await;
    let mut dice = Dice(seed);
    for _ in 0..20 {
        cluster.psql(&database, &format!("BEGIN; {}; COMMIT", dice.statement()));
    }
    let mut followed = Incremental::start(&config, &plans, position, vec![Role::Incremental; plans.len()], shadows);
    followed.catch_up(&cluster, &database).await;
    followed.agree(&cluster, &database);
    assert!(followed.cuts.is_empty(), "nothing is read again");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_can_be_rebuilt_from_the_batches_of_random_transactions() {
    random_transactions(Major::V15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_can_be_rebuilt_from_the_batches_of_random_transactions_on_18() {
    random_transactions(Major::V18, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_in_pieces_that_belong_together() {
    let (cluster, database, config, plans) = prepared(Major::V15).await;
    let mut followed = begin(&config, &plans);
    followed.catch_up(&cluster, &database).await;
    let before = followed.batches;
    cluster.psql(
        &database,
        "INSERT INTO one VALUES (77);
         INSERT INTO grants SELECT n, repeat('g', 200), 'r' FROM generate_series(1, 40000) n;
         UPDATE one SET id = 78 WHERE id = 77",
    );
    followed.catch_up(&cluster, &database).await;
    assert!(followed.pieces > 3, "{} pieces in {} batches", followed.pieces, followed.batches - before);
    followed.agree(&cluster, &database);
    followed.stop().await;
}

/// What the plan cannot survive, and a change of a row after it.
const DDL: [(&str, &str); 7] = [
    ("ALTER TABLE doc RENAME COLUMN body TO text", "UPDATE doc SET text = 'wrong'"),
    ("ALTER TABLE doc DROP COLUMN flag", "INSERT INTO doc VALUES (50)"),
    ("ALTER TABLE doc DROP COLUMN flag; ALTER TABLE doc ADD COLUMN flag text", "INSERT INTO doc VALUES (50)"),
    ("ALTER TABLE doc ALTER COLUMN body TYPE varchar(9001)", "INSERT INTO doc VALUES (50)"),
    ("ALTER TABLE doc REPLICA IDENTITY FULL", "UPDATE doc SET flag = NULL"),
    (
        "UPDATE doc SET flag = true; CREATE UNIQUE INDEX other ON doc (id, flag);
         ALTER TABLE doc ALTER flag SET NOT NULL; ALTER TABLE doc REPLICA IDENTITY USING INDEX other",
        "DELETE FROM doc WHERE id = 2",
    ),
    (
        "ALTER TABLE doc RENAME COLUMN flag TO x; ALTER TABLE doc RENAME COLUMN body TO flag; ALTER TABLE doc RENAME COLUMN x TO body",
        "INSERT INTO doc (id) VALUES (50)",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_view_ends_before_a_row_of_another_shape() {
    for (ddl, dml) in DDL {
        let (cluster, database, config, plans) = prepared(Major::V15).await;
        // A publication without column lists: those would forbid some of this, and end the stream of others.
        let tables = "ONLY doc, ONLY grants, ONLY bag, ONLY one, ONLY computed (id, y), ONLY tree";
        cluster.psql(&database, &format!("ALTER PUBLICATION factsync SET TABLE {tables}"));
        let mut followed = begin(&config, &plans);
        followed.catch_up(&cluster, &database).await;
        let rows = followed.shadows[&0].len();
        cluster.psql(&database, "INSERT INTO one VALUES (33); ALTER TABLE doc ADD COLUMN harmless int; INSERT INTO doc VALUES (49)");
        followed.catch_up(&cluster, &database).await;
        followed.agree(&cluster, &database);
        cluster.psql(&database, &format!("{ddl}; INSERT INTO one VALUES (34)"));
        followed.until("an unrelated change", |followed| followed.shadows[&3].len() == 4).await;
        cluster.psql(&database, dml);
        let (error, _, shadows) = followed.error().await;
        let SourceError::ViewsChanged { views, .. } = &error else { panic!("{ddl}: {error}") };
        assert!(views.contains(&0), "{ddl}: {error}");
        assert_eq!(shadows[&0].len(), rows + 1, "{ddl}: a row of another shape was delivered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_loaded_at_a_later_point_while_the_others_resume() {
    for major in [Major::V15, Major::V18] {
        let (cluster, database, config, plans) = prepared(major).await;
        let mut followed = begin(&config, &plans);
        followed.catch_up(&cluster, &database).await;
        let (position, mut shadows) = followed.stop().await;
        // Rows in shapes that the plan does not know, in between.
        cluster.psql(
            &database,
            "INSERT INTO grants VALUES (50, 'before', 'r'); INSERT INTO one VALUES (50);
             ALTER TABLE grants RENAME COLUMN role TO other; INSERT INTO grants VALUES (51, 'between', 'r');
             UPDATE grants SET other = 'x'; INSERT INTO one VALUES (51);
             ALTER TABLE grants RENAME COLUMN other TO role; INSERT INTO grants VALUES (52, 'after', 'r'); DELETE FROM one WHERE id = 50",
        );
        shadows.remove(&1);
        let roles = (0..plans.len()).map(|view| if view == 1 { Role::Load } else { Role::Incremental }).collect();
        let mut followed = Incremental::start(&config, &plans, position.clone(), roles, shadows);
        followed.until("the load", |followed| !followed.cuts.is_empty()).await;
        let (point, views, snapshot) = followed.cuts[0].clone();
        assert!(views == [1] && !snapshot && lsn(&point) > lsn(&position.expect("a position")));
        cluster.psql(&database, "INSERT INTO grants VALUES (53, 'last', 'r'); UPDATE grants SET a = a + 1000 WHERE a = 51");
        followed.catch_up(&cluster, &database).await;
        followed.agree(&cluster, &database);
        let (position, shadows) = followed.stop().await;
        // For a view that resumes, the same rows are of a shape that it cannot read.
        cluster.psql(
            &database,
            "ALTER TABLE grants RENAME COLUMN role TO other; INSERT INTO grants VALUES (61, 'between', 'r');
             ALTER TABLE grants RENAME COLUMN other TO role",
        );
        let followed = Incremental::start(&config, &plans, position, vec![Role::Incremental; plans.len()], shadows);
        let (error, ..) = followed.error().await;
        assert!(matches!(&error, SourceError::ViewsChanged { views, .. } if views == &[1]), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_views_and_incremental_ones_share_the_stream() {
    let (cluster, database, config, plans) = prepared(Major::V15).await;
    let role = |view| if view % 2 == 0 { Role::Load } else { Role::Refresh { stale: false } };
    let mut followed = Incremental::start(&config, &plans, None, (0..6).map(role).collect(), BTreeMap::new());
    followed.catch_up(&cluster, &database).await;
    for round in 0..20 {
        cluster.psql(
            &database,
            &format!("INSERT INTO grants VALUES ({round}, 'r', 'r'); UPDATE doc SET flag = NOT flag; INSERT INTO bag VALUES (1)"),
        );
    }
    followed.catch_up(&cluster, &database).await;
    followed.agree(&cluster, &database);
    assert!(followed.cuts.len() > 1 && followed.cuts.iter().skip(1).all(|(_, views, _)| views == &[1]), "{:?}", followed.cuts);
    let (position, shadows) = followed.stop().await;
    // A stale one is read at once.
    let role = |view| if view % 2 == 0 { Role::Incremental } else { Role::Refresh { stale: view == 3 } };
    let mut followed = Incremental::start(&config, &plans, position, (0..6).map(role).collect(), shadows);
    followed.until("the stale view", |followed| !followed.cuts.is_empty()).await;
    assert_eq!(followed.cuts[0].1, [3]);
    let (_, shadows) = followed.stop().await;
    let roles = (0..6).map(|view| if view == 2 { Role::Off } else { role(view) }).collect();
    let shadows: BTreeMap<usize, Shadow> = shadows.into_iter().filter(|(view, _)| *view != 2).collect();
    let position = Some(cluster.psql(&database, "SELECT confirmed_flush_lsn FROM pg_replication_slots").parse().expect("a position"));
    let mut followed = Incremental::start(&config, &plans, position, roles, shadows);
    cluster.psql(&database, "INSERT INTO bag VALUES (4)");
    followed.catch_up(&cluster, &database).await;
    assert_eq!(followed.batches, 0, "a view that is off is told nothing");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_the_clock_are_told_the_time() {
    let (cluster, database) = tables(Major::V18);
    let queries = ["SELECT id FROM doc WHERE at > now()", "SELECT id, kind FROM doc WHERE at < now()", "SELECT id FROM one"];
    let config = of_queries(&cluster, &database, &queries);
    let plans = plans(&config).await;
    let now = || -> i64 {
        let sql = "SELECT ((extract(epoch FROM clock_timestamp()) - 946684800) * 1000000)::bigint";
        cluster.psql(&database, sql).parse().expect("a time")
    };
    let before = now();
    let mut followed = begin(&config, &plans);
    followed.until("some time", |followed| followed.clocks.len() > 2).await;
    let after = now();
    let [Some(first), Some(second), None] = followed.nows[..] else { panic!("{:?}", followed.nows) };
    assert!(first == second && before <= first && first <= after, "one moment for all");
    for pair in followed.clocks.windows(2) {
        let [(from, seen), (to, then)] = pair else { panic!("two of them") };
        assert!(before <= *from && from < to && *to <= after && seen < then);
        assert!(then.duration_since(*seen) < Duration::from_secs(10));
    }
    followed.stop().await;
    let mut followed = Incremental::start(&config, &plans, None, vec![Role::Off, Role::Off, Role::Load], BTreeMap::new());
    followed.catch_up(&cluster, &database).await;
    assert!(followed.clocks.is_empty(), "nobody asks for the time");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_that_setup_makes_may_read_the_tables_that_are_loaded() {
    for major in [Major::V15, Major::V18] {
        let (cluster, database) = tables(major);
        // Not even the keys are in the queries' results.
        let queries = [
            "SELECT body FROM doc",
            "SELECT role FROM grants",
            "SELECT body FROM bag",
            "SELECT name FROM tree",
            "SELECT count(*) FROM one",
        ];
        let admin = of_queries(&cluster, &database, &queries);
        let url = SecretString::from(cluster.url(&database).replace("postgres@", "sync@"));
        let limited = PostgresConfig { connection_string: url, ..of_queries(&cluster, &database, &queries) };
        cluster.psql(&database, "CREATE ROLE sync LOGIN; GRANT SELECT (body) ON doc TO sync");
        let missing = preflight("app_db", &limited).await;
        let missing: Vec<&str> = missing.iter().map(|finding| finding.text.as_str()).collect();
        assert!(missing.iter().any(|text| text.contains("no SELECT on public.doc (id)")), "{missing:?}");
        let script = setup_sql("app_db", &admin, Some("sync")).await.expect("a script");
        apply_setup("app_db", &admin, &script).await.expect("applied");
        let plans = plans(&limited).await;
        let mut followed = begin(&limited, &plans);
        cluster.psql(&database, "UPDATE doc SET id = id + 5; DELETE FROM bag WHERE body = 'twin'; INSERT INTO one VALUES (9)");
        followed.catch_up(&cluster, &database).await;
        assert!(followed.failed.is_empty(), "{:?}", followed.failed);
        followed.agree(&cluster, &database);
        followed.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_for_ddl_does_not_end_the_stream() {
    let (cluster, database, config, plans) = prepared(Major::V15).await;
    let mut followed = begin(&config, &plans);
    followed.catch_up(&cluster, &database).await;
    let client = cluster.client(&database).await;
    client.batch_execute("BEGIN; LOCK TABLE doc").await.expect("locked");
    // DDL of another table asks for an analysis, which has to wait for the lock and gives up.
    let since = Instant::now();
    let mut column = 0;
    while since.elapsed() < Duration::from_secs(4) {
        column += 1;
        cluster.psql(&database, &format!("ALTER TABLE one ADD COLUMN c{column} int; INSERT INTO one VALUES (100 + {column})"));
        followed.catch_up(&cluster, &database).await;
    }
    assert!(cluster.log().contains("canceling statement due to lock timeout"), "no analysis was tried");
    client.batch_execute("COMMIT").await.expect("unlocked");
    cluster.psql(&database, "INSERT INTO doc VALUES (60)");
    followed.catch_up(&cluster, &database).await;
    followed.agree(&cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_does_not_tell_ends_the_views_it_concerns() {
    let ruins = [
        ("ALTER TABLE tree DETACH PARTITION tree_1", 5),
        ("CREATE TABLE tree_3 PARTITION OF tree FOR VALUES IN (3)", 5),
        ("TRUNCATE tree_2", 5),
        ("ALTER PUBLICATION factsync DROP TABLE one", 3),
    ];
    for (ruin, view) in ruins {
        let (cluster, database, config, plans) = prepared(Major::V15).await;
        let mut followed = begin(&config, &plans);
        followed.catch_up(&cluster, &database).await;
        cluster.psql(&database, ruin);
        let (error, position, shadows) = followed.error().await;
        let SourceError::ViewsChanged { views, .. } = &error else { panic!("{ruin}: {error}") };
        assert!(views.contains(&view), "{ruin}: {error}");
        // The next start makes the publication right, and reads those views again.
        let roles = (0..6).map(|view| if views.contains(&view) { Role::Load } else { Role::Incremental });
        let shadows = shadows.into_iter().filter(|(view, _)| !views.contains(view)).collect();
        let mut followed = Incremental::start(&config, &plans, position, roles.collect(), shadows);
        cluster.psql(&database, "INSERT INTO one VALUES (70); INSERT INTO tree VALUES (70, 2, 'x')");
        followed.catch_up(&cluster, &database).await;
        followed.agree(&cluster, &database);
        followed.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_for_one_view_stays_when_another_needs_more() {
    for major in [Major::V15, Major::V18] {
        let (cluster, database) = tables(major);
        let entries = || {
            let sql = "SELECT r.prrelid::regclass, r.oid, r.xmin, p.oid, p.xmin FROM pg_publication_rel r
                       JOIN pg_publication p ON p.oid = r.prpubid ORDER BY 1";
            cluster.psql(&database, sql).lines().map(str::to_owned).collect::<Vec<String>>()
        };
        let prepare = async |queries: &[&str]| {
            Follower::new("app_db", &of_queries(&cluster, &database, queries), std::env::temp_dir()).prepare().await.expect("prepared")
        };
        prepare(&["SELECT id, flag FROM doc", "SELECT id FROM bag", "SELECT a FROM grants"]).await;
        let before = entries();
        prepare(&["SELECT id, flag FROM doc", "SELECT id FROM bag", "SELECT a, role FROM grants", "SELECT id FROM one"]).await;
        let after = entries();
        let kept =
            before.iter().filter(|entry| after.contains(entry)).map(|entry| entry.split('|').next().expect("a name")).collect::<Vec<_>>();
        assert_eq!(kept, ["doc", "bag"], "{before:?} {after:?}");
        assert_eq!(after.len(), 4);
    }
}
