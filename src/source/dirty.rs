//! Which views have changed since their last result, and how far the position may go meanwhile.
//!
//! A view's result is *of a point*: it contains the commits that start before the point and no others. A view is dirty from
//! its first commit that is not in its result, and the position that is reported may not pass that commit, so that after a
//! restart the stream repeats it.

use std::collections::BTreeMap;

use crate::data::Lsn;

/// The commits of a view that its result lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// A lower bound of the first.
    first: Lsn,
    /// The last.
    last: Lsn,
}

/// The dirty views.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    views: BTreeMap<usize, Span>,
    /// Where the views began to be dirty that are being read right now.
    reading: Option<Lsn>,
}

impl Dirty {
    /// A commit at `lsn` touched `view`.
    pub(crate) fn touch(&mut self, view: usize, lsn: Lsn) {
        let span = self.views.entry(view).or_insert(Span { first: lsn, last: lsn });
        span.last = span.last.max(lsn);
    }

    /// Whether there is anything to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Takes the views to read in a snapshot of `point`, when every commit before it has been seen.
    ///
    /// A view that has later commits too stays dirty: its next result must contain them, and `point` is a lower bound of their first.
    pub(crate) fn take(&mut self, point: Lsn) -> Vec<usize> {
        let taken: Vec<usize> = self.views.iter().filter(|(_, span)| span.first < point).map(|(view, _)| *view).collect();
        self.reading = taken.iter().map(|view| self.views[view].first).min();
        self.views.retain(|_, span| {
            let kept = span.last >= point;
            span.first = span.first.max(point);
            kept
        });
        taken
    }

    /// One of the views that were taken could not be read at that point: it stays as dirty as it was.
    pub(crate) fn missed(&mut self, view: usize) {
        if let Some(first) = self.reading {
            self.touch(view, first);
        }
    }

    /// The views that were taken have been read.
    pub(crate) fn read(&mut self) {
        self.reading = None;
    }

    /// The farthest position that may be reported: no dirty view has a commit before it.
    pub(crate) fn bound(&self) -> Option<Lsn> {
        self.views.values().map(|span| span.first).chain(self.reading).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_position_waits_for_the_first_dirty_commit_until_it_is_read() {
        let mut dirty = Dirty::default();
        dirty.touch(0, Lsn(10));
        dirty.touch(0, Lsn(20));
        dirty.touch(1, Lsn(30));
        assert_eq!(dirty.bound(), Some(Lsn(10)));
        assert_eq!(dirty.take(Lsn(25)), [0]);
        assert_eq!(dirty.bound(), Some(Lsn(10)));
        dirty.read();
        assert_eq!(dirty.bound(), Some(Lsn(30)));
        assert_eq!(dirty.take(Lsn(31)), [1]);
        dirty.read();
        assert!(dirty.is_empty() && dirty.bound().is_none());
    }

    proptest! {
        /// Against the definition: a result of a point lacks exactly the view's commits at or after it.
        #[test]
        fn no_commit_is_forgotten(steps in prop::collection::vec((0_usize..3, any::<bool>(), 0_u64..4), 0..60)) {
            let mut dirty = Dirty::default();
            let mut commits: Vec<(usize, u64)> = Vec::new();
            let mut points = [0_u64; 3];
            let mut now = 1;
            for (view, read, back) in steps {
                now += 1;
                if !read {
                    dirty.touch(view, Lsn(now));
                    commits.push((view, now));
                    continue;
                }
                // The snapshot is of a point that the stream has passed, but not older than the last one.
                let point = now.saturating_sub(back).max(points.iter().copied().max().unwrap_or(0));
                for view in dirty.take(Lsn(point)) {
                    points[view] = point;
                }
                dirty.read();
                for (view, commit) in &commits {
                    let lacks = *commit >= points[*view];
                    prop_assert!(!lacks || dirty.bound().is_some_and(|bound| bound.0 <= *commit));
                    prop_assert!(!lacks || dirty.views.contains_key(view));
                }
            }
        }
    }
}
