//! Files of every layout.

use rusqlite::Connection;

use crate::{
    config::MaxRemovals,
    data::{Lsn, Position, Row},
    fact::FactType,
    store::{LAYOUT, Store, StoreError, ViewRecord, state::ViewState, tests::Fixture},
    target::{Offset, Op},
    view::{Cause, Space, State},
};

/// Every table with its columns.
fn tables(connection: &Connection) -> Vec<String> {
    let sql = "SELECT m.name || ' ' || group_concat(c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' ' || c.pk)
               FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'state%' GROUP BY m.name";
    let mut select = connection.prepare(sql).expect("SQL");
    select.query_map([], |row| row.get(0)).expect("read").collect::<rusqlite::Result<_>>().expect("read")
}

#[test]
fn a_file_of_another_layout_is_refused_by_name() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("state.db");
    drop(fixture.store);
    rusqlite::Connection::open(&path).expect("opened").pragma_update(None, "user_version", 99).expect("changed");
    let error = Store::open(&path).err().expect("refused").to_string();
    assert!(error.contains("layout 99") && error.contains("state.db"), "{error}");
}

/// A store made from a fixture.
fn stored(sql: &str) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    Connection::open(&path).expect("opened").execute_batch(sql).expect("the fixture is SQL");
    let store = Store::open(&path).expect("a store");
    (folder, store)
}

fn facts(store: &Store, view: &ViewRecord) -> Vec<String> {
    let rows = store.desired(view.id).expect("opened");
    rows.map(|row| view.fact_type.stored_fact(&row.expect("read")).to_string()).collect()
}

/// What every fixture holds.
fn check(store: &Store, view: &ViewRecord) {
    assert_eq!((view.known, view.failing, view.facts), (true, false, 2));
    assert_eq!(facts(store, view), ["has_role(User:1, String:admin)", "has_role(User:2, String:member)"]);
    assert_eq!((store.commit_no(), store.outbox_len(), store.offset().expect("read")), (7, 2, Some(Offset("41".to_owned()))));
    let waiting = store.outbox(9).expect("read");
    let waiting: Vec<_> = waiting.iter().map(|entry| (entry.key.commit_no, entry.op, entry.view, &entry.row)).collect();
    let rows = [["3", "admin"], ["2", "member"]].map(Row::from_texts);
    assert_eq!(waiting, [(7, Op::Delete, view.id, &rows[0]), (7, Op::Insert, view.id, &rows[1])]);
    assert_eq!(store.parked(9).expect("read")[0].reason, "not used in policy");
    let fresh = tempfile::tempdir().expect("a folder");
    let fresh = Store::open(&fresh.path().join("state.db")).expect("a store");
    assert_eq!(tables(&store.connection), tables(&fresh.connection));
}

#[test]
fn a_store_of_layout_1_is_brought_up_to_date() {
    let (folder, mut store) = stored(include_str!("../../../tests/fixtures/state-v1.sql"));
    let fact_type: FactType = "has_role(User:_, String:_)".parse().expect("a signature");
    let view = store.register("app_db", &[&fact_type]).expect("registered").remove(0);
    check(&store, &view);
    assert_eq!((view.held, view.skipped.get("an argument is NULL")), (0, Some(&4)));
    assert_eq!((view.fingerprint, view.demoted, view.position, view.clock), (None, None, None, None));
    let record = store.source("app_db").expect("read").expect("known");
    let position: Position = "16/B374D848".parse().expect("a position");
    assert_eq!((record.position.as_ref(), record.settled, record.clock), (Some(&position), Some(position.clone()), None));
    drop(store);
    let store = Store::open(&folder.path().join("state.db")).expect("a store");
    let version: i32 = store.connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("read");
    assert_eq!(version, LAYOUT);
}

#[test]
fn atomic_a_layout_that_cannot_be_brought_up_to_date_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let connection = Connection::open(&path).expect("opened");
    connection.execute_batch(include_str!("../../../tests/fixtures/state-v1.sql")).expect("the fixture is SQL");
    // The last step of the way stumbles over it.
    connection.execute_batch("CREATE TABLE outbox_entries (other TEXT)").expect("created");
    let before = tables(&connection);
    assert!(matches!(Store::open(&path).err().expect("refused"), StoreError::Sqlite { .. }));
    assert_eq!(tables(&connection), before);
}

/// What the fixtures since layout 2 hold.
fn check_states(mut store: Store) {
    let fact_types: [FactType; 2] = ["has_role(User:_, String:_)", "is_admin(User:_)"].map(|text| text.parse().expect("a signature"));
    let views = store.register("app_db", &fact_types.iter().collect::<Vec<_>>()).expect("registered");
    let [view, demoted] = &views[..] else { panic!("{views:?}") };
    check(&store, view);
    assert_eq!((view.held, view.skipped.get("an argument is NULL")), (1, Some(&1)));
    assert!(view.has_state("plan 1") && !demoted.has_state("plan 2") && demoted.demotion("plan 2").is_some());
    assert_eq!((view.position, view.clock), (Some(Lsn(97_499_600_000)), Some(848_620_800_000_000)));
    let record = store.source("app_db").expect("read").expect("known");
    assert_eq!((record.settled, record.clock), (Some("16/B374D000".parse().expect("a position")), Some(848_620_800_000_000)));
    let state = ViewState::new(&store.connection, view.id);
    let key = Row::from_texts(["1", "admin"]);
    assert_eq!(state.get(Space(0), key.as_bytes()).expect("read"), Some(b"\x01x".to_vec()));
    let number = state.get(Space(1), Row::from_texts(["2", "member"]).as_bytes()).expect("read").expect("there");
    assert_eq!(state.weight(&number), -7);
    drop(state);
    let hold = store.holds().expect("read").remove(0);
    assert_eq!((hold.view, hold.removals), (view.id, 1));
    assert!([Cause::Adopted, Cause::Earlier, Cause::Change].contains(&hold.cause), "{hold:?}");
    let released = store.release(hold.id).expect("released").expect("there");
    assert_eq!((released.views[0].removed, facts(&store, view)), (1, vec!["has_role(User:1, String:admin)".to_owned()]));
}

#[test]
fn a_store_of_layout_2_still_opens() {
    let (_folder, store) = stored(include_str!("../../../tests/fixtures/state-v2.sql"));
    check_states(store);
}

#[test]
fn a_store_of_layout_3_still_opens() {
    let (_folder, store) = stored(include_str!("../../../tests/fixtures/state-v3.sql"));
    check_states(store);
}

#[test]
fn a_store_of_layout_4_still_opens() {
    let (_folder, mut store) = stored(include_str!("../../../tests/fixtures/state-v4.sql"));
    let fact_types: [FactType; 2] = ["has_role(User:_, String:_)", "is_admin(User:_)"].map(|text| text.parse().expect("a signature"));
    let views = store.register("app_db", &fact_types.iter().collect::<Vec<_>>()).expect("registered");
    assert_eq!((store.backlog_len(), store.backlog_deletes(), store.delivered().expect("read")), (2, true, 4));
    let turn = store.backlog(9).expect("read");
    let row = Row::from_texts(["9", "guest"]);
    assert_eq!(turn.entries.iter().map(|entry| (entry.view, entry.op, &entry.row)).collect::<Vec<_>>(), [(views[0].id, Op::Delete, &row)]);
    // Of what an earlier process put there nothing is certain, so it cancels nothing.
    let epoch: i64 = store
        .connection
        .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| Ok(row.get::<_, String>(0)?.parse().expect("a number")))
        .expect("read");
    assert_eq!(epoch, 4);
    check_states(store);
}

#[test]
fn a_store_of_layout_5_still_opens() {
    let (_folder, mut store) = stored(include_str!("../../../tests/fixtures/state-v5.sql"));
    let fact_type: FactType = "has_role(User:_, String:_)".parse().expect("a signature");
    let hold = store.holds().expect("read").remove(0);
    let limits = MaxRemovals { count: 1000, percent: 20 };
    assert_eq!((hold.cause, hold.facts, hold.since, hold.limits), (Cause::Change, 5_001, Some(1_795_000_000), Some(limits)));
    assert_eq!((hold.signature, hold.position.as_deref()), (fact_type.to_string(), Some("16/B374D000")));
    // The numbers of holds that have ended are not given out again.
    store.forget_hold(hold.id).expect("forgotten").expect("there");
    let insert = "INSERT INTO hold (view, cause, removals, facts) VALUES (3, 'change', 1, 1) RETURNING id";
    assert_eq!(store.connection.query_row(insert, [], |row| row.get::<_, i64>(0)).expect("written"), 9);
    let (_folder, store) = stored(include_str!("../../../tests/fixtures/state-v5.sql"));
    check_states(store);
}

#[test]
fn a_long_outbox_of_layout_2_becomes_blocks_of_the_same_entries_in_the_same_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let connection = Connection::open(&path).expect("opened");
    connection.execute_batch(include_str!("../../../tests/fixtures/state-v2.sql")).expect("the fixture is SQL");
    connection.execute_batch("DELETE FROM outbox; BEGIN").expect("emptied");
    let mut entries = Vec::new();
    for (commit_no, op) in [(5_u64, 0_i64), (5, 1), (6, 1), (7, 0)] {
        for seq in 0..1_500_i64 {
            // Now a long run of one view, now both by turns.
            let view = if seq < 1_200 { 3 } else { 3 + seq % 2 };
            let row = Row::from_texts([format!("{commit_no} {op} {seq}").as_str()]);
            let values = rusqlite::params![commit_no, op, seq, view, row.as_bytes()];
            connection.execute("INSERT INTO outbox VALUES (?1, ?2, ?3, ?4, ?5)", values).expect("written");
            entries.push((commit_no, if op == 0 { Op::Delete } else { Op::Insert }, view, row));
        }
    }
    connection.execute_batch("COMMIT").expect("committed");
    drop(connection);
    let mut store = Store::open(&path).expect("a store");
    assert_eq!(store.outbox_len(), 6_000);
    let mut delivered = Vec::new();
    // Batches that end inside of blocks.
    while let Some(last) = {
        let batch = store.outbox(700).expect("read");
        delivered.extend(batch.iter().map(|entry| (entry.key.commit_no, entry.op, entry.view.0, entry.row.clone())));
        batch.last().cloned()
    } {
        store.acknowledge(&[last.into()], &Offset("42".to_owned())).expect("acknowledged");
    }
    assert_eq!(delivered, entries);
    assert_eq!(store.outbox_len(), 0);
}
