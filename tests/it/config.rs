//! Configuration files: the real ones work as they stand, and of a wrong one everything is reported.
//!
//! Every `bad-*.yaml` in `tests/fixtures/config` has a `.txt` with the whole report beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use factsync::config::{
    Config, ExposeSecret, MaxRemovals, MongoField, MongoSelect, Problems, SourceKind, SslConfig, SslMode, SyncOptions, load,
};
use proptest::prelude::*;

const FIXTURES: &str = "tests/fixtures/config";

fn fixtures(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| Path::new(FIXTURES).join(name)).collect()
}

/// The variables that the fixtures use.
fn environment(name: &str) -> Option<String> {
    let value = match name {
        "DATABASE_URL" => "postgresql://app:hunter1@localhost:5432/app",
        "DB_USER" | "MONGO_USER" => "sync",
        "DB_PASS" | "MONGO_PASS" => "p@ss/word",
        "DB_HOST" => "db.example",
        "DB_PORT" => "5433",
        "DB_SSL" => "verify-full",
        "CERTS" => "/etc/certs",
        "DATA" => "/srv/data",
        "EMPTY" => "",
        "NONSENSE" => "hunter2",
        _ => return None,
    };
    Some(value.to_owned())
}

fn config(names: &[&str]) -> Config {
    load(&fixtures(names), &environment).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(names: &[&str]) -> Problems {
    load(&fixtures(names), &environment).expect_err("the files are wrong")
}

#[track_caller]
fn assert_report(names: &[&str], golden: &str) {
    let report = format!("{}\n", problems(names));
    let golden = Path::new(FIXTURES).join(golden);
    let want = fs::read_to_string(&golden).expect("a golden report");
    assert!(report == want, "the report is not {}, but:\n{report}", golden.display());
    assert!(!report.contains("hunter"), "a report must not hold a secret:\n{report}");
}

#[test]
fn a_real_file_with_a_connection_string_from_the_environment_works_as_it_stands() {
    let config = config(&["manager.yaml"]);
    let [source] = &config.sources[..] else { panic!("one source") };
    let fact_types: Vec<_> = source.fact_types().iter().map(ToString::to_string).collect();
    assert_eq!(source.name, "app-db");
    assert_eq!(source.place.to_string(), "tests/fixtures/config/manager.yaml:16:3");
    assert_eq!(
        fact_types,
        ["has_relation(User:_, String:direct_manager, User:_)", "has_role(User:_, String:_, Organization:_)", "has_role(User:_, String:_)"]
    );
    let SourceKind::Postgres(postgres) = &source.kind else { panic!("{}", source.kind_name()) };
    assert_eq!(postgres.connection_string.expose_secret(), "postgresql://app:hunter1@localhost:5432/app");
    assert_eq!((postgres.slot.as_str(), &postgres.ssl), ("factsync", &None));
    assert_eq!(postgres.views[0].query, "SELECT user_id, manager_id\nFROM users\nWHERE manager_id IS NOT NULL");
    assert_eq!(postgres.views[1].place.to_string(), "tests/fixtures/config/manager.yaml:9:3");
    assert_eq!(config.sync, SyncOptions::default());
    assert!(config.local.is_empty());
}

#[test]
fn a_real_file_with_variables_inside_its_uri_works_as_it_stands() {
    let config = config(&["envsubst.yaml"]);
    let SourceKind::Postgres(postgres) = &config.sources[0].kind else { panic!("postgres is the default") };
    assert_eq!(postgres.connection_string.expose_secret(), "postgresql://sync:p%40ss%2Fword@db.example:5433/users?sslmode=verify-full");
    let query = &postgres.views[0].query;
    assert!(query.ends_with("'$HOME ${HOME} $$'"), "a query is taken literally: {query}");
}

#[test]
fn a_full_postgres_file_is_read_with_its_defaults() {
    let config = config(&["postgres.yaml"]);
    let names: Vec<_> = config.sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["app_db", "replica"], "an entry that no fact uses is no source");
    let read = |index: usize| match &config.sources[index].kind {
        SourceKind::Postgres(postgres) => (postgres.slot.clone(), postgres.ssl.clone().expect("an ssl block")),
        SourceKind::Mongo(_) | SourceKind::Csv(_) => panic!("a postgres source"),
    };
    let ssl = |ca_file: &str, use_system_certs, mode| SslConfig { ca_file: Some(ca_file.into()), use_system_certs, mode };
    assert_eq!(read(0), ("factsync_app_db".into(), ssl("/etc/certs/ca.pem", true, SslMode::Require)));
    assert_eq!(read(1), ("factsync_replica".into(), ssl("ca.pem", false, SslMode::Prefer)));
    assert_eq!(config.sync.reconcile_every.map(|every| every.as_secs()), Some(1800));
    assert_eq!(config.sync.max_removals, MaxRemovals { count: 500, percent: 5 });
}

#[test]
fn a_mongodb_file_becomes_extended_json_with_its_keys_in_order() {
    let config = config(&["mongodb.yaml"]);
    let SourceKind::Mongo(mongo) = &config.sources[0].kind else { panic!("{}", config.sources[0].kind_name()) };
    assert_eq!(mongo.connection_string.expose_secret(), "mongodb://sync:p%40ss%2Fword@a.example,b.example/app?replicaSet=rs0");
    let field = |name: &str, is_array| MongoField { name: name.into(), is_array };
    let queries: Vec<_> = mongo.views.iter().map(|view| &view.query).collect();
    assert_eq!(queries[0].collection, "repositories");
    assert_eq!(queries[0].fields, [field("_id", false), field("organizationIds", true)]);
    assert_eq!(queries[1].fields, [field("user.id", false), field("role", false), field("org", false)]);
    let texts: Vec<_> = queries
        .iter()
        .map(|query| match &query.select {
            MongoSelect::Find(filter) => filter.to_string(),
            MongoSelect::Aggregate(stages) => serde_json::Value::from(stages.clone()).to_string(),
        })
        .collect();
    assert_eq!(
        texts,
        [
            r#"{"deletedAt":null,"createdAt":{"$gt":{"$date":"2024-01-01T00:00:00Z"}}}"#,
            concat!(
                r#"[{"$match":{"score":{"$lt":{"$numberDouble":"Infinity"}},"active":true}},{"$sort":{"org":1,"joined":-1}},"#,
                r#"{"$group":{"_id":"$user","role":{"$mergeObjects":"$role"},"org":{"$first":"$org"}}}]"#
            ),
            "{}",
        ]
    );
}

#[test]
fn each_csv_file_is_a_source() {
    let config = config(&["csv.yaml"]);
    let read: Vec<_> = config
        .sources
        .iter()
        .map(|source| match &source.kind {
            SourceKind::Csv(csv) => (source.name.as_str(), csv.path.as_path(), csv.views.iter().map(|view| view.query.join("|")).collect()),
            SourceKind::Postgres(_) | SourceKind::Mongo(_) => panic!("a CSV source"),
        })
        .collect();
    let members: (_, _, Vec<String>) =
        ("data/members.csv", Path::new("data/members.csv"), vec!["user id|$role|org".into(), "user id|org".into()]);
    assert_eq!(read, [members, ("/srv/data/teams.csv", Path::new("/srv/data/teams.csv"), vec!["id|org".into()])]);
}

#[test]
fn a_local_authorization_file_is_no_source_and_may_have_the_fact_types_of_one() {
    let config = config(&["local.yaml", "postgres.yaml"]);
    assert_eq!(config.sources.len(), 2);
    let [local] = &config.local[..] else { panic!("one local-authorization file") };
    let fact_types: Vec<_> = local.views.iter().map(|view| view.fact_type.to_string()).collect();
    assert_eq!(local.file, Path::new(FIXTURES).join("local.yaml"));
    assert_eq!(
        fact_types,
        [
            "has_relation(Issue:_, String:parent, Repository:_)",
            "is_protected(Repository:_, Boolean:true)",
            "is_protected(Repository:_, Boolean:false)"
        ]
    );
    assert_eq!(local.views[1].query, "select id\nfrom repository\nwhere is_protected");
}

/// Loads texts as files of one run.
fn load_texts(texts: &[&str]) -> Result<Config, Problems> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let files: Vec<_> = (0..texts.len()).map(|number| directory.path().join(format!("{number}.yaml"))).collect();
    for (file, text) in files.iter().zip(texts) {
        fs::write(file, text).expect("a file");
    }
    load(&files, &environment)
}

fn messages(result: Result<Config, Problems>) -> Vec<String> {
    result.err().map_or(Vec::new(), |problems| problems.0.into_iter().map(|problem| problem.message).collect())
}

/// A file with one fact type and one database.
fn postgres_file(predicate: &str, db: &str, rest: &str) -> String {
    format!(
        "facts: {{'{predicate}(User:_)': {{db: {db}, query: select 1}}}}\n\
         dbs: {{{db}: {{connection_string: 'postgresql://h/{db}'}}}}\n{rest}"
    )
}

fn slots(config: &Config) -> Vec<(&str, &str, usize)> {
    let postgres = config.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Postgres(postgres) => Some((source.name.as_str(), postgres.slot.as_str(), postgres.views.len())),
        SourceKind::Mongo(_) | SourceKind::Csv(_) => None,
    });
    postgres.collect()
}

#[test]
fn files_that_define_a_source_alike_feed_one_source() {
    let texts =
        [postgres_file("a", "app", "sync: {reconcile_every: 0}"), postgres_file("b", "app", "sync: {slot: mine, reconcile_every: 1d}")];
    let config = load_texts(&[&texts[0], &texts[1]]).expect("two files");
    assert_eq!(slots(&config), [("app", "mine", 2)]);
    assert_eq!(config.sync.reconcile_every.map(|every| every.as_secs()), Some(86_400));
    let other_slot = postgres_file("c", "app", "sync: {slot: yours}");
    let messages = messages(load_texts(&[&texts[1], &other_slot]));
    assert!(matches!(&messages[..], [message] if message.starts_with("the source \"app\" has another \"slot\"")), "{messages:?}");
}

#[test]
fn each_postgres_source_of_a_run_has_a_slot_of_its_own() {
    let load = |dbs: [&str; 2], rest: &str| {
        let texts = [postgres_file("a", dbs[0], ""), postgres_file("b", dbs[1], rest)];
        load_texts(&[&texts[0], &texts[1]])
    };
    let config = load(["App-DB", "Größe"], "").expect("two sources");
    assert_eq!(slots(&config), [("App-DB", "factsync_app_db", 1), ("Größe", "factsync_gr__e", 1)]);
    let long = "x".repeat(80);
    let config = load([&long, "b"], "sync: {slot: b2}").expect("two sources");
    assert_eq!(slots(&config), [(long.as_str(), format!("factsync_{}", "x".repeat(54)).as_str(), 1), ("b", "b2", 1)]);
    let messages = messages(load(["app-db", "app_db"], ""));
    assert!(
        matches!(&messages[..], [message] if message.ends_with("would share the replication slot \"factsync_app_db\"")),
        "{messages:?}"
    );
}

#[test]
fn a_key_without_a_value_is_absent_and_an_alias_is_what_it_stands_for() {
    let text = "version:\nsource:\nfacts:\n  a(User:_): {db: x, query: &q select 1}\n  b(User:_): {db: y, query: *q}\n\
                dbs:\n  x: &x {connection_string: $DATABASE_URL, ssl: }\n  y: *x\nsync:\n";
    let config = load_texts(&[text]).expect("a file");
    assert_eq!(slots(&config), [("x", "factsync_x", 1), ("y", "factsync_y", 1)]);
    let text = text.replace("ssl: }", "ssl: {ca_file: $NOWHERE, use_system_certs: 1}}");
    let want = ["the environment variable \"NOWHERE\" is not set", "\"use_system_certs\" must be true or false, found a number"];
    assert_eq!(messages(load_texts(&[&text])), want, "what an alias repeats is said once");
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    for name in ["manager", "envsubst", "postgres", "mongodb", "csv", "local"] {
        let debug = format!("{:?}", config(&[&format!("{name}.yaml")]));
        for secret in ["hunter", "s3cret", "p@ss", "p%40ss"] {
            assert!(!debug.contains(secret), "{name}.yaml: {debug}");
        }
    }
    let secret_everywhere = "version: $NONSENSE\nsource: $NONSENSE\nfacts: {a(User:_): {db: $NONSENSE, query: x}}\ndbs: {app: {}}";
    let nowhere = secret_everywhere.replacen("source: $NONSENSE", "", 1);
    for text in [secret_everywhere, &nowhere] {
        let report = load_texts(&[text]).expect_err("nonsense").to_string();
        assert!(report.contains("$NONSENSE") && !report.contains("hunter"), "{report}");
    }
}

#[test]
fn of_a_wrong_file_everything_is_reported() {
    for name in ["postgres", "connections", "mongodb", "csv", "local", "source", "syntax"] {
        assert_report(&[&format!("bad-{name}.yaml")], &format!("bad-{name}.txt"));
    }
}

#[test]
fn files_are_held_against_each_other_in_one_report() {
    let files =
        ["overlap-a.yaml", "overlap-b.yaml", "overlap-c.yaml", "no-such-file.yaml", "overlap-a.yaml", "not-utf8.yaml", "empty-facts.yaml"];
    assert_report(&files, "overlap.txt");
}

#[test]
fn what_is_no_file_of_ours_is_refused() {
    for (path, want) in [("/dev/zero", "the file has more than 16 MiB"), ("tests", "could not read the file: Is a directory (os error 21)")]
    {
        assert_eq!(messages(load(&[path.into()], &environment)), [want]);
    }
    for (text, want) in [
        ("", "the file must be a mapping, found nothing"),
        ("# only a comment\n", "the file must be a mapping, found nothing"),
        ("- facts", "the file must be a mapping, found a list"),
        ("{}", "missing key \"facts\" in the file"),
        ("facts: [a]", "\"facts\" must be a mapping, found a list"),
        ("!oso {facts: {}}", "the file must be a mapping, found a value with a tag (\"!\")"),
    ] {
        assert_eq!(messages(load_texts(&[text])), [want], "{text:?}");
    }
    let text = "facts: {'a(User:_)': {query: x}}\nsync: {}";
    let want = ["missing key \"dbs\" in the file", "missing key \"db\" in \"a(User:_)\""];
    assert_eq!(messages(load_texts(&[text])), want, "a file with a sync block is no local-authorization file");
}

/// What is put into files to break them.
const SPLINTERS: [&str; 24] = [
    "\n",
    "\n  ",
    "\t",
    "\r\n",
    ": ",
    ":",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "!t ",
    "|-\n",
    "---\n",
    "...\n",
    "${",
    "_",
    "é\u{2028}",
    "? ",
];

/// A fixture with some splinters in it and some pieces out of it.
fn broken_file() -> impl Strategy<Value = String> {
    let names = [
        "manager.yaml",
        "envsubst.yaml",
        "postgres.yaml",
        "mongodb.yaml",
        "csv.yaml",
        "local.yaml",
        "bad-postgres.yaml",
        "bad-mongodb.yaml",
    ];
    let edit = (any::<prop::sample::Index>(), 0..30_usize, prop::sample::select(&SPLINTERS[..]));
    (prop::sample::select(names.to_vec()), prop::collection::vec(edit, 1..6)).prop_map(|(name, edits)| {
        let text = fs::read_to_string(Path::new(FIXTURES).join(name)).expect("a fixture");
        let mut text: Vec<char> = text.chars().collect();
        for (at, length, splinter) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, splinter.chars());
        }
        text.into_iter().collect()
    })
}

/// Loading must end without a panic, and every place must be a character of the file or the end of a line.
fn assert_places_are_inside(text: &str) -> Result<(), TestCaseError> {
    let Err(problems) = load_texts(&[text]) else { return Ok(()) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<_> = text.split('\n').map(|line| line.chars().count()).collect();
    prop_assert!(!problems.0.is_empty());
    for problem in problems.0 {
        let length = problem.place.line.checked_sub(1).and_then(|line| lines.get(line));
        prop_assert!(length.is_some_and(|length| (1..=length + 1).contains(&problem.place.column)), "{problem}");
        prop_assert!(problem.hint.is_some_and(|hint| hint.ends_with(['.', '?'])), "{}", problem.message);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_broken_file_is_reported_with_places_inside_it(text in broken_file()) {
        assert_places_are_inside(&text)?;
    }

    #[test]
    fn any_text_is_reported_with_places_inside_it(text in "[a-c:{}\\[\\],\"'&*!|>#%@?~ \\-\n\r\t\u{feff}é$]{0,60}") {
        assert_places_are_inside(&text)?;
    }
}
