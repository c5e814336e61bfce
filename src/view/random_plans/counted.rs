//! A state that counts how many entries are read.

use std::{cell::Cell, io};

use crate::view::{Each, MemoryState, Space, State};

/// In memory.
#[derive(Debug, Default)]
pub(super) struct Counted {
    entries: MemoryState,
    read: Cell<u64>,
}

impl Counted {
    /// Entries read since it was last asked.
    pub(super) fn read(&self) -> u64 {
        self.read.take()
    }

    fn count(&self) {
        self.read.set(self.read.get() + 1);
    }
}

impl State for Counted {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.count();
        self.entries.get(space, key)
    }

    fn scan(&self, space: Space, prefix: &[u8], each: Each<'_>) -> io::Result<()> {
        self.entries.scan(space, prefix, &mut |key, value| {
            self.count();
            each(key, value)
        })
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>, each: Each<'_>) -> io::Result<()> {
        self.entries.range(space, from, to, &mut |key, value| {
            self.count();
            each(key, value)
        })
    }

    fn put(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        self.entries.put(space, key, value)
    }

    fn add(&mut self, space: Space, key: &[u8], weight: i64) -> io::Result<i64> {
        self.count();
        self.entries.add(space, key, weight)
    }

    fn weight(&self, value: &[u8]) -> i64 {
        self.entries.weight(value)
    }

    fn clear(&mut self, space: Space) -> io::Result<()> {
        self.entries.clear(space)
    }
}
