//! Merging.
use crate::{data::Row, target::Op};
use std::{cmp::Ordering, io, iter::Peekable};
/// diff
pub fn diff(
    wanted: impl Iterator<Item = io::Result<Row>>,
    stored: impl Iterator<Item = io::Result<Row>>,
) -> impl Iterator<Item = io::Result<(Op, Row)>> {
    let (mut w, mut s) = (wanted.peekable(), stored.peekable());
    fn take(i: &mut Peekable<impl Iterator<Item = io::Result<Row>>>, op: Op) -> Option<io::Result<(Op, Row)>> {
        i.next().map(|r| r.map(|r| (op, r)))
    }
    std::iter::from_fn(move || {
        loop {
            let order = match (w.peek(), s.peek()) {
                (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
                (_, Some(Err(_))) | (None, _) => Ordering::Greater,
                (Some(Ok(a)), Some(Ok(b))) => a.cmp(b),
            };
            match order {
                Ordering::Less => return take(&mut w, Op::Insert),
                Ordering::Greater => return take(&mut s, Op::Delete),
                Ordering::Equal => {
                    w.next();
                    s.next();
                }
            }
        }
    })
}
