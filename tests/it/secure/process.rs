//! What the process shows to others on its machine.

use crate::support::{
    app::App,
    factsync::{DEVELOPMENT_KEY, Process},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core() {
    let process = Process::spawn(&["serve"], &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).expect("Linux has /proc");
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit is listed");
    let soft: u64 = line.split_whitespace().nth(4).expect("a soft limit").parse().expect("it is not unlimited");
    assert!(soft <= 1, "{line}");
}

/// The commands that write no secret onto a command line: what `ps` shows to everybody.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_on_the_command_line() {
    let facts = [("has_role(User:_)", "SELECT id FROM member")];
    let app = App::start("CREATE TABLE member (id text PRIMARY KEY)", &facts, "").await;
    let url = app.url().replace("sync@", "sync:correct-horse-battery@");
    let process = app.run_with(&["--target", "embedded"], &[("DATABASE_URL", &url)]);
    process.wait_ready().await;
    let shown = std::fs::read(format!("/proc/{}/cmdline", process.pid())).expect("Linux has /proc");
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("run") && !shown.contains("correct-horse") && !shown.contains(DEVELOPMENT_KEY), "{shown}");
    // What it calls itself at the server is not a secret either, and is shown there to every role.
    let names = app.ask("SELECT string_agg(application_name || query, ' ') FROM pg_stat_activity WHERE usename = 'sync'").await;
    assert!(names.contains("factsync") && !names.contains("correct-horse"), "{names}");
}

/// As `factsync setup` makes it: it may read what the queries need, and nothing else at all.
#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_setup_can_read_the_columns_of_the_queries_and_nothing_else() {
    let facts = [("has_role(User:_)", "SELECT id FROM member")];
    let schema = "CREATE TABLE member (id text PRIMARY KEY, salary int); CREATE TABLE payroll (id int PRIMARY KEY); \
                  INSERT INTO member VALUES ('ann', 1)";
    let app = App::start(schema, &facts, "").await;
    let process = app.started(&[]).await;
    app.commit(&process, "INSERT INTO member VALUES ('bob', 2); UPDATE member SET salary = 3; DELETE FROM member WHERE id = 'ann'").await;
    app.assert_equal(&process, "as the role of setup").await;
    let role =
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolcanlogin, rolreplication FROM pg_roles WHERE rolname = 'sync'";
    assert_eq!(app.cluster.psql(&app.database, role), "f|f|f|f|t|t");
    let owned = "SELECT count(*) FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid WHERE r.rolname = 'sync' AND d.deptype = 'o'";
    assert_eq!(app.cluster.psql(&app.database, owned), "0");
    let (client, connection) = tokio_postgres::connect(&app.url(), tokio_postgres::NoTls).await.expect("it may log in");
    tokio::spawn(connection);
    client.batch_execute("SELECT id FROM member").await.expect("a column of the query");
    for forbidden in [
        "SELECT salary FROM member",
        "SELECT * FROM member",
        "SELECT id FROM payroll",
        "INSERT INTO member VALUES ('eve', 1)",
        "UPDATE member SET id = 'eve'",
        "DELETE FROM member",
        "TRUNCATE member",
        "ALTER TABLE member ADD COLUMN x int",
        "DROP TABLE member",
        "CREATE TABLE mine (id int)",
        "CREATE PUBLICATION mine",
        "ALTER PUBLICATION app SET (publish = 'insert')",
        "DROP PUBLICATION app",
        "CREATE ROLE mine",
        "ALTER SYSTEM SET work_mem = '1GB'",
        "COPY member TO '/tmp/out'",
        "SELECT pg_read_file('/etc/passwd')",
    ] {
        let error = client.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{forbidden}: {error:?}");
    }
}
