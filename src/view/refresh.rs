//! One re-run of a view: the net change between what its query returns and what is stored.
//!
//! Both sides are sorted and distinct, so the change is one merge in constant memory: a row on both sides sends nothing,
//! however often the query returned it, and a fact that two rows support stays until the last of them goes.

use std::{collections::BTreeMap, io};

use crate::{
    data::{Extent, Row},
    fact::{FactType, SkipReason},
    target::Op,
    view::diff,
};

/// How many distinct rows made no fact, by reason.
pub type Skipped = BTreeMap<SkipReason, u64>;

/// The changes that turn `stored` into the facts of `wanted`; rows that make no fact are counted in `skipped`.
pub fn refresh<'a>(
    fact_type: &'a FactType,
    wanted: Extent,
    stored: Extent,
    skipped: &'a mut Skipped,
) -> impl Iterator<Item = io::Result<(Op, Row)>> + 'a {
    let wanted = wanted.filter(move |row| match row.as_ref().map(|row| fact_type.admits(row)) {
        Ok(Err(reason)) => {
            *skipped.entry(reason).or_default() += 1;
            false
        }
        Ok(Ok(())) | Err(_) => true,
    });
    diff(wanted, stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extent(rows: &BTreeSet<Row>) -> Extent {
        Extent::from_sorted(rows.clone().into_iter().map(Ok))
    }

    fn rows() -> impl Strategy<Value = BTreeSet<Row>> {
        let cell = prop::option::of("[ab*]{0,2}");
        prop::collection::btree_set((cell.clone(), cell).prop_map(|(a, b)| Row::from_cells([a.as_deref(), b.as_deref()])), 0..12)
    }

    proptest! {
        #[test]
        fn the_net_change_turns_what_is_stored_into_what_is_wanted(wanted in rows(), before in rows()) {
            let fact_type: FactType = "f(User:_, String:_)".parse().expect("a signature");
            let facts = |rows: &BTreeSet<Row>| rows.iter().filter(|row| fact_type.fact(row).is_ok()).cloned().collect::<BTreeSet<Row>>();
            let mut stored = facts(&before);
            let mut skipped = Skipped::new();
            for change in refresh(&fact_type, extent(&wanted), extent(&stored.clone()), &mut skipped) {
                // Net: every change is a real one.
                match change.expect("from memory") {
                    (Op::Insert, row) => prop_assert!(stored.insert(row)),
                    (Op::Delete, row) => prop_assert!(stored.remove(&row)),
                }
            }
            prop_assert_eq!(&stored, &facts(&wanted));
            prop_assert_eq!(skipped.values().sum::<u64>() as usize, wanted.len() - stored.len());
        }
    }
}
