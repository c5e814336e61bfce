//! What a node's output gains and loses: signed rows, consolidated.

use crate::data::Row;

/// Signed rows: each row once, no weight is 0, in row order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Delta(Vec<(Row, i64)>);

impl Delta {
    /// No difference.
    pub(super) const EMPTY: &'static Self = &Self(Vec::new());

    /// Sums up the weights of equal rows, drops what cancels and sorts.
    pub(super) fn consolidate(mut rows: Vec<(Row, i64)>) -> Self {
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        rows.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        rows.retain(|(_, weight)| *weight != 0);
        Self(rows)
    }

    /// Takes rows that are consolidated already.
    pub(super) fn from_consolidated(rows: Vec<(Row, i64)>) -> Self {
        debug_assert!(rows.is_sorted_by(|a, b| a.0 < b.0), "each row once, in order");
        debug_assert!(rows.iter().all(|(_, weight)| *weight != 0), "no weight is 0");
        Self(rows)
    }

    /// The rows with their weights, in row order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Row, i64)> {
        self.0.iter().map(|(row, weight)| (row, *weight))
    }

    /// The rows with their weights, owned.
    pub(super) fn into_rows(self) -> Vec<(Row, i64)> {
        self.0
    }

    /// How many rows differ.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing differs.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Row, i64)> for Delta {
    fn from_iter<I: IntoIterator<Item = (Row, i64)>>(rows: I) -> Self {
        Self::consolidate(rows.into_iter().collect())
    }
}
