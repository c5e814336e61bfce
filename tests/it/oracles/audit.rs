//! PostgreSQL's own answer at an exact position under load: the snapshot that a new replication slot exports is the state at its
//! consistent point, and the only state to which PostgreSQL gives a position.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use super::followed::{Answers, ask};
use crate::support::{self, generate::query::Query, postgres::Cluster};

/// What the queries return at a position.
pub(super) struct Audit {
    /// As PostgreSQL prints it.
    pub(super) position: String,
    pub(super) answers: Answers,
}

impl Audit {
    /// Takes one of `database` now; waits for the transactions that run.
    pub(super) async fn take(cluster: &Cluster, database: &str, queries: &[Query]) -> Self {
        let client = cluster.client(database).await;
        super::followed::prepare(&client, queries).await;
        let url = format!("{}?replication=database", cluster.url(database));
        let mut command = support::command(cluster.bin_dir().join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", &url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut session = command.spawn().expect("psql can be run");
        let mut input = session.stdin.take().expect("a pipe");
        writeln!(input, "CREATE_REPLICATION_SLOT audit TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export');").expect("psql reads");
        let mut line = String::new();
        BufReader::new(session.stdout.take().expect("a pipe")).read_line(&mut line).expect("psql answers");
        let fields: Vec<&str> = line.split('|').collect();
        let [_, position, snapshot, _] = fields[..] else { panic!("psql said {line:?}") };
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'");
        client.batch_execute(&begin).await.expect("the snapshot is exported as long as psql does nothing else");
        let answers = ask(&client, queries.len()).await;
        // The end of its input ends psql, and with it slot and snapshot.
        drop(input);
        session.wait().expect("psql ends");
        Self { position: position.to_owned(), answers }
    }

    /// The position as a number.
    pub(super) fn lsn(&self) -> u64 {
        let (high, low) = self.position.split_once('/').expect("two numbers");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        number(high) << 32 | number(low)
    }
}
