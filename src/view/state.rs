//! What a view keeps between two commits: ordered entries, a space of them for each purpose.
//!
//! The trait is all that [`crate::view`] knows of the disk. Whoever implements it sees to it that everything written between two
//! commits of its own becomes durable at once or not at all, together with the facts and the position.

use std::{io, ops::ControlFlow};

/// A space of entries within one view: the arrangement of one operator's input, its counts, a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(pub u16);

/// Called with each entry's key and value; [`ControlFlow::Break`] ends the scan.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<ControlFlow<()>>;

/// One view's state. Keys compare bytewise.
pub trait State {
    /// The value under `key`.
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Every entry whose key starts with `prefix`, in key order.
    fn scan(&self, space: Space, prefix: &[u8], each: Each<'_>) -> io::Result<()>;

    /// Every entry with `from <= key < to`, in key order; `to` of `None` is the end of the space.
    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>, each: Each<'_>) -> io::Result<()>;

    /// Sets the value under `key`; `None` removes it.
    fn put(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> io::Result<()>;

    /// Adds `weight` to the number under `key`, where no entry is 0, and returns the sum; an entry that becomes 0 goes.
    ///
    /// A space holds numbers or values, never both. The number's encoding is the implementation's own: entries of such a space are read
    /// with [`State::weight`].
    fn add(&mut self, space: Space, key: &[u8], weight: i64) -> io::Result<i64>;

    /// The number in a value that [`State::scan`] gave out for a space written with [`State::add`].
    fn weight(&self, value: &[u8]) -> i64;

    /// Removes every entry of a space.
    fn clear(&mut self, space: Space) -> io::Result<()>;
}
