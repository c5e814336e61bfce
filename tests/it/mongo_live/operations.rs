//! Random operations: everything an application does to its documents and collections.
//!
//! All go through `runCommand`, which the driver never repeats by itself: what an answer says happened once. An operation that
//! the server refuses (an id that is there, a `$push` onto a number) is part of the game; one that fails in a way that is not
//! listed stops the test.

use std::collections::BTreeMap;

use mongodb::{
    Client, ClientSession, Database,
    bson::{Bson, Document, Timestamp, doc},
    error::{Error, ErrorKind},
};

use super::documents::{self, FIELDS, choose, document, fields, id, one_in, value};
use crate::support::github::Random;

/// What the views read; one has a dot in its name.
pub(super) const COLLECTIONS: [&str; 4] = ["users", "repos", "team.eu", "folders"];
/// Collections that no view reads, from which and to which others are renamed.
const SPARE: [&str; 2] = ["spare", "users.old"];
/// Documents of the largest transactions.
const LARGE: i64 = 2_000;

/// What the server may answer to an operation that makes no sense for the documents that are there.
const REFUSALS: [i32; 26] = [
    2,     // BadValue: $push to what is no array
    9,     // FailedToParse: an empty update
    14,    // TypeMismatch: $inc of a text
    26,    // NamespaceNotFound: a drop or a rename of nothing
    28,    // PathNotViable
    40,    // ConflictingUpdateOperators
    48,    // NamespaceExists: a rename onto another
    52,    // DollarPrefixedFieldName
    53,    // InvalidIdField: a regular expression as the _id
    66,    // ImmutableField
    67,    // CannotCreateIndex
    85,    // IndexOptionsConflict
    112,   // WriteConflict
    117,   // ConflictingOperationInProgress
    175,   // QueryPlanKilled: the other session dropped the collection
    171,   // CannotIndexParallelArrays
    225,   // TransactionTooOld
    244,   // TransactionAborted
    246,   // SnapshotUnavailable
    251,   // NoSuchTransaction
    263,   // OperationNotSupportedInTransaction
    276,   // IndexBuildAborted: the collection went meanwhile
    11000, // DuplicateKey
    12587, // BackgroundOperationInProgressForNamespace: a rename during an index build
    20,    // IllegalOperation: a rename onto itself
    24,    // LockTimeout
];

/// The kinds of operations; each must have worked at least once when a test ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Insert,
    InsertMany,
    Update,
    UpdateMany,
    Replace,
    Upsert,
    Delete,
    DeleteMany,
    Bulk,
    Transaction,
    Aborted,
    LargeTransaction,
    Drop,
    Rename,
    RenameOver,
    Create,
}

impl Kind {
    /// Each with how many of a thousand operations it is.
    const SHARES: [(Self, u64); 16] = [
        (Self::Insert, 200),
        (Self::InsertMany, 120),
        (Self::Update, 260),
        (Self::UpdateMany, 40),
        (Self::Replace, 90),
        (Self::Upsert, 60),
        (Self::Delete, 70),
        (Self::DeleteMany, 6),
        (Self::Bulk, 40),
        (Self::Transaction, 90),
        (Self::Aborted, 25),
        (Self::LargeTransaction, 2),
        (Self::Drop, 2),
        (Self::Rename, 14),
        (Self::RenameOver, 3),
        (Self::Create, 12),
    ];

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::SHARES.into_iter().map(|(kind, _)| kind)
    }

    fn random(random: &mut Random) -> Self {
        let mut left = random.below(Self::SHARES.iter().map(|(_, share)| share).sum());
        for (kind, share) in Self::SHARES {
            if left < share {
                return kind;
            }
            left -= share;
        }
        unreachable!("the shares add up");
    }
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// The server said no; of an unordered one, a part may have happened.
    Refused,
    /// The server is gone, and whether it happened is known to it alone.
    Lost,
}

/// One application with a session of its own.
pub(super) struct Writer {
    random: Random,
    database: Database,
    session: ClientSession,
    /// How often each kind worked.
    pub(super) done: BTreeMap<Kind, u64>,
}

impl Writer {
    pub(super) async fn new(client: &Client, database: &str, random: Random) -> Self {
        let session = client.start_session().await.expect("a session");
        Self { random, database: client.database(database), session, done: BTreeMap::new() }
    }

    /// One random operation.
    pub(super) async fn step(&mut self) -> Outcome {
        let kind = Kind::random(&mut self.random);
        self.attempt(kind).await
    }

    /// One that is a single state of the server later, changes no more than fits in one batch to a fact store, and leaves the collections
    /// what they are.
    pub(super) async fn small_step(&mut self) -> Outcome {
        let small = [Kind::Insert, Kind::Update, Kind::Replace, Kind::Upsert, Kind::Delete, Kind::Transaction];
        let kind = choose(&mut self.random, &small);
        self.attempt(kind).await
    }

    async fn attempt(&mut self, kind: Kind) -> Outcome {
        let outcome = match self.perform(kind).await {
            Ok(()) => Outcome::Done,
            Err(Failure::Refused) => Outcome::Refused,
            Err(Failure::Lost) => Outcome::Lost,
        };
        if outcome == Outcome::Done {
            *self.done.entry(kind).or_default() += 1;
        }
        outcome
    }

    /// The time of the last operation that was answered.
    pub(super) fn operation_time(&self) -> Option<Timestamp> {
        self.session.operation_time()
    }

    async fn perform(&mut self, kind: Kind) -> Result<(), Failure> {
        let collection = choose(&mut self.random, &COLLECTIONS);
        match kind {
            Kind::Insert | Kind::InsertMany | Kind::Update | Kind::UpdateMany | Kind::Replace => self.write(kind, collection).await,
            Kind::Upsert | Kind::Delete | Kind::DeleteMany | Kind::Bulk => self.write(kind, collection).await,
            Kind::Transaction => self.transaction(true).await,
            Kind::Aborted => self.transaction(false).await,
            Kind::LargeTransaction => self.large_transaction(collection).await,
            Kind::Drop => self.run(doc! { "drop": collection }).await,
            Kind::Rename => self.rename(false).await,
            Kind::RenameOver => self.rename(true).await,
            Kind::Create => self.create(collection).await,
        }
    }

    async fn write(&mut self, kind: Kind, collection: &str) -> Result<(), Failure> {
        let command = command(&mut self.random, kind, collection);
        self.run(command).await
    }

    async fn run(&mut self, command: Document) -> Result<(), Failure> {
        let answer = self.database.run_command(command.clone()).session(&mut self.session).await;
        judge(&command, answer)
    }

    /// Several writes to several collections, all or none of them.
    async fn transaction(&mut self, commit: bool) -> Result<(), Failure> {
        let kinds = [Kind::Insert, Kind::Update, Kind::Replace, Kind::Upsert, Kind::Delete, Kind::UpdateMany];
        self.session.start_transaction().await.expect("none is open");
        for _ in 0..2 + self.random.below(4) {
            let (kind, collection) = (choose(&mut self.random, &kinds), choose(&mut self.random, &COLLECTIONS));
            if let Err(failure) = self.write(kind, collection).await {
                // The server has aborted it; the driver wants to hear it too.
                let _ = self.session.abort_transaction().await;
                return Err(failure);
            }
        }
        self.end(commit).await
    }

    async fn large_transaction(&mut self, collection: &str) -> Result<(), Failure> {
        let random = &mut self.random;
        let documents: Vec<Document> = if one_in(random, 2) {
            let member =
                |number| doc! { "_id": format!("large-{number}"), "role": "guest", "owner": number % 4, "team": "large", "large": true };
            (0..LARGE).map(member).collect()
        } else {
            Vec::new()
        };
        let command = match documents.is_empty() {
            true => doc! { "delete": collection, "deletes": [{ "q": { "large": true }, "limit": 0 }] },
            false => doc! { "insert": collection, "documents": documents },
        };
        self.session.start_transaction().await.expect("none is open");
        if let Err(failure) = self.run(command).await {
            let _ = self.session.abort_transaction().await;
            return Err(failure);
        }
        self.end(true).await
    }

    async fn end(&mut self, commit: bool) -> Result<(), Failure> {
        let ended = if commit { self.session.commit_transaction().await } else { self.session.abort_transaction().await };
        judge(&doc! { "commit": commit }, ended.map(|()| Document::new()))
    }

    async fn rename(&mut self, over: bool) -> Result<(), Failure> {
        let names = [&COLLECTIONS[..], &SPARE].concat();
        let (from, to) = (choose(&mut self.random, &names), choose(&mut self.random, &names));
        let full = |name: &str| format!("{}.{name}", self.database.name());
        let command = doc! { "renameCollection": full(from), "to": full(to), "dropTarget": over };
        let admin = self.session.client().database("admin");
        let answer = admin.run_command(command.clone()).session(&mut self.session).await;
        judge(&command, answer)
    }

    /// With the index that lookups need, on a collection that may exist.
    async fn create(&mut self, collection: &str) -> Result<(), Failure> {
        self.run(index(collection)).await
    }
}

/// The index that a lookup by `owner` needs.
pub(super) fn index(collection: &str) -> Document {
    doc! { "createIndexes": collection, "indexes": [{ "key": { "owner": 1 }, "name": "owner_1" }] }
}

/// One write to `collection`.
fn command(random: &mut Random, kind: Kind, collection: &str) -> Document {
    let update = |q: Document, u: Document| doc! { "update": collection, "updates": [{ "q": q, "u": u }] };
    match kind {
        Kind::Insert => doc! { "insert": collection, "documents": [document(random)] },
        Kind::InsertMany => {
            let documents: Vec<Document> = (0..2 + random.below(6)).map(|_| document(random)).collect();
            doc! { "insert": collection, "documents": documents, "ordered": one_in(random, 2) }
        }
        Kind::UpdateMany => {
            doc! { "update": collection, "updates": [{ "q": filter(random), "u": modification(random), "multi": true }] }
        }
        Kind::Replace => update(doc! { "_id": id(random) }, fields(random)),
        Kind::Upsert => {
            doc! { "update": collection, "updates": [{ "q": { "_id": { "$eq": id(random) } }, "u": modification(random), "upsert": true }] }
        }
        Kind::Delete => doc! { "delete": collection, "deletes": [{ "q": { "_id": id(random) }, "limit": 1 }] },
        Kind::DeleteMany => doc! { "delete": collection, "deletes": [{ "q": filter(random), "limit": 0 }] },
        Kind::Bulk => {
            let one = |random: &mut Random| doc! { "q": { "_id": id(random) }, "u": modification(random), "upsert": one_in(random, 4) };
            let updates: Vec<Document> = (0..2 + random.below(8)).map(|_| one(random)).collect();
            doc! { "update": collection, "updates": updates, "ordered": one_in(random, 2) }
        }
        // Those that are no single command are made of updates.
        Kind::Update
        | Kind::Transaction
        | Kind::Aborted
        | Kind::LargeTransaction
        | Kind::Drop
        | Kind::Rename
        | Kind::RenameOver
        | Kind::Create => {
            let by = if one_in(random, 4) {
                filter(random)
            } else {
                doc! { "_id": id(random) }
            };
            update(by, modification(random))
        }
    }
}

fn filter(random: &mut Random) -> Document {
    let name = choose(random, &["role", "active", "n", "owner"]);
    // Two thousand documents without a reference would join two thousand others: a million facts, and nothing new.
    doc! { name: { "$eq": value(random, name) }, "large": { "$exists": false } }
}

fn modification(random: &mut Random) -> Document {
    let name = choose(random, &FIELDS);
    match random.below(12) {
        0 => doc! { "$unset": { name: "" } },
        1 => doc! { "$push": { "team": id(random) } },
        2 => doc! { "$addToSet": { "deep.y": { "z": id(random) } } },
        3 => doc! { "$pull": { "team": id(random) } },
        4 => doc! { "$inc": { "n": 1 } },
        5 => doc! { "$pop": { "deep.y": 1 } },
        6 => doc! { "$set": { "deep.x": id(random) } },
        7 => doc! { "$set": { "owner": documents::reference(random), "active": one_in(random, 2) } },
        8 => doc! { "$rename": { "owner": "role" } },
        _ => doc! { "$set": { name: value(random, name) } },
    }
}

/// Why an operation has not happened.
enum Failure {
    Refused,
    Lost,
}

fn judge(command: &Document, answer: Result<Document, Error>) -> Result<(), Failure> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Err(failure(command, &error)),
    };
    let errors = answer.get_array("writeErrors").map_or(&[][..], Vec::as_slice);
    for error in errors {
        let code = error.as_document().and_then(|error| error.get_i32("code").ok());
        assert!(code.is_some_and(|code| REFUSALS.contains(&code)), "{command}: {error}");
    }
    let changed = answer.get("n").is_none_or(|count| !matches!(count, Bson::Int32(0)));
    if errors.is_empty() && changed { Ok(()) } else { Err(Failure::Refused) }
}

fn failure(command: &Document, error: &Error) -> Failure {
    match &*error.kind {
        ErrorKind::Command(refusal) if REFUSALS.contains(&refusal.code) => Failure::Refused,
        ErrorKind::Command(refusal) if GONE.contains(&refusal.code) => Failure::Lost,
        ErrorKind::Io(_) | ErrorKind::ServerSelection { .. } | ErrorKind::ConnectionPoolCleared { .. } => Failure::Lost,
        _ => panic!("{command}: {error}"),
    }
}

/// A primary that starts or stops, or whose sessions were killed.
const GONE: [i32; 9] = [91, 189, 10107, 11600, 11601, 11602, 13435, 13436, 237];
