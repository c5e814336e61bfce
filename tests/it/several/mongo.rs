//! MongoDB beside PostgreSQL and files: each is followed, waited for and lost by itself.

use std::time::Instant;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::{
    waiting::{ask, nowhere},
    *,
};
use crate::support::{factsync::Factsync, github::Random, mongod::Mongod};

/// How long factsync tries to reach a MongoDB that is away, here.
const SELECTION_MS: u64 = 2_000;
/// Changes of one other source that are to get through while one such attempt lasts. A source that had to wait for it would
/// get through with one, and those that do not with dozens.
const MEANWHILE: usize = 5;
/// What the documents of these tests make: document by document, and all together.
const FIND: &str = "{find: {gone: {$ne: true}}}";
const GROUP: &str = "{aggregate: [{$group: {_id: $role, count: {$sum: 1}}}]}";

/// A database of its own on some MongoDB.
pub(super) struct Documents {
    client: mongodb::Client,
    name: String,
    uri: String,
}

impl Documents {
    pub(super) async fn on(mongod: &Mongod, name: &str) -> Self {
        let uri = format!("{}?serverSelectionTimeoutMS={SELECTION_MS}", mongod.uri(name));
        let documents = Self { client: mongod.client().await, name: name.to_owned(), uri };
        documents.insert(&[("1", "admin"), ("2", "viewer")]).await;
        documents
    }

    fn members(&self) -> mongodb::Collection<Document> {
        self.client.database(&self.name).collection("members")
    }

    async fn insert(&self, members: &[(&str, &str)]) {
        let members = members.iter().map(|(user, role)| doc! { "user": *user, "role": *role });
        self.members().insert_many(members).await.expect("inserted");
    }

    /// Gives everybody who has the role `from` the role `to`.
    async fn rename(&self, from: &str, to: &str) {
        self.members().update_many(doc! { "role": from }, doc! { "$set": { "role": to } }).await.expect("updated");
    }

    /// The operation time of a write that comes after all so far.
    async fn now(&self) -> String {
        let mut session = self.client.start_session().await.expect("a session");
        let marks = self.client.database(&self.name).collection::<Document>("marks");
        marks.insert_one(doc! {}).session(&mut session).await.expect("inserted");
        let time = session.operation_time().expect("an answer has the time");
        format!("{}:{}", time.time, time.increment)
    }

    /// Waits for all writes to the source `name` so far, and compares the facts with the server's own answers.
    async fn assert_equal(&self, process: &Process, name: &str, fact: &str, context: &str) {
        wait(process, name, &self.now().await).await;
        let find = self.answers(vec![doc! { "$match": { "gone": { "$ne": true } } }], ["user", "role"]).await;
        assert_eq!(held(process, &format!("badge_{fact}")).await, find, "{context}: the find of {name}");
        let group = self.answers(vec![doc! { "$group": { "_id": "$role", "count": { "$sum": 1 } } }], ["_id", "count"]).await;
        assert_eq!(held(process, &format!("count_{fact}")).await, group, "{context}: the group of {name}");
    }

    async fn answers(&self, pipeline: Vec<Document>, fields: [&str; 2]) -> BTreeSet<Vec<String>> {
        let answer: Vec<Document> = self.members().aggregate(pipeline).await.expect("an answer").try_collect().await.expect("all of it");
        let text = |document: &Document, field: &str| match document.get(field) {
            Some(Bson::String(text)) => text.clone(),
            Some(Bson::Int32(number)) => number.to_string(),
            other => panic!("{field} is {other:?}"),
        };
        answer.iter().map(|document| fields.iter().map(|field| text(document, field)).collect()).collect()
    }
}

impl Desk {
    /// Writes `mongo.yaml`: each source of `of` has two fact types, `badge_<fact>(User:_, String:_)` and
    /// `count_<fact>(String:_, String:_)`.
    fn mongo(&mut self, of: &[(&str, &str, &Documents)]) {
        let mut yaml = String::from("version: 1\nsource: mongodb\nfacts:\n");
        for (name, fact, _) in of {
            let of_members = format!("    db: {name}\n    collection: members\n");
            yaml += &format!("  \"badge_{fact}(User:_, String:_)\":\n{of_members}    query: {FIND}\n    fields: [user, role]\n");
            yaml += &format!("  \"count_{fact}(String:_, String:_)\":\n{of_members}    query: {GROUP}\n    fields: [_id, count]\n");
        }
        yaml += "dbs:\n";
        for (name, _, documents) in of {
            let variable = format!("{}_URL", name.to_uppercase());
            yaml += &format!("  {name}:\n    connection_string: ${variable}\n");
            self.env.push((variable, documents.uri.clone()));
        }
        self.put("mongo.yaml", &yaml);
    }

    /// A command on the configurations `files` and the state of [`Self::run`].
    fn command(&self, command: &str, files: &[&str], more: &[&str]) -> crate::support::factsync::Output {
        let paths: Vec<String> = files.iter().map(|file| self.path(file).display().to_string()).collect();
        let state = self.path("state").display().to_string();
        let mut args = vec![command, "--state", &state];
        args.extend(paths.iter().map(String::as_str));
        args.extend(more);
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        Factsync::run(&args, &env)
    }
}

/// All three kinds.
const ALL: [&str; 3] = ["postgres.yaml", "mongo.yaml", "csv.yaml"];

/// Changes a table and a file again and again while factsync tries to reach `away`, once: each change is waited for.
async fn others_go_on(process: &Process, away: &str, desk: &Desk, first: &Database) {
    in_state(process, away, "retrying").await;
    in_state(process, away, "connecting").await;
    let mut took = Vec::new();
    while line(process, away).await["state"] == "connecting" {
        let began = Instant::now();
        first.sql(&format!("INSERT INTO member (user_id, role) VALUES ('m{}', 'owner')", took.len())).await;
        first.assert_equal(process, "first", "a", &format!("while {away} is away")).await;
        took.push(began.elapsed());
    }
    took.sort();
    let middle = took.get(took.len() / 2);
    eprintln!(
        "{} commits while {away} was tried once, from commit to fact and comparison {middle:?}, at most {:?}",
        took.len(),
        took.last()
    );
    assert!(took.len() >= MEANWHILE, "only {} commits got through while {away} was tried once", took.len());
    let user = took.len();
    desk.put("good.csv", &format!("user,role\n{user},admin\n"));
    desk.assert_csv(process, "good", "a", &format!("while {away} is away")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongodb_that_is_away_is_shown_and_stops_no_other() {
    let (cluster, mut mongod) = (Cluster::start(Major::V15), Mongod::start().await);
    let mut first = Database::on(&cluster).await;
    let (docs, more) = (Documents::on(&mongod, "docs").await, Documents::on(&mongod, "more").await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    desk.mongo(&[("docs", "a", &docs), ("more", "b", &more)]);
    desk.csv(&[("good", "a")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    let time = docs.now().await;

    // Not there at the start.
    mongod.kill();
    let process = desk.run(&ALL, &[]);
    others_go_on(&process, "docs", &desk, &first).await;
    for source in ["docs", "more"] {
        let reason = in_state(&process, source, "retrying").await["reason"].as_str().unwrap_or_default().to_owned();
        let port = mongod.port().to_string();
        assert!(reason.contains(&format!("source \"{source}\"")) && reason.contains(&port), "{reason}");
    }
    assert_eq!(line(&process, "first").await["state"], "streaming");
    assert_ne!(process.status().await["state"], "streaming", "the one furthest from streaming stands for all");
    let (status, body) = process.get("/readyz").await;
    assert!(status == 503 && (body.contains("\\\"docs\\\"") || body.contains("\\\"more\\\"")), "{status} {body}");
    let (status, message) = ask_briefly(&process, &[("position", &time), ("source", "docs")]).await;
    assert!(status == 504 && message.contains("source \"docs\" is "), "{status} {message}");
    mongod.restart().await;
    docs.insert(&[("3", "owner")]).await;
    docs.assert_equal(&process, "docs", "a", "once it is there").await;
    more.assert_equal(&process, "more", "b", "once it is there").await;
    process.wait_ready().await;
    assert_eq!(process.status().await["state"], "streaming");
    every_position_finds_its_source(&process, &desk, &first, &docs).await;

    // It dies while it is followed, and what was written to it before and after is in.
    docs.rename("admin", "owner").await;
    mongod.kill();
    others_go_on(&process, "docs", &desk, &first).await;
    mongod.restart().await;
    docs.members().delete_many(doc! { "role": "viewer" }).await.expect("deleted");
    more.rename("viewer", "auditor").await;
    docs.assert_equal(&process, "docs", "a", "risen").await;
    more.assert_equal(&process, "more", "b", "risen").await;
    first.assert_equal(&process, "first", "a", "as ever").await;
    process.wait_ready().await;

    // And the other way round.
    cluster.kill();
    in_state(&process, "first", "retrying").await;
    docs.insert(&[("4", "admin")]).await;
    docs.assert_equal(&process, "docs", "a", "while PostgreSQL is dead").await;
    cluster.start_again();
    first.again(&cluster).await;
    first.sql("DELETE FROM member WHERE role = 'owner'").await;
    first.assert_equal(&process, "first", "a", "risen").await;
    for source in ["first", "docs", "more"] {
        let anew =
            process.log().lines().filter(|line| line.contains("reading every view") && line.contains(&format!("\"{source}\""))).count();
        assert_eq!(anew, 1, "{source} was read anew:\n{}", process.log());
    }
}

async fn ask_briefly(process: &Process, query: &[(&str, &str)]) -> (u16, String) {
    let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let (status, body) = process.get(&format!("/v1/wait?timeout_ms=50&{query}")).await;
    (status, serde_json::from_str::<Value>(&body).expect("JSON")["message"].as_str().unwrap_or_default().to_owned())
}

/// One database of PostgreSQL, one file, and `docs` and `more` of MongoDB.
async fn every_position_finds_its_source(process: &Process, desk: &Desk, first: &Database, docs: &Documents) {
    docs.rename("viewer", "auditor").await;
    let time = docs.now().await;
    first.sql("DELETE FROM member WHERE user_id = '1'").await;
    let lsn: String = first.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position").get(0);
    let file = digest(&desk.path("good.csv"));
    for (query, predicate, gone) in [
        (vec![("position", lsn.as_str())], "role_a", ["1", "admin"]),
        (vec![("position", &file)], "member_a", ["", ""]),
        (vec![("position", &time), ("source", "docs")], "badge_a", ["2", "viewer"]),
    ] {
        let (status, message) = ask(process, &query).await;
        assert_eq!(status, 200, "{query:?}: {message}");
        assert!(
            !held(process, predicate).await.contains(gone.map(str::to_owned).as_slice()),
            "{query:?} was answered before its fact was gone"
        );
    }
    let both = "name one with source=: \"docs\", \"more\"";
    for (position, source, wanted) in [
        (&*time, None, vec!["a cluster time is a position of MongoDB, and several sources count so", both]),
        (
            &time,
            Some("first"),
            vec!["a cluster time is a position of MongoDB", "source \"first\" is postgres and has an LSN such as 16/B374D848"],
        ),
        (
            &lsn,
            Some("docs"),
            vec!["an LSN is a position of PostgreSQL", "source \"docs\" is mongodb and has a cluster time such as 1732284000:5"],
        ),
        (&nowhere(), Some("more"), vec!["source \"more\" is mongodb and has a cluster time"]),
        (&time, Some("dosc"), vec!["there is no source \"dosc\"", "\"docs\"", "\"first\"", "good.csv"]),
        ("1732284000", Some("docs"), vec!["could not read \"1732284000\" as a position", "1732284000:5"]),
    ] {
        let query: Vec<_> = [("position", position)].into_iter().chain(source.map(|source| ("source", source))).collect();
        let (status, message) = ask(process, &query).await;
        assert!(status == 400 && wanted.iter().all(|part| message.contains(part)), "{query:?}: {status} {message}");
    }
}

/// `kill -9` at any moment, while a database of each kind and a file never stop changing.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_with_every_kind_of_source_under_load_ends_exact() {
    let mut random = Random::new("kills with mongodb");
    let (cluster, mongod) = (Cluster::start(Major::V15), Mongod::start().await);
    let (first, docs) = (Database::on(&cluster).await, Documents::on(&mongod, "docs").await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    desk.mongo(&[("docs", "a", &docs)]);
    desk.csv(&[("good", "a")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    let done = [(); 2].map(|()| tokio::sync::watch::Sender::new(0_u64));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let rows = failures::commit(cluster.client(&first.name).await, random.split(), done[0].clone(), stopped.clone());
    let documents = write(docs.members(), random.split(), done[1].clone(), stopped);
    let writers = [tokio::spawn(rows), tokio::spawn(documents)];
    for round in 0..8 {
        let process = desk.run(&ALL, &[]);
        let goal = done.each_ref().map(|done| *done.borrow() + random.below(100));
        for _ in 0..4 {
            let rows: String = (0..random.below(9)).map(|n| format!("{n},r{}\n", random.below(3))).collect();
            desk.put("good.csv", &format!("user,role\n{rows}"));
        }
        // Every other one gets to follow before it dies.
        if round % 2 == 0 {
            process.wait_ready().await;
        }
        for (done, goal) in done.iter().zip(goal) {
            done.subscribe().wait_for(|done| *done >= goal).await.expect("the writers go on");
        }
        process.kill();
    }
    stop.send_replace(true);
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
    eprintln!("{} commits and {} writes", *done[0].borrow(), *done[1].borrow());
    let process = desk.started(&ALL).await;
    first.assert_equal(&process, "first", "a", "after the last kill").await;
    docs.assert_equal(&process, "docs", "a", "after the last kill").await;
    desk.assert_csv(&process, "good", "a", "after the last kill").await;
}

/// Random writes over few users and roles until `stop`, counted.
async fn write(
    members: mongodb::Collection<Document>,
    mut random: Random,
    done: tokio::sync::watch::Sender<u64>,
    stop: tokio::sync::watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let (user, role) = (doc! { "user": random.below(6).to_string() }, format!("r{}", random.below(3)));
        let written = match random.below(6) {
            0 => members.delete_many(user).await.map(|_| ()),
            1 => members.update_many(user, doc! { "$set": { "role": role, "gone": random.below(3) == 0 } }).await.map(|_| ()),
            2 => members.delete_one(doc! { "role": role }).await.map(|_| ()),
            _ => members.insert_one(doc! { "role": role, "user": user.get("user") }).await.map(|_| ()),
        };
        written.expect("written");
        done.send_modify(|done| *done += 1);
    }
}

/// What somebody types who has just put a configuration for each kind together.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_speaks_of_all_three_kinds_and_of_what_is_wrong_with_one() {
    let (cluster, mut mongod) = (Cluster::start(Major::V15), Mongod::start().await);
    let (first, docs) = (Database::on(&cluster).await, Documents::on(&mongod, "docs").await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    desk.mongo(&[("docs", "a", &docs)]);
    desk.csv(&[("good", "a")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    before_a_run(&desk);
    let process = desk.started(&ALL).await;
    docs.assert_equal(&process, "docs", "a", "at first").await;
    beside_a_run(&desk, &process, &docs).await;
    assert!(process.terminate().success());

    docs.rename("viewer", "auditor").await;
    let asked = desk.command("reset", &ALL, &[]).expect_code(2);
    assert!(asked.stderr.contains("--yes") && asked.stdout.contains("slot \"factsync\" of source \"first\""), "{asked:?}");
    let reset = desk.command("reset", &ALL, &["--yes"]).expect_code(0);
    assert!(reset.stderr.contains("source \"docs\": factsync makes nothing on a MongoDB server"), "{}", reset.stderr);
    let process = desk.started(&ALL).await;
    docs.assert_equal(&process, "docs", "a", "after a reset").await;
    first.assert_equal(&process, "first", "a", "after a reset").await;
    assert!(process.terminate().success());

    // With one of them away the others are judged all the same.
    mongod.kill();
    let told = desk.command("check", &ALL, &[]).expect_code(1).stdout;
    let problem = told.lines().find(|line| line.starts_with("problem: ")).unwrap_or_else(|| panic!("{told}"));
    assert!(problem.contains("mongo.yaml:") && problem.contains("source \"docs\""), "{told}");
    assert!(told.contains("good.csv\" can be read") && told.contains("1 problems, "), "{told}");
    let told = desk.command("explain", &ALL, &[]).expect_code(1).stdout;
    assert!(told.contains("source \"docs\" cannot be explained: ") && told.contains("member_a(User:_, String:_)"), "{told}");
    assert!(told.contains("role_a(User:_, String:_)\n    mode: incremental"), "{told}");
    desk.command("reset", &ALL, &["--yes"]).expect_code(0);
}

fn before_a_run(desk: &Desk) {
    let told = desk.command("check", &ALL, &[]).expect_code(0).stdout;
    for part in ["4 fact types of 3 sources", "connected to database \"docs\"", "a change stream", "good.csv\" can be read", "0 problems, "]
    {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let told = desk.command("explain", &ALL, &[]).expect_code(0).stdout;
    for part in [
        "source \"first\" (postgres)\n  role_a(User:_, String:_)\n    mode: incremental",
        "source \"docs\" (mongodb)\n  badge_a(User:_, String:_)\n    mode: incremental",
        "  count_a(String:_, String:_)\n    mode: refresh",
        "reads members",
        "(csv)\n  member_a(User:_, String:_)\n    mode: refresh",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let yaml = fs::read_to_string(desk.path("mongo.yaml")).expect("readable");
    desk.put("typo.yaml", &yaml.replace("db: docs", "db: dosc"));
    let typo = ["postgres.yaml", "typo.yaml", "csv.yaml"];
    for command in ["check", "explain", "reset", "run"] {
        let told = desk.command(command, &typo, &[]).expect_code(2).stderr;
        assert!(told.contains("typo.yaml:5:") && told.contains("\"dosc\"") && told.contains("\"docs\""), "{command}: {told}");
    }
}

async fn beside_a_run(desk: &Desk, process: &Process, docs: &Documents) {
    let listen = process.url().strip_prefix("http://").expect("a URL");
    let status = Factsync::run(&["status", "--listen", listen], &[]).expect_code(0).json();
    let sources = status["sources"].as_array().expect("a list").iter();
    let shown: Vec<String> = sources.map(|line| format!("{} {}", line["kind"], line["state"])).collect();
    assert_eq!(shown, ["\"postgres\" \"streaming\"", "\"mongodb\" \"streaming\"", "\"csv\" \"streaming\""]);
    let position = line(process, "docs").await["position"].as_str().expect("a position").to_owned();
    assert!(position.split(':').all(|part| part.parse::<u32>().is_ok()), "{position} has something that is no number");

    let wait = |position: &str, more: &[&str]| Factsync::run(&[&["wait", "--listen", listen, "--position", position], more].concat(), &[]);
    docs.insert(&[("5", "owner")]).await;
    let time = docs.now().await;
    wait(&time, &[]).expect_code(0);
    assert!(held(process, "badge_a").await.contains(["5", "owner"].map(str::to_owned).as_slice()), "it has waited");
    for wrong in ["1732284000", "1732284000:x", "Timestamp(1732284000, 5)", "1732284000.5", "99999999999:1"] {
        let told = wait(wrong, &[]).expect_code(2).stderr;
        assert!(told.contains("a cluster time such as 1732284000:5"), "{wrong}: {told}");
    }
    let told = wait(&time, &["--source", "dosc"]).expect_code(1).stderr;
    assert!(told.contains("there is no source \"dosc\"; there are: \"first\", \"docs\""), "{told}");
    let told = wait(&time, &["--source", "first"]).expect_code(1).stderr;
    assert!(told.contains("source \"first\" is postgres and has an LSN such as 16/B374D848"), "{told}");
    let told = wait("4000000000:1", &["--timeout", "100ms"]).expect_code(1).stderr;
    assert!(told.contains("source \"docs\" is streaming at "), "{told}");

    let told = desk.command("reset", &ALL, &["--yes"]).expect_code(1).stderr;
    assert!(told.contains(listen), "who holds the state is not named: {told}");
}
