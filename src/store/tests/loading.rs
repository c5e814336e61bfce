//! Loads: trusted only if they compute the database's own answer, used only together with their facts.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    data::{Extent, Lsn, Row},
    store::{
        Doubt, Loaded, Reached,
        tests::{
            at, extent,
            following::{Followers, PLAN},
            names,
            scripted::{FAILS, Names, Silent, TABLE, transaction},
        },
    },
    view::Guard,
};

fn load(followers: &mut Followers, rows: &[(&str, Option<&str>)], answer: Extent) -> Loaded {
    let (record, mut dataflow) = followers.views[0].clone();
    let table: BTreeSet<Row> = rows.iter().map(|(key, name)| Row::from_cells([Some(*key), *name])).collect();
    let tables = BTreeMap::from([(TABLE, Extent::from_sorted(table.into_iter().map(Ok)))]);
    followers.store.load(record, &mut dataflow, PLAN, tables, answer, 7, &mut Silent).expect("loaded")
}

#[test]
fn a_state_is_usable_only_together_with_its_facts() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.follow(transaction(20, "1=a"));
    followers.sent();
    let rows = [("1", Some("b")), ("2", None), ("3", None)];
    let answer = Extent::from_sorted([Row::from_cells([None]), Row::from_texts(["b"])].into_iter().map(Ok));
    let loaded = load(&mut followers, &rows, answer);
    assert!(loaded.doubt.is_none());
    // Killed here, it has to be loaded again.
    let mut followers = followers.reopened();
    assert!(!followers.views[0].0.has_state(PLAN));
    assert_eq!(followers.desired(0), names("a"));
    let changes = followers.store.apply("db", &at(21).into(), vec![loaded.fresh], Guard::Off).expect("applied");
    assert_eq!(changes.views[0].skipped.get("an argument is NULL"), Some(&1));
    let mut followers = followers.reopened();
    let view = &followers.views[0].0;
    assert!(view.has_state(PLAN) && !view.has_state("another plan"));
    assert_eq!((view.position, view.clock), (None, Some(7)));
    assert_eq!(followers.sent(), "-a +b");
    followers.follow(transaction(30, "1 2 3"));
    assert_eq!((followers.sent().as_str(), followers.views[0].0.skipped.len()), ("-b", 0));
}

#[test]
fn a_result_that_is_not_the_databases_own_is_counted_and_shown_without_its_content() {
    let mut followers = Followers::new(&[Names { forgetful: true, ..Names::default() }]);
    let rows = [("1", Some("secret")), ("2", Some("zz"))];
    let loaded = load(&mut followers, &rows, extent(&names("secret yy")));
    let Some(doubt @ Doubt::Differs { missing: 2, extra: 1, .. }) = &loaded.doubt else { panic!("{loaded:?}") };
    let text = doubt.to_string();
    assert!(text.contains("missing: 6 characters") && text.contains("too many: 2 characters"), "{text}");
    assert!(!text.contains("secret") && !text.contains("zz"), "{text}");
    // Until the answer becomes facts, of a view that is refreshed, they are those of before: whoever starts now has to know.
    let view = followers.views[0].0.clone();
    followers.store.demote(view.id, PLAN, &text).expect("demoted");
    assert!(followers.store.reread(&view).expect("read").failing);
    followers.store.apply("db", &at(30).into(), vec![loaded.fresh], Guard::Off).expect("applied");
    assert!(!followers.store.reread(&view).expect("read").failing);
    let mut followers = followers.reopened();
    let view = followers.views[0].0.clone();
    assert_eq!((view.has_state(PLAN), view.demotion(PLAN), view.demotion("another")), (false, Some(text.as_str()), None));
    assert_eq!(followers.desired(0), names("secret yy"));
    // A new history does not make it trustworthy, another plan may be.
    followers.store.begin("db", "fingerprint", "identity").expect("begun");
    assert_eq!(followers.store.reread(&view).expect("read").demotion(PLAN), Some(text.as_str()));
    followers.views[0].1.forgetful = false;
    followers.load(0, &[("1", "a")], 40);
    assert_eq!((followers.views[0].0.has_state(PLAN), followers.views[0].0.demotion(PLAN)), (true, None));
}

#[test]
fn a_load_that_fails_keeps_the_whole_answer() {
    let mut followers = Followers::new(&[Names { fragile: true, ..Names::default() }]);
    let loaded = load(&mut followers, &[("1", Some(FAILS))], extent(&names("a b fails")));
    assert!(matches!(loaded.doubt, Some(Doubt::Failed(_))), "{loaded:?}");
    assert!(loaded.fresh.loaded.is_none());
    assert_eq!(loaded.fresh.answer.filter(Result::is_ok).count(), 3);
}

#[test]
fn seamless_a_loaded_view_ahead_of_its_source_leaves_out_what_it_has() {
    let mut followers = Followers::new(&[Names::default(), Names::default()]);
    followers.load(0, &[("1", "a"), ("2", "b")], 30);
    assert_eq!(followers.views[0].0.position, Some(Lsn(30)));
    assert_eq!(followers.store.source("db").expect("read").expect("known").position, Some(at(10)), "the other view waits for commits");
    followers.sent();
    let mut followers = followers.reopened();
    followers.follow(transaction(20, "1=a 2=b"));
    assert_eq!((followers.sent().as_str(), followers.views[0].0.position), ("+a +b", Some(Lsn(30))));
    followers.follow(transaction(30, "1"));
    assert_eq!((followers.sent().as_str(), followers.views[0].0.position), ("-a -a", None));
    assert_eq!((followers.desired(0), followers.desired(1)), (names("b"), names("b")));
}

#[test]
fn a_state_that_lacks_commits_which_do_not_come_again_is_not_used() {
    let mut followers = Followers::new(&[Names::default(), Names::default()]);
    followers.follow(transaction(40, "1=a"));
    followers.load(0, &[], 30);
    assert!(!followers.views[0].0.has_state(PLAN) && followers.views[1].0.has_state(PLAN));
}

#[test]
fn progress_moves_the_position_forward_only_and_ends_a_views_own() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.load(0, &[("1", "a")], 30);
    followers.store.advance("db", &Reached { cut: at(50), position: at(50), settled: at(40) }).expect("advanced");
    followers.store.advance("db", &Reached::from(at(45))).expect("advanced");
    let followers = followers.reopened();
    let source = followers.store.source("db").expect("read").expect("known");
    assert_eq!((source.position, source.settled), (Some(at(50)), Some(at(45))));
    assert_eq!(followers.views[0].0.position, None);
}

#[test]
fn scoped_a_view_that_is_gone_takes_its_state_along() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.follow(transaction(20, "1=a 2="));
    let id = followers.views[0].0.id;
    followers.store.register("db", &[]).expect("registered");
    let mut tables = Vec::new();
    for table in ["state_1", "fact", "held", "skipped"] {
        let rows = followers.store.connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, u64>(0));
        tables.push(rows.ok());
    }
    assert_eq!(tables, [None, Some(0), Some(0), Some(0)]);
    // Its number may be given out again.
    assert_eq!(followers.store.register("db", &[&super::fact_type()]).expect("registered")[0].id, id);
    assert!(!followers.store.reread(&followers.views[0].0).expect("read").has_state(PLAN));
}

#[test]
fn an_audit_sees_one_state_and_what_does_not_belong_to_it() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.guard = Guard::Limit(crate::config::MaxRemovals { count: 2, percent: 50 });
    followers.follow(transaction(20, "1=a 2=b 3=c 4=d 5= 6=99"));
    followers.follow(transaction(30, "1 2 3 6"));
    let (view, spool) = (followers.views[0].0.clone(), followers.store.spool());
    assert_eq!((view.held, view.facts), (4, 5));
    let audit = followers.store.audit(&view).expect("opened");
    followers.follow(transaction(40, "9=z"));
    let doubt = audit.run(&Names::default(), &spool, &mut Silent).expect("read");
    assert!(doubt.is_none(), "{doubt:?}");
    // A fact that was lost and one that nobody asked for are both seen.
    followers.store.connection.execute("DELETE FROM fact WHERE row = ?1", [Row::from_texts(["z"]).as_bytes()]).expect("deleted");
    followers.store.connection.execute("DELETE FROM held WHERE row = ?1", [Row::from_texts(["a"]).as_bytes()]).expect("deleted");
    let doubt = followers.store.audit(&view).expect("opened").run(&Names::default(), &spool, &mut Silent).expect("read");
    assert!(matches!(doubt, Some(Doubt::Differs { missing: 1, extra: 1, .. })), "{doubt:?}");
}

#[test]
fn a_real_dataflow_is_loaded_followed_and_audited() {
    use crate::{
        query::{Identity, Plan, Table, ViewPlan},
        store::Live,
        view::Dataflow,
    };
    let table = Table { title: "public.members".to_owned(), columns: vec![1, 2], identity: Identity::Key(vec![1]), toast: true };
    let plan = ViewPlan { plan: Plan::Distinct(Box::new(Plan::Scan { table: TABLE })), tables: BTreeMap::from([(TABLE, table)]) };
    let mut dataflow = Dataflow::new(&plan).expect("laid out");
    let mut followers = Followers::new(&[]);
    let fact_type = "f(User:_, String:_)".parse().expect("a signature");
    let view = followers.store.register("db", &[&fact_type]).expect("registered").remove(0);
    let rows = || Extent::from_sorted(["1", "2"].map(|key| Ok(Row::from_texts([key, "a"]))).into_iter());
    let (tables, spool) = (BTreeMap::from([(TABLE, rows())]), followers.store.spool());
    let loaded = followers.store.load(view.clone(), &mut dataflow, PLAN, tables, rows(), 0, &mut Silent).expect("loaded");
    assert!(loaded.doubt.is_none(), "{loaded:?}");
    followers.store.apply("db", &at(10).into(), vec![loaded.fresh], Guard::Off).expect("applied");
    let view = followers.store.reread(&view).expect("read");
    followers.sent();
    let columns = crate::store::tests::scripted::columns();
    let mut live = [Live { record: &view, dataflow: &mut dataflow, columns: &columns }];
    let batch = transaction(20, "1 3=c 1=b");
    followers.store.follow("db", batch, &mut |_| None, &|| None, 0, &mut live, &mut Silent, Guard::Off).expect("followed").expect("whole");
    let facts = followers
        .store
        .desired(view.id)
        .expect("opened")
        .map(|row| row.expect("read").texts().map(|text| text.expect("a text").into_owned()).collect::<String>());
    assert_eq!(facts.collect::<Vec<_>>(), ["1b", "2a", "3c"]);
    let doubt = followers.store.audit(&view).expect("opened").run(&dataflow, &spool, &mut Silent).expect("read");
    assert!(doubt.is_none(), "{doubt:?}");
}
