//! Shapes against a real mongod: what a view makes of each document, together and alone, and what a change touches.
//!
//! The oracle is the configured query itself, run by the server without anything of ours around it.

#[path = "../../../../tests/it/support/mongod.rs"]
#[expect(dead_code, reason = "other tests start other kinds of servers")]
mod mongod;
#[path = "../../../../tests/it/support/places.rs"]
mod places;
mod random;
mod reads;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use mongodb::{Collection, Database, bson::Timestamp};
use secrecy::SecretString;

use super::*;
use crate::{
    config::MongoConfig,
    source::mongo::{
        client::Server,
        lookup::{affected, refuse_arrays_in_arrays},
        read::{ReadError, source_key},
    },
};
use mongod::Mongod;
use places::{free_port, tools_dir};
use random::Random;

/// Rows of each document, sorted.
type ByKey = BTreeMap<String, Vec<Vec<Option<String>>>>;

/// Pipelines that a run tries: 12 seconds.
const CASES: usize = 100;
/// Rounds of changes for each of them.
const ROUNDS: usize = 3;

struct Bench {
    mongod: Mongod,
    database: Database,
    server: Server,
}

impl Bench {
    async fn start() -> Self {
        let mongod = Mongod::start().await;
        let config = MongoConfig { connection_string: SecretString::from(mongod.uri("shapes")), views: Vec::new() };
        let server = Server::connect("app", &config).await.expect("a server");
        let database = mongod.client().await.database("shapes");
        Self { mongod, database, server }
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.database.collection(name)
    }

    /// The time now, once everything written so far is in it.
    async fn now(&self) -> Timestamp {
        self.server.cluster_time().await.expect("a time")
    }

    /// The view of every document.
    async fn all(&self, view: &PerDocument, at: Timestamp) -> Result<ByKey, ReadError> {
        let mut rows: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        let mut documents = self.server.aggregate_at(&view.collection, view.pipeline(None), at).await?;
        while let Some(documents) = documents.next().await? {
            for document in documents {
                rows.entry(source_key(&document)?).or_default().extend(view.rows(&document));
            }
        }
        Ok(sorted(rows))
    }

    /// The query as it is written, on a collection.
    async fn plain(&self, query: &MongoQuery, collection: &str) -> Result<Vec<Vec<Option<String>>>, mongodb::error::Error> {
        let documents = self.collection(collection).aggregate(stages(query).expect("Extended JSON")).await?;
        let documents: Vec<Document> = documents.try_collect().await?;
        Ok(cells(documents.iter().flat_map(|document| decode::rows(document, &query.fields)).collect()))
    }

    async fn ids(&self, collection: &str) -> Vec<Bson> {
        let documents: Vec<Document> = self.collection(collection).find(doc! {}).await.expect("found").try_collect().await.expect("read");
        documents.into_iter().map(|document| document.get("_id").expect("an id").clone()).collect()
    }

    async fn fill(&self, collection: &str, documents: Vec<Document>) {
        self.collection(collection).delete_many(doc! {}).await.expect("deleted");
        self.collection(collection).insert_many(documents).await.expect("inserted");
    }

    /// Deletes, replaces or inserts documents of both collections; their `_id`s by collection.
    async fn change(&self, random: &mut Random) -> BTreeMap<&'static str, Vec<Bson>> {
        let mut changed: BTreeMap<&str, Vec<Bson>> = BTreeMap::new();
        for _ in 0..=random.below(2) {
            let name = *random.one(&["main", "other", "other"]);
            let document = random.document(name);
            let id = document.get("_id").expect("an id").clone();
            let same = doc! { "_id": { "$eq": id.clone() } };
            if random.below(3) == 0 {
                self.collection(name).delete_one(same).await.expect("deleted");
            } else {
                self.collection(name).delete_one(same).await.expect("deleted");
                self.collection(name).insert_one(document).await.expect("inserted");
            }
            changed.entry(name).or_default().push(id);
        }
        changed
    }
}

fn cells(rows: Vec<Row>) -> Vec<Vec<Option<String>>> {
    let mut cells: Vec<_> = rows.iter().map(Row::cells).collect();
    cells.sort();
    cells
}

fn sorted(rows: BTreeMap<String, Vec<Row>>) -> ByKey {
    rows.into_iter().map(|(key, rows)| (key, cells(rows))).filter(|(_, rows)| !rows.is_empty()).collect()
}

/// What the random cases were, so that a generator that makes only dull ones is noticed.
#[derive(Debug, Default)]
struct Tally {
    by_field: usize,
    isolated: usize,
    lookups: usize,
    refreshed: usize,
    failing: usize,
    arrays_in_arrays: usize,
    changed_by_lookup: usize,
}

#[tokio::test]
async fn a_view_is_the_sum_of_its_documents_and_changes_only_where_it_says() {
    let bench = Bench::start().await;
    let mut random = Random::new();
    let mut tally = Tally::default();
    for name in ["main", "other", "alone"] {
        bench.collection(name).insert_one(doc! {}).await.expect("inserted");
    }
    let cases = std::env::var("FACTSYNC_CASES").map_or(CASES, |text| text.parse().expect("FACTSYNC_CASES is a number"));
    // On until there was enough of everything, which chance may deny for a while; a generator that never brings it fails.
    while tally.cases() < cases || tally.is_dull() && tally.cases() < 4 * cases {
        let query = random.query();
        let view = match Shape::of(&query).expect("Extended JSON") {
            Shape::PerDocument(view) => view,
            Shape::Refresh { .. } => {
                tally.refreshed += 1;
                continue;
            }
            Shape::Refused(reason) => panic!("{reason}: {query:?}"),
        };
        case(&bench, &mut random, &query, &view, &mut tally).await;
    }
    eprintln!("{tally:?}");
    assert!(!tally.is_dull(), "dull cases: {tally:?}");
}

impl Tally {
    fn cases(&self) -> usize {
        self.by_field + self.isolated
    }

    fn is_dull(&self) -> bool {
        self.isolated <= 10 || self.lookups <= 30 || self.changed_by_lookup <= 10
    }
}

async fn case(bench: &Bench, random: &mut Random, query: &MongoQuery, view: &PerDocument, tally: &mut Tally) {
    bench.fill("main", random.documents("main")).await;
    bench.fill("other", random.documents("other")).await;
    let before = bench.now().await;
    let (rows, plain) = (bench.all(view, before).await, bench.plain(query, "main").await);
    let (rows, plain) = match (rows, plain) {
        (Ok(rows), Ok(plain)) => (rows, plain),
        (Err(_), Err(_)) => return tally.failing += 1,
        (rows, plain) => panic!("{query:?}: {rows:?}, and as it is written {plain:?}"),
    };
    match view.carry {
        Carry::Field => tally.by_field += 1,
        Carry::Isolated => tally.isolated += 1,
    }
    tally.lookups += usize::from(!view.lookups.is_empty());
    let mut together: Vec<_> = rows.values().flatten().cloned().collect();
    together.sort();
    assert_eq!(together, plain, "together: {query:?}");
    alone(bench, random, query, &rows).await;
    let mut last = (before, rows);
    for _ in 0..ROUNDS {
        match changed(bench, random, query, view, last, tally).await {
            Some(next) => last = next,
            None => return,
        }
    }
}

/// The rows of some documents, each alone in a collection.
async fn alone(bench: &Bench, random: &mut Random, query: &MongoQuery, rows: &ByKey) {
    for id in random.some(bench.ids("main").await, 3) {
        let document = bench.collection("main").find_one(doc! { "_id": { "$eq": id.clone() } }).await.expect("asked").expect("it is there");
        bench.fill("alone", vec![document.clone()]).await;
        let alone = bench.plain(query, "alone").await.expect("it works for all together");
        assert_eq!(rows.get(&key(&id)).cloned().unwrap_or_default(), alone, "{document:?} alone: {query:?}");
    }
}

/// What a change touches, and nothing else, is different, and read again it is what the view says. The view after it, if it can
/// still be followed.
async fn changed(
    bench: &Bench,
    random: &mut Random,
    query: &MongoQuery,
    view: &PerDocument,
    (before, rows): (Timestamp, ByKey),
    tally: &mut Tally,
) -> Option<(Timestamp, ByKey)> {
    let changes = bench.change(random).await;
    let after = bench.now().await;
    let Ok(rows_after) = bench.all(view, after).await else {
        tally.failing += 1;
        return None;
    };
    for at in [before, after] {
        match refuse_arrays_in_arrays(&bench.server, view, None, at).await {
            Ok(()) => {}
            Err(ReadError::ArrayInArray { .. }) => {
                tally.arrays_in_arrays += 1;
                return None;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let mut touched: BTreeMap<String, Bson> = BTreeMap::new();
    let of_main = changes.get("main").cloned().unwrap_or_default();
    touched.extend(of_main.iter().map(|id| (key(id), id.clone())));
    for lookup in &view.lookups {
        let foreign = changes.get(lookup.from.as_str()).cloned().unwrap_or_default();
        let mut affected = affected(&bench.server, view, lookup, &foreign, before, after);
        while let Some(ids) = affected.next().await.expect("found") {
            touched.extend(ids.into_iter().map(|id| (key(&id), id)));
        }
    }
    let keys: BTreeSet<&String> = rows.keys().chain(rows_after.keys()).collect();
    for key in keys {
        let different = rows.get(key) != rows_after.get(key);
        assert!(!different || touched.contains_key(key), "{changes:?} changes {key} unseen: {query:?}");
        tally.changed_by_lookup += usize::from(different && !of_main.iter().any(|id| super::key(id) == *key));
    }
    let ids: Vec<Bson> = touched.values().cloned().collect();
    let read = sorted(bench.server.rows_of(view, &ids, after).await.expect("rows"));
    let want: ByKey = rows_after.clone().into_iter().filter(|(key, _)| touched.contains_key(key)).collect();
    assert_eq!(read, want, "read again: {query:?}");
    Some((after, rows_after))
}
