//! What the application does, and what PostgreSQL says its queries return after each of its transactions.
//!
//! One writer commits at full speed. The oracle is a second database with the same rows, to which the same statements are sent in the same
//! order, one transaction at a time: after each it asks PostgreSQL for the queries' result, and for the difference to the one before. So
//! looking does not slow down what is looked at. Since the two must be the same, they are compared in the end.

use std::collections::BTreeSet;

use factsync::{config::View, target::Op};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::github::{Github, Random};

/// Rows of the application beside those of the example, so that one transaction can concern thousands of facts.
pub(super) const BULK: &str = "
    INSERT INTO organization VALUES (1000, 'bulk', NULL), (1001, 'bulk too', 'writer');
    INSERT INTO account SELECT 1000 + n, 'bulk' || n, false FROM generate_series(0, 399) AS n;
    INSERT INTO team VALUES (1000, 1000, 'bulk');
    INSERT INTO team_member SELECT 1000, 1000 + n FROM generate_series(0, 399) AS n;
    INSERT INTO repository SELECT 1000 + n, 1000 + n % 2, 'bulk' || n, n % 3 = 0 FROM generate_series(0, 999) AS n;";

/// More facts of those rows, so that a backfill takes a while.
pub(super) const MANY: &str = "INSERT INTO team_repository SELECT 1000, 1000 + n, 'writer' FROM generate_series(0, 13) AS n;";

/// Transactions that the oracle may be behind: more than a test commits, since waiting for it would slow the application down.
const QUEUE: usize = 10_000;

/// A fact: the number of its query, and the query's row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fact {
    pub(super) view: usize,
    pub(super) cells: Vec<String>,
}

impl Fact {
    /// Whether it is one of [`BULK`] or [`MANY`].
    pub(super) fn is_additional(&self) -> bool {
        self.cells.iter().any(|cell| cell.parse::<u64>().is_ok_and(|id| id >= 1000))
    }
}

/// The fact types, as the API's JSON has them; `null` stands for a variable.
#[derive(Debug, Clone)]
pub(super) struct Views(Vec<Value>);

impl Views {
    pub(super) fn new(views: &[View<String>]) -> Self {
        Self(views.iter().map(|view| serde_json::to_value(&view.fact_type).expect("a fact type is JSON")).collect())
    }

    pub(super) fn json(&self, fact: &Fact) -> Value {
        let mut json = self.0[fact.view].clone();
        let mut cells = fact.cells.iter();
        for arg in json["args"].as_array_mut().expect("arguments") {
            if arg["id"].is_null() {
                arg["id"] = cells.next().expect("a cell for each variable").as_str().into();
            }
        }
        json
    }

    /// Which fact this is; panics if it is of none of the fact types, for only those are anybody's business.
    pub(super) fn fact(&self, json: &Value) -> Fact {
        let args = |json: &Value| json["args"].as_array().expect("arguments").clone();
        let given = args(json);
        let fits = |pattern: &Value| {
            let wanted = args(pattern);
            let fits = |(wanted, given): (&Value, &Value)| {
                wanted["type"] == given["type"] && (wanted["id"].is_null() || wanted["id"] == given["id"])
            };
            pattern["predicate"] == json["predicate"] && wanted.len() == given.len() && wanted.iter().zip(&given).all(fits)
        };
        let view = self.0.iter().position(fits).unwrap_or_else(|| panic!("{json} is of no configured fact type"));
        let variables = args(&self.0[view]).into_iter().zip(given).filter(|(wanted, _)| wanted["id"].is_null());
        Fact { view, cells: variables.map(|(_, given)| given["id"].as_str().expect("a text").to_owned()).collect() }
    }

    /// Facts that the fact store may refuse: whatever says `maintainer`.
    pub(super) fn is_refused(&self, fact: &Fact) -> bool {
        fact.cells.iter().any(|cell| cell == "maintainer")
    }
}

/// What a transaction made true or false.
pub(super) type Turns = Vec<(Op, Fact)>;

/// The second database.
pub(super) struct Oracle {
    /// What the queries return at the start.
    pub(super) first: BTreeSet<Fact>,
    transactions: mpsc::Sender<String>,
    answers: JoinHandle<(Client, Vec<Turns>)>,
}

impl Oracle {
    /// A database that begins with the same rows.
    pub(super) async fn start(github: &Github, more: &str) -> Self {
        let database = github.cluster.database();
        let client = github.cluster.client(&database).await;
        for file in ["schema.sql", "seed.sql"] {
            let sql = std::fs::read_to_string(format!("{}/sql/example/{file}", env!("CARGO_MANIFEST_DIR"))).expect("the example's SQL");
            client.batch_execute(&sql).await.expect("the example's SQL runs");
        }
        client.batch_execute(more).await.expect("the rows can be inserted");
        prepare(&client, &github.views()).await;
        let (transactions, mut waiting) = mpsc::channel::<String>(QUEUE);
        let start = turns(&client).await;
        let first = start.iter().map(|(_, fact)| fact.clone()).collect();
        let answers = async move {
            let mut answers = vec![start];
            while let Some(sql) = waiting.recv().await {
                client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("it was committed at the source: {error:?} in {sql}"));
                answers.push(turns(&client).await);
            }
            (client, answers)
        };
        Self { first, transactions, answers: tokio::spawn(answers) }
    }

    /// This transaction is committed at the source.
    pub(super) async fn committed(&self, sql: String) {
        self.transactions.send(sql).await.expect("the oracle runs");
    }

    /// What turned at the start and with each transaction. Panics unless the result is the source's too.
    pub(super) async fn finish(self, github: &Github) -> Vec<Turns> {
        drop(self.transactions);
        let (client, answers) = self.answers.await.expect("the oracle does not panic");
        prepare(&github.client, &github.views()).await;
        assert_eq!(turns(&github.client).await.into_iter().collect::<BTreeSet<_>>(), whole(&client).await, "the two databases differ");
        answers
    }
}

/// Makes `result`, a view of what all queries return now, `before`, a table of what they returned when last asked, and one for the answer.
async fn prepare(client: &Client, views: &[View<String>]) {
    let part = |(number, view): (usize, &View<String>)| {
        let pattern = serde_json::to_value(&view.fact_type).expect("a fact type is JSON");
        let arity = pattern["args"].as_array().expect("arguments").iter().filter(|arg| arg["id"].is_null()).count();
        let names: Vec<String> = (0..arity).map(|column| format!("c{column}")).collect();
        let padded: Vec<String> = (0..3).map(|column| names.get(column).map_or("NULL".into(), |name| format!("{name}::text"))).collect();
        let columns = names.join(", ");
        // A row with a NULL makes no fact.
        format!("SELECT {number}, {} FROM ({}) AS q({columns}) WHERE num_nulls({columns}) = 0", padded.join(", "), view.query)
    };
    let parts: Vec<String> = views.iter().enumerate().map(part).collect();
    let sql = format!(
        "CREATE TEMP VIEW result(view, a, b, c) AS {};
         CREATE TEMP TABLE before (view int, a text, b text, c text);
         CREATE TEMP TABLE now (LIKE before);",
        parts.join(" UNION ")
    );
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"));
}

/// What has turned since this was last asked, by PostgreSQL's own EXCEPT.
async fn turns(client: &Client) -> Turns {
    let sql = "INSERT INTO now SELECT * FROM result;
        (SELECT '-', * FROM before EXCEPT ALL SELECT '-', * FROM now) UNION ALL
        (SELECT '+', * FROM now EXCEPT ALL SELECT '+', * FROM before);
        TRUNCATE before;
        ALTER TABLE before RENAME TO spare;
        ALTER TABLE now RENAME TO before;
        ALTER TABLE spare RENAME TO now;";
    facts(client, sql).await
}

/// What the queries returned when last asked.
async fn whole(client: &Client) -> BTreeSet<(Op, Fact)> {
    facts(client, "SELECT '+', * FROM before").await.into_iter().collect()
}

async fn facts(client: &Client, sql: &str) -> Turns {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("the oracle failed: {error:?}"));
    let mut turns = Turns::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let op = if row.get(0) == Some("+") { Op::Insert } else { Op::Delete };
            let view = row.get(1).and_then(|text| text.parse().ok()).expect("the query's number");
            let cells = (2..5).filter_map(|column| row.get(column).map(str::to_owned)).collect();
            turns.push((op, Fact { view, cells }));
        }
    }
    turns
}

/// A transaction without its COMMIT, that concerns up to some `most` rows.
pub(super) fn transaction(random: &mut Random, most: u64) -> String {
    if most > 0 && random.below(4) == 0 {
        let count = 1 + random.below(2);
        let statements: Vec<String> = (0..count).map(|_| bulk(random, most)).collect();
        return format!("BEGIN;\n{}", statements.join(";\n"));
    }
    loop {
        let sql = random.transaction();
        // PostgreSQL shows a TRUNCATE to older snapshots, so what reads one beside it sees the state of no commit.
        match sql.strip_suffix("COMMIT") {
            Some(body) if !body.contains("TRUNCATE") => return format!("{body}{}", toggle(random)),
            Some(_) | None => {}
        }
    }
}

/// A fact goes and comes within a transaction, or from one to the next.
fn toggle(random: &mut Random) -> String {
    let (account, repository) = (1 + random.below(3), 1 + random.below(3));
    match random.below(4) {
        0 => format!("UPDATE account SET suspended = NOT suspended WHERE id = {account}"),
        1 => format!("UPDATE repository SET is_public = NOT is_public WHERE id = {repository}"),
        2 => format!(
            "DELETE FROM repository_member WHERE repository_id = {repository} AND account_id = {account};
             INSERT INTO repository_member SELECT r.id, a.id, 'admin' FROM repository r, account a
             WHERE r.id = {repository} AND a.id = {account} ON CONFLICT DO NOTHING"
        ),
        _ => String::new(),
    }
}

/// A statement on up to `most` rows or with up to `most` facts.
fn bulk(random: &mut Random, most: u64) -> String {
    let rows = 1 + random.below(most);
    let from = 1000 + random.below(1000);
    let to = from + rows.min(1000);
    let teams = rows / 400 + 1;
    let repository = 1000 + random.below(20);
    match random.below(8) {
        0 => format!("DELETE FROM repository WHERE id BETWEEN {from} AND {to}"),
        1 | 2 => format!(
            "INSERT INTO repository SELECT n, 1000 + n % 2, 'bulk' || n, n % 2 = 0 FROM generate_series({from}, {to}) AS n
             ON CONFLICT (id) DO UPDATE SET is_public = NOT repository.is_public"
        ),
        3 => format!("UPDATE repository SET organization_id = 2001 - organization_id WHERE id BETWEEN {from} AND {to}"),
        4 => format!(
            "DELETE FROM repository WHERE id BETWEEN {from} AND {to};
             INSERT INTO repository SELECT n, 1001, 'again' || n, true FROM generate_series({from}, {to}) AS n"
        ),
        5 => format!(
            "INSERT INTO team_repository SELECT 1000, id, 'writer' FROM repository
             WHERE id BETWEEN {repository} AND {repository} + {teams} ON CONFLICT (team_id, repository_id) DO UPDATE SET role = 'admin'"
        ),
        6 => format!("DELETE FROM team_repository WHERE team_id = 1000 AND repository_id >= {repository}"),
        _ => format!("UPDATE account SET suspended = NOT suspended WHERE id BETWEEN 1000 AND 1000 + {}", rows.min(400)),
    }
}
