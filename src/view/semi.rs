//! EXISTS, NOT EXISTS, and whether there is a match as a column.
//!
//! The difference of `A semi B` is that of the old A where its judgement by B changes, and that of A judged by the new B; only
//! keys that B's difference touches can change a judgement. A row with a NULL in its key matches nothing: EXISTS drops it, NOT
//! EXISTS keeps it, so the left arrangement keeps it too and a scan finds it.

use std::ops::ControlFlow;

use crate::{
    data::{Cells, Part, Row},
    query::{Expr, Plan, SemiKind},
    view::{
        State, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{Context, Emit, Operator, Parts, whole},
    },
};

/// Semi join, anti join, mark join.
pub(super) struct Semi {
    kind: SemiKind,
    left: Arrangement,
    right: Arrangement,
    /// For each column of the right key the left column that must equal it.
    operands: Vec<usize>,
    /// For each column of the left key its partner's place in the right key.
    partners: Vec<usize>,
    /// Equalities that say more about a column than the keys can: left column, right column.
    more: Vec<(usize, usize)>,
    filter: Option<Expr>,
}

/// Lowers one.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    kind: SemiKind,
    [left, right]: [&Plan; 2],
    on: &[(usize, usize)],
    filter: Option<&Expr>,
) -> Result<Built, String> {
    let inputs = vec![lowering.node(left)?, lowering.node(right)?];
    let (mut pairs, mut more) = (Vec::<(usize, usize)>::new(), Vec::new());
    for &(left, right) in on {
        let taken = pairs.iter().any(|pair| pair.0 == left || pair.1 == right);
        if taken { more.push((left, right)) } else { pairs.push((left, right)) }
    }
    pairs.sort_unstable_by_key(|pair| pair.1);
    let operands: Vec<usize> = pairs.iter().map(|pair| pair.0).collect();
    let right_key: Vec<usize> = pairs.iter().map(|pair| pair.1).collect();
    let mut left_key = operands.clone();
    left_key.sort_unstable();
    let place = |column: &usize| operands.iter().position(|operand| operand == column).expect("the left key is made of the operands");
    let partners = left_key.iter().map(place).collect();
    let left = lowering.arrange(inputs[0], &left_key, Nulls::Keep);
    let right = lowering.arrange(inputs[1], &right_key, Nulls::Skip);
    let filter = filter.cloned();
    Ok(Built { operator: Box::new(Semi { kind, left, right, operands, partners, more, filter }), inputs })
}

/// The right side, before the chunk or after it.
struct Side<'a> {
    state: &'a dyn State,
    change: Option<&'a Arranged>,
    now: i64,
}

impl Semi {
    /// Whether a left row, or rather its cells, has a match.
    fn matches(&self, left: &Cells<'_>, side: &Side<'_>) -> Result<bool, ViewError> {
        if self.operands.iter().any(|column| left.is_null(*column)) {
            return Ok(false);
        }
        let prefix = left.row(&self.operands);
        let mut found = false;
        let mut each = |entry: &[u8], weight: i64| {
            found = weight > 0 && self.agree(left, entry, side.now)?;
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        match side.change {
            None => self.right.entries(side.state, prefix.as_bytes(), &mut each)?,
            Some(change) => self.right.entries_after(side.state, change, prefix.as_bytes(), &mut each)?,
        }
        Ok(found)
    }

    /// Whether a right row under the left row's key is a match.
    fn agree(&self, left: &Cells<'_>, entry: &[u8], now: i64) -> Result<bool, ViewError> {
        if self.more.is_empty() && self.filter.is_none() {
            return Ok(true);
        }
        let entry = Cells::of(entry);
        let right = |column: usize| entry.encoded(self.right.places()[column]);
        if !self.more.iter().all(|pair| !left.is_null(pair.0) && left.encoded(pair.0) == right(pair.1)) {
            return Ok(false);
        }
        let Some(filter) = &self.filter else { return Ok(true) };
        let mut both = left.clone();
        (0..entry.len()).for_each(|column| both.push(right(column)));
        Ok(filter.holds(&both, now)?)
    }

    /// A left row as it is judged; `None` if it is not kept.
    fn judged(&self, row: &Row, matched: bool) -> Option<Row> {
        match self.kind {
            SemiKind::Semi => matched.then(|| row.clone()),
            SemiKind::Anti => (!matched).then(|| row.clone()),
            SemiKind::Mark => {
                let mark = if matched { "t" } else { "f" };
                Some(Row::from_parts([Part::Encoded(row.as_bytes()), Part::Value(Some(mark.into()))]))
            }
        }
    }

    /// The rows of the old left side whose judgement changes.
    fn flips(&self, change: &Arranged, [before, after]: [&Side<'_>; 2], parts: &mut Parts<'_>) -> Result<(), ViewError> {
        let keys = self.right.key().len();
        let simple = self.more.is_empty() && self.filter.is_none();
        let mut last: Option<Row> = None;
        for (entry, _) in change.entries() {
            let cells = Cells::of(entry.as_bytes());
            let key = Row::from_encoded((0..keys).map(|place| cells.encoded(place)));
            if last.as_ref() == Some(&key) {
                continue;
            }
            let prefix = cells.row(&self.partners);
            let mut judge = |row: Row, weight: i64| -> Result<(), ViewError> {
                let cells = Cells::of(row.as_bytes());
                let (was, is) = (self.matches(&cells, before)?, self.matches(&cells, after)?);
                if was != is {
                    self.judged(&row, was).map_or(Ok(()), |old| parts.push(old, -weight))?;
                    self.judged(&row, is).map_or(Ok(()), |new| parts.push(new, weight))?;
                }
                Ok(())
            };
            let touched = !simple || self.occurs(&key, before)? != self.occurs(&key, after)?;
            if touched {
                self.left.entries(before.state, prefix.as_bytes(), &mut |entry, weight| {
                    judge(self.left.row(entry), weight)?;
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            last = Some(key);
        }
        Ok(())
    }

    /// Whether the right side has a row under a key.
    fn occurs(&self, key: &Row, side: &Side<'_>) -> Result<bool, ViewError> {
        let mut found = false;
        let mut each = |_: &[u8], weight: i64| {
            found = weight > 0;
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        match side.change {
            None => self.right.entries(side.state, key.as_bytes(), &mut each)?,
            Some(change) => self.right.entries_after(side.state, change, key.as_bytes(), &mut each)?,
        }
        Ok(found)
    }
}

impl Operator for Semi {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        whole(|emit| self.stream(inputs, context, emit))
    }

    fn stream(&self, inputs: &[&Delta], context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let change = self.right.arrange(inputs[1]);
        let before = Side { state: context.before, change: None, now: context.to };
        let after = Side { state: context.before, change: Some(&change), now: context.to };
        let mut parts = Parts::new(emit);
        self.flips(&change, [&before, &after], &mut parts)?;
        for (row, weight) in inputs[0].iter() {
            let matched = self.matches(&Cells::of(row.as_bytes()), &after)?;
            if let Some(judged) = self.judged(row, matched) {
                parts.push(judged, weight)?;
            }
        }
        parts.finish()
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let before = context.before;
        self.left.scan(before, &mut |batch| self.stream(&[&batch, Delta::EMPTY], context, emit))
    }
}
