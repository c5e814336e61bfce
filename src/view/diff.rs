//! What has to change for one sorted set of rows to become another.
//!
//! A merge: both streams are sorted and hold no row twice, so the smaller of the two heads is in its stream only, and equal
//! heads are in both. Only the two heads are in memory.
//!
//! An error in either stream ends the difference with that error. It must not pass for the stream's end, or every row
//! that was still to come would count as gone.

use std::{cmp::Ordering, io, iter::Peekable};

use crate::{data::Row, target::Op};

/// The changes that turn `stored` into `wanted`, in row order; nothing follows an error.
pub fn diff(
    wanted: impl Iterator<Item = io::Result<Row>>,
    stored: impl Iterator<Item = io::Result<Row>>,
) -> impl Iterator<Item = io::Result<(Op, Row)>> {
    let (mut wanted, mut stored) = (wanted.peekable(), stored.peekable());
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = next_change(&mut wanted, &mut stored).transpose();
        failed = matches!(next, Some(Err(_)));
        next
    })
}

fn next_change<W, S>(wanted: &mut Peekable<W>, stored: &mut Peekable<S>) -> io::Result<Option<(Op, Row)>>
where
    W: Iterator<Item = io::Result<Row>>,
    S: Iterator<Item = io::Result<Row>>,
{
    loop {
        let order = match (wanted.peek(), stored.peek()) {
            (None, None) => return Ok(None),
            (Some(Ok(wanted)), Some(Ok(stored))) => wanted.cmp(stored),
            // Whoever is taken first below is the one with the row, or with the error.
            (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
            (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
        };
        match order {
            Ordering::Less => return wanted.next().transpose().map(|row| row.map(|row| (Op::Insert, row))),
            Ordering::Greater => return stored.next().transpose().map(|row| row.map(|row| (Op::Delete, row))),
            Ordering::Equal => {
                wanted.next();
                stored.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn rows(texts: &BTreeSet<String>) -> Vec<io::Result<Row>> {
        let rows: BTreeSet<Row> = texts.iter().map(|text| Row::from_texts([text.as_str()])).collect();
        rows.into_iter().map(Ok).collect()
    }

    fn texts() -> impl Strategy<Value = BTreeSet<String>> {
        prop::collection::btree_set("[a-c]{0,3}", 0..30)
    }

    fn failure() -> io::Result<Row> {
        Err(io::Error::other("a cut run"))
    }

    proptest! {
        #[test]
        fn the_difference_turns_what_is_stored_into_what_is_wanted(wanted in texts(), stored in texts()) {
            let changes: Vec<(Op, Row)> =
                diff(rows(&wanted).into_iter(), rows(&stored).into_iter()).collect::<io::Result<_>>().expect("no row fails");
            let mut texts = stored.clone();
            for (op, row) in &changes {
                let text = row.cells().remove(0).expect("a text");
                let changed = match op {
                    Op::Insert => texts.insert(text),
                    Op::Delete => texts.remove(&text),
                };
                prop_assert!(changed, "a change that changes nothing");
            }
            prop_assert_eq!(texts, wanted);
            prop_assert!(changes.is_sorted_by(|a, b| a.1 < b.1));
        }

        #[test]
        fn a_stream_that_fails_is_not_a_stream_that_ends(
            wanted in texts(), stored in texts(), wanted_fails: bool, at: prop::sample::Index,
        ) {
            let (mut wanted, mut stored) = (rows(&wanted), rows(&stored));
            let failing = if wanted_fails { &mut wanted } else { &mut stored };
            let at = at.index(failing.len() + 1);
            failing.truncate(at);
            let lost = failing.last().and_then(|row| row.as_ref().ok()).cloned();
            failing.push(failure());
            let changes: Vec<io::Result<(Op, Row)>> = diff(wanted.into_iter(), stored.into_iter()).collect();
            let (last, before) = changes.split_last().expect("the error at least");
            prop_assert!(last.is_err() && before.iter().all(Result::is_ok));
            // Nothing past the failure is judged: what only the other stream has there could be in the part that is lost.
            let op = if wanted_fails { Op::Delete } else { Op::Insert };
            for (changed, row) in before.iter().flatten() {
                prop_assert!(*changed != op || Some(row) < lost.as_ref(), "a change past the failure");
            }
        }
    }
}
