//! A batch twice in a row is that batch once, at the store itself: whatever is in it, and however often it comes.

use std::collections::BTreeSet;

use factsync::{
    fact::{Fact, FactType, Value},
    target::{Batch, FactChange, FactStore, Op, embedded::EmbeddedStore},
};
use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

const FACT_TYPE: &str = "has_role(User:_)";

/// Few facts, so that a batch inserts and deletes the same ones; now and then one large enough for the store's log.
fn batch() -> impl Strategy<Value = Vec<(Op, u8)>> {
    let change = || (prop_oneof![Just(Op::Insert), Just(Op::Delete)], 0..12_u8);
    prop_oneof![6 => vec(change(), 0..9), 1 => vec(change(), 130..300)]
}

fn change(op: Op, user: u8) -> FactChange {
    FactChange { op, fact: Fact { predicate: "has_role".into(), args: vec![Value::new("User", user.to_string())] } }
}

async fn users(store: &EmbeddedStore) -> usize {
    let fact_type: FactType = FACT_TYPE.parse().expect("a signature");
    let mut rows = BTreeSet::new();
    let each = &mut |row| {
        rows.insert(row);
        Ok(())
    };
    store.list(&fact_type, each).await.expect("it lists");
    rows.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn idempotent_any_batch_twice_in_a_row_is_that_batch_once(batches in vec((batch(), 1..4_usize), 1..12)) {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let store = EmbeddedStore::open(&folder.path().join("facts.db")).expect("the store opens");
        let mut model = BTreeSet::new();
        for (changes, times) in batches {
            for (op, user) in &changes {
                match op {
                    Op::Insert => model.insert(*user),
                    Op::Delete => model.remove(user),
                };
            }
            let batch = Batch { request_id: Uuid::new_v4(), changes: changes.iter().map(|(op, user)| change(*op, *user)).collect() };
            for _ in 0..times {
                runtime.block_on(store.apply(&batch)).expect("it applies");
                let stored: BTreeSet<u8> = (0..12).filter(|user| runtime.block_on(has(&store, *user))).collect();
                prop_assert_eq!(&stored, &model);
            }
        }
        prop_assert_eq!(runtime.block_on(users(&store)), model.len());
    }
}

async fn has(store: &EmbeddedStore, user: u8) -> bool {
    let fact_type: FactType = format!("has_role(User:{user})").parse().expect("a signature");
    let mut found = false;
    let each = &mut |_| {
        found = true;
        Ok(())
    };
    store.list(&fact_type, each).await.expect("it lists");
    found
}
