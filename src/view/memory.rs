//! A view's state in memory: for tests, and for what [`Dataflow::verify`](super::Dataflow::verify) rebuilds.

use std::{collections::BTreeMap, io, ops::Bound};

use crate::view::{Each, Space, State};

type Entries = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A space, and an entry's key and value.
#[cfg(test)]
pub(super) type Entry = (Space, Vec<u8>, Vec<u8>);

/// Ordered maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryState {
    spaces: BTreeMap<Space, Entries>,
}

impl MemoryState {
    /// How many entries there are, in all spaces.
    pub fn len(&self) -> usize {
        self.spaces.values().map(BTreeMap::len).sum()
    }

    /// All of them, with their spaces.
    #[cfg(test)]
    pub(super) fn entries(&self) -> Vec<Entry> {
        let of = |(space, entries): (&Space, &Entries)| {
            entries.iter().map(|(key, value)| (*space, key.to_vec(), value.to_vec())).collect::<Vec<_>>()
        };
        self.spaces.iter().flat_map(of).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl State for MemoryState {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.spaces.get(&space).and_then(|entries| entries.get(key)).map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, prefix: &[u8], each: Each<'_>) -> io::Result<()> {
        let Some(entries) = self.spaces.get(&space) else { return Ok(()) };
        for (key, value) in entries.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded)) {
            if !key.starts_with(prefix) || each(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>, each: Each<'_>) -> io::Result<()> {
        let Some(entries) = self.spaces.get(&space) else { return Ok(()) };
        for (key, value) in entries.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)) {
            if to.is_some_and(|to| **key >= *to) || each(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn put(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        match value {
            Some(value) => {
                self.spaces.entry(space).or_default().insert(key.into(), value.into());
            }
            None => {
                if let Some(entries) = self.spaces.get_mut(&space) {
                    entries.remove(key);
                    if entries.is_empty() {
                        self.spaces.remove(&space);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, space: Space, key: &[u8], weight: i64) -> io::Result<i64> {
        let before = self.get(space, key)?.map_or(0, |value| self.weight(&value));
        let sum = before + weight;
        self.put(space, key, (sum != 0).then_some(&sum.to_be_bytes()[..]))?;
        Ok(sum)
    }

    fn weight(&self, value: &[u8]) -> i64 {
        i64::from_be_bytes(value.try_into().expect("the space holds numbers, eight bytes each"))
    }

    fn clear(&mut self, space: Space) -> io::Result<()> {
        self.spaces.remove(&space);
        Ok(())
    }
}
