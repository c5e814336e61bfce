//! Files of every layout.

use rusqlite::Connection;

use crate::{
    data::{Extent, Lsn, Row},
    fact::FactType,
    store::{LAYOUT, Store, tests::Fixture},
    target::{Offset, Op},
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

#[test]
fn a_store_of_layout_1_still_opens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let fixture = rusqlite::Connection::open(&path).expect("opened");
    fixture.execute_batch(include_str!("../../../tests/fixtures/state-v1.sql")).expect("the fixture is SQL");
    drop(fixture);

    let mut store = Store::open(&path).expect("a store");
    let fact_type: FactType = "has_role(User:_, String:_)".parse().expect("a signature");
    let view = store.register("app_db", &[&fact_type]).expect("registered").remove(0);
    assert_eq!((view.known, view.failing, view.facts, view.held), (true, false, 2, 0));
    assert_eq!(view.skipped.get("an argument is NULL"), Some(&4));
    let rows = |extent: Extent| extent.map(|row| fact_type.stored_fact(&row.expect("read")).to_string()).collect::<Vec<_>>();
    let desired = rows(store.desired(view.id).expect("opened"));
    assert_eq!(desired, ["has_role(User:1, String:admin)", "has_role(User:2, String:member)"]);
    let record = store.source("app_db").expect("read").expect("known");
    assert_eq!(record.position, Some("16/B374D848".parse().expect("a position")));
    assert_eq!((store.commit_no(), store.outbox_len(), store.offset().expect("read")), (7, 2, Some(Offset("41".to_owned()))));
    let ops: Vec<Op> = store.outbox(9).expect("read").iter().map(|entry| entry.op).collect();
    assert_eq!(ops, [Op::Delete, Op::Insert]);
    assert_eq!(store.parked(9).expect("read")[0].reason, "not used in policy");
}
