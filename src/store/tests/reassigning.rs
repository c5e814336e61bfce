//! Fact types that move between sources, and sources that go and come back.

use super::*;

fn signature(text: &str) -> FactType {
    text.parse().expect("a signature")
}

/// Registers as a start does; `claims` are sources with the predicates of their fact types.
fn start(store: &mut Store, claims: &[(&str, &[&str])]) -> (Vec<String>, Vec<Vec<ViewRecord>>) {
    let types: Vec<Vec<FactType>> = claims
        .iter()
        .map(|(_, predicates)| predicates.iter().map(|predicate| signature(&format!("{predicate}(User:_)"))).collect())
        .collect();
    let claimed: Vec<(&str, Vec<&FactType>)> =
        claims.iter().zip(&types).map(|((source, _), types)| (*source, types.iter().collect())).collect();
    let gone = store.reassign(&claimed).expect("reassigned");
    let views = claimed.iter().map(|(source, types)| store.register(source, types).expect("registered")).collect();
    (gone, views)
}

/// A store in which `a` feeds `f` with "1 2" and `b` feeds `g` with "3", at their positions and compared.
fn two_sources() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("spool")).expect("a spool");
    let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
    let (gone, views) = start(&mut store, &[("a", &["f"]), ("b", &["g"])]);
    assert!(gone.is_empty());
    for ((source, wanted), views) in [("a", "1 2"), ("b", "3")].into_iter().zip(&views) {
        store.begin(source, "fingerprint", source).expect("begun");
        let fresh = || vec![(views[0].clone(), extent(&names(wanted))).into()];
        store.replace(source, &at(10).into(), fresh(), Guard::Off).expect("replaced");
        let view = store.reread(&views[0]).expect("read");
        store.correct(source, vec![(view, extent(&names(wanted)))], Guard::Off).expect("corrected");
    }
    (folder, store)
}

fn desired(store: &Store, view: &ViewRecord) -> BTreeSet<String> {
    store.desired(view.id).expect("opened").map(|row| row.expect("read").cells().remove(0).expect("a text")).collect()
}

#[test]
fn a_fact_type_that_moved_is_not_trusted_although_its_new_source_stands_where_it_stood() {
    let (_folder, mut store) = two_sources();
    let (gone, views) = start(&mut store, &[("b", &["g", "f"])]);
    assert_eq!(gone, ["a"]);
    let moved = &views[0][1];
    assert!(!moved.known && moved.fingerprint.is_none() && moved.position.is_none(), "{moved:?}");
    assert_eq!(desired(&store, moved), names("1 2"), "what the fact store holds of it is known all the same");
    let result = vec![(moved.clone(), extent(&names("2 4"))).into()];
    store.replace("b", &at(20).into(), result, Guard::Off).expect("replaced");

    let (gone, views) = start(&mut store, &[("a", &["f"]), ("b", &["g"])]);
    assert_eq!(
        (gone.len(), views[0][0].known, views[1][0].known),
        (0, false, true),
        "back, at its old position, with the facts of the other"
    );
    assert_eq!(desired(&store, &views[0][0]), names("2 4"));
}

#[test]
fn fact_types_that_change_places_keep_their_facts() {
    let (_folder, mut store) = two_sources();
    let (_, views) = start(&mut store, &[("a", &["g"]), ("b", &["f"])]);
    assert_eq!((desired(&store, &views[0][0]), desired(&store, &views[1][0])), (names("3"), names("1 2")));
    assert!(!views[0][0].known && !views[1][0].known);
}

#[test]
fn of_a_source_that_is_gone_nothing_is_sent_and_it_is_compared_when_it_is_back() {
    let (_folder, mut store) = two_sources();
    let (_, views) = start(&mut store, &[("a", &["f"]), ("b", &["g"])]);
    let result = |view: &ViewRecord, wanted: &str| vec![(view.clone(), extent(&names(wanted))).into()];
    store.apply("a", &at(20).into(), result(&views[0][0], "1"), Guard::Off).expect("applied");
    store.apply("b", &at(20).into(), result(&views[1][0], "3 4"), Guard::Off).expect("applied");
    assert_eq!(store.outbox_len(), 2);

    let (gone, left) = start(&mut store, &[("b", &["g"])]);
    assert_eq!(gone, ["a"]);
    let waiting: Vec<_> = store.outbox(9).expect("read").into_iter().map(|entry| (entry.view, entry.op)).collect();
    assert_eq!((waiting, store.outbox_len()), (vec![(left[0][0].id, Op::Insert)], 1), "only what a configured fact type claims");
    assert_eq!(store.source("b").expect("read").map(|record| record.compared), Some(true));

    let (gone, back) = start(&mut store, &[("a", &["f"]), ("b", &["g"])]);
    assert_eq!((gone.len(), desired(&store, &back[0][0])), (0, names("1")));
    let record = store.source("a").expect("read").expect("still there");
    assert_eq!((record.position, record.compared), (Some(at(20)), false), "it goes on, and what was not sent is found");
}
