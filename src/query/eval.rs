//! Evaluates an expression over a row's cells, as PostgreSQL's executor does it.
//!
//! Arguments are evaluated left to right and a strict function is not called with a NULL; AND, OR, CASE and COALESCE stop where
//! PostgreSQL's executor stops, so an error that it does not reach is not reached here either. (Its planner may put conditions in
//! another order, or fold a constant; which of two errors comes first, or whether `false AND 1/0 = 1` fails, is not defined by SQL.)

use std::{borrow::Cow, collections::BTreeSet};

use crate::{
    data::{Cells, push_cell},
    query::{
        Srf,
        expr::{Datum, EvalError, Expr, Kind, Native},
        scalar,
    },
};

impl Expr {
    /// The value over `cells`; `now` is the time in microseconds since 2000-01-01 00:00 UTC, which only [`Expr::Now`] reads.
    pub fn eval<'a>(&'a self, cells: &Cells<'a>, now: i64) -> Result<Datum<'a>, EvalError> {
        match self {
            Self::Column { index, kind } => Ok(cells.text(*index).map_or(Datum::Null, |text| Datum::read(text, *kind))),
            Self::Const { text, kind } => Ok(text.as_deref().map_or(Datum::Null, |text| Datum::read(Cow::Borrowed(text), *kind))),
            Self::Call { function, args } => call_with(function, args, cells, now),
            Self::And(args) => connect(args, false, cells, now),
            Self::Or(args) => connect(args, true, cells, now),
            Self::Not(arg) => Ok(arg.truth(cells, now)?.map_or(Datum::Null, |truth| Datum::Bool(!truth))),
            Self::IsNull(arg) => Ok(Datum::Bool(arg.eval(cells, now)?.is_null())),
            Self::IsBool(arg, wanted) => Ok(Datum::Bool(arg.truth(cells, now)? == *wanted)),
            Self::Distinct { equal, args } => distinct(equal, args, cells, now),
            Self::Case { whens, otherwise } => {
                for (condition, result) in whens {
                    if condition.holds(cells, now)? {
                        return result.eval(cells, now);
                    }
                }
                otherwise.eval(cells, now)
            }
            Self::Coalesce(args) => {
                for arg in args {
                    let value = arg.eval(cells, now)?;
                    if !value.is_null() {
                        return Ok(value);
                    }
                }
                Ok(Datum::Null)
            }
            Self::NullIf { equal, args } => null_if(equal, args, cells, now),
            Self::AnyOf { function, operand, items, all } => {
                let operand = operand.eval(cells, now)?;
                any_of(function, &operand, items.iter().map(|item| item.eval(cells, now)), *all)
            }
            Self::AnyElement { function, operand, array, element, all } => {
                let operand = operand.eval(cells, now)?;
                let Some(array) = array.eval(cells, now)?.text().map(|text| scalar::elements(Srf::Unnest, &text)).transpose()? else {
                    return Ok(Datum::Null);
                };
                let items = array.into_iter().map(|item| Ok(item.map_or(Datum::Null, |text| Datum::read(text.into(), *element))));
                any_of(function, &operand, items, *all)
            }
            Self::Now(shifted) => Ok(Datum::Int(now.saturating_add(shifted.shift))),
        }
    }

    /// Whether the value is TRUE, which is what a condition asks for: NULL is not.
    pub fn holds(&self, cells: &Cells<'_>, now: i64) -> Result<bool, EvalError> {
        Ok(self.truth(cells, now)? == Some(true))
    }

    /// The value as a truth value, NULL as `None`.
    fn truth(&self, cells: &Cells<'_>, now: i64) -> Result<Option<bool>, EvalError> {
        let value = self.eval(cells, now)?;
        Ok(if value.is_null() { None } else { Some(value.bool()) })
    }

    /// The expressions directly below this one, in order.
    fn children(&self) -> Vec<&Self> {
        match self {
            Self::Column { .. } | Self::Const { .. } | Self::Now(_) => Vec::new(),
            Self::Call { args, .. } | Self::And(args) | Self::Or(args) | Self::Coalesce(args) => args.iter().collect(),
            Self::Not(arg) | Self::IsNull(arg) | Self::IsBool(arg, _) => vec![arg],
            Self::Distinct { args, .. } | Self::NullIf { args, .. } => args.iter().collect(),
            Self::Case { whens, otherwise } => {
                whens.iter().flat_map(|(condition, result)| [condition, result]).chain([otherwise.as_ref()]).collect()
            }
            Self::AnyOf { operand, items, .. } => std::iter::once(operand.as_ref()).chain(items).collect(),
            Self::AnyElement { operand, array, .. } => vec![operand, array],
        }
    }

    /// The expressions directly below this one, in order, to be changed.
    fn children_mut(&mut self) -> Vec<&mut Self> {
        match self {
            Self::Column { .. } | Self::Const { .. } | Self::Now(_) => Vec::new(),
            Self::Call { args, .. } | Self::And(args) | Self::Or(args) | Self::Coalesce(args) => args.iter_mut().collect(),
            Self::Not(arg) | Self::IsNull(arg) | Self::IsBool(arg, _) => vec![arg],
            Self::Distinct { args, .. } | Self::NullIf { args, .. } => args.iter_mut().collect(),
            Self::Case { whens, otherwise } => {
                whens.iter_mut().flat_map(|(condition, result)| [condition, result]).chain([otherwise.as_mut()]).collect()
            }
            Self::AnyOf { operand, items, .. } => std::iter::once(operand.as_mut()).chain(items).collect(),
            Self::AnyElement { operand, array, .. } => vec![operand, array],
        }
    }

    /// Calls `each` with this expression and every one below it.
    pub fn walk<'e>(&'e self, each: &mut impl FnMut(&'e Self)) {
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            each(expr);
            open.extend(expr.children());
        }
    }

    /// Calls `each` with the place of every column it reads, which it may change.
    pub fn columns_mut(&mut self, each: &mut impl FnMut(&mut usize)) {
        let mut open = vec![self];
        while let Some(expr) = open.pop() {
            match expr {
                Self::Column { index, .. } => each(index),
                other => open.extend(other.children_mut()),
            }
        }
    }

    /// The places of the columns it reads.
    pub fn columns(&self) -> BTreeSet<usize> {
        let mut columns = BTreeSet::new();
        self.walk(&mut |expr| {
            if let Self::Column { index, .. } = expr {
                columns.insert(*index);
            }
        });
        columns
    }

    /// The same expression where `place` says at which place each column is.
    #[must_use]
    pub fn remapped(mut self, mut place: impl FnMut(usize) -> usize) -> Self {
        self.columns_mut(&mut |index| *index = place(*index));
        self
    }

    /// The same expression for a row with `count` more columns at its start.
    #[must_use]
    pub fn shifted(self, count: usize) -> Self {
        self.remapped(|index| index + count)
    }

    /// The same expression where column `i` is what `columns[i]` computes: one over the input of a map instead of its output.
    #[must_use]
    pub fn substituted(mut self, columns: &[Self]) -> Self {
        let mut open = vec![&mut self];
        while let Some(expr) = open.pop() {
            match expr {
                Self::Column { index, .. } => *expr = columns[*index].clone(),
                other => open.extend(other.children_mut()),
            }
        }
        self
    }

    /// Whether it depends on the time.
    pub fn reads_clock(&self) -> bool {
        let mut found = false;
        self.walk(&mut |expr| found |= matches!(expr, Self::Now(_)));
        found
    }
}

fn call_with<'a>(function: &Native, args: &'a [Expr], cells: &Cells<'a>, now: i64) -> Result<Datum<'a>, EvalError> {
    match args {
        [a] => call(function, &[a.eval(cells, now)?]),
        [a, b] => call(function, &[a.eval(cells, now)?, b.eval(cells, now)?]),
        more => {
            let values: Vec<Datum<'a>> = more.iter().map(|arg| arg.eval(cells, now)).collect::<Result<_, _>>()?;
            call(function, &values)
        }
    }
}

/// Calls `function`, or not, if it is strict and an argument is NULL.
fn call<'a>(function: &Native, args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    if function.strict && args.iter().any(Datum::is_null) { Ok(Datum::Null) } else { (function.eval)(args) }
}

/// OR, whose winner is TRUE, and AND, whose winner is FALSE.
fn connect<'a>(args: &'a [Expr], winner: bool, cells: &Cells<'a>, now: i64) -> Result<Datum<'a>, EvalError> {
    let mut result = Datum::Bool(!winner);
    for arg in args {
        match arg.truth(cells, now)? {
            Some(truth) if truth == winner => return Ok(Datum::Bool(winner)),
            Some(_) => {}
            None => result = Datum::Null,
        }
    }
    Ok(result)
}

fn distinct<'a>(equal: &Native, args: &'a [Expr; 2], cells: &Cells<'a>, now: i64) -> Result<Datum<'a>, EvalError> {
    let pair = [args[0].eval(cells, now)?, args[1].eval(cells, now)?];
    let [a, b] = &pair;
    if a.is_null() || b.is_null() {
        return Ok(Datum::Bool(a.is_null() != b.is_null()));
    }
    Ok(Datum::Bool(!call(equal, &pair)?.bool()))
}

fn null_if<'a>(equal: &Native, args: &'a [Expr; 2], cells: &Cells<'a>, now: i64) -> Result<Datum<'a>, EvalError> {
    let pair = [args[0].eval(cells, now)?, args[1].eval(cells, now)?];
    let both = !pair[0].is_null() && !pair[1].is_null();
    if both && call(equal, &pair)?.bool() {
        return Ok(Datum::Null);
    }
    let [a, _] = pair;
    Ok(a)
}

/// As the executor does it: an empty array decides before a NULL operand does, and so does the first element that settles it.
fn any_of<'a>(
    function: &Native,
    operand: &Datum<'a>,
    items: impl Iterator<Item = Result<Datum<'a>, EvalError>>,
    all: bool,
) -> Result<Datum<'a>, EvalError> {
    let mut result = Datum::Bool(all);
    for item in items {
        match call(function, &[operand.clone(), item?])? {
            Datum::Null => result = Datum::Null,
            value if value.bool() != all => return Ok(Datum::Bool(!all)),
            _ => {}
        }
    }
    Ok(result)
}

impl<'a> Datum<'a> {
    /// Reads a cell's text.
    pub fn read(text: Cow<'a, str>, kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(text == "t"),
            Kind::Int => text.parse().map_or(Self::Text(text), Self::Int),
            Kind::Text => Self::Text(text),
        }
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The canonical text, as PostgreSQL prints the value; `None` is NULL.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(Cow::Borrowed(if *value { "t" } else { "f" })),
            Self::Int(value) => Some(Cow::Owned(value.to_string())),
            Self::Text(text) => Some(Cow::Borrowed(text)),
        }
    }

    /// Appends the value as an encoded cell of a [`Row`](crate::data::Row).
    pub fn write(&self, bytes: &mut Vec<u8>) {
        push_cell(bytes, self.text().as_deref());
    }

    /// The truth value of one that is not NULL.
    pub(crate) fn bool(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Text(text) => text == "t",
            Self::Null | Self::Int(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::Row,
        query::scalar::{Collation, native},
    };

    const TRUTHS: [Option<&str>; 3] = [Some("t"), Some("f"), None];

    fn column(index: usize, kind: Kind) -> Expr {
        Expr::Column { index, kind }
    }

    fn value(expr: &Expr, cells: &[Option<&str>]) -> Result<Option<String>, EvalError> {
        let row = Row::from_cells(cells.iter().copied());
        Ok(expr.eval(&Cells::of(row.as_bytes()), 0)?.text().map(Cow::into_owned))
    }

    /// `1 / $0 = 1`, which fails for 0.
    fn fails_for_zero() -> Expr {
        let one = || Expr::Const { text: Some("1".into()), kind: Kind::Int };
        let int4 = [23, 23];
        let quotient = native(154, &int4, Collation::None).expect("int4div");
        let equal = native(65, &int4, Collation::None).expect("int4eq");
        let divided = Expr::Call { function: quotient, args: vec![one(), column(0, Kind::Int)] };
        Expr::Call { function: equal, args: vec![divided, one()] }
    }

    #[test]
    fn and_or_and_not_are_three_valued() {
        let (a, b) = (column(0, Kind::Bool), column(1, Kind::Bool));
        let and = Expr::And(vec![a.clone(), b.clone()]);
        let or = Expr::Or(vec![a.clone(), b]);
        let not = Expr::Not(Box::new(a));
        for left in TRUTHS {
            for right in TRUTHS {
                let any = |truth| left == truth || right == truth;
                let (least, greatest) = match (any(Some("f")), any(Some("t")), any(None)) {
                    (true, true, _) => (Some("f"), Some("t")),
                    (true, false, unknown) => (Some("f"), if unknown { None } else { Some("f") }),
                    (false, true, unknown) => (if unknown { None } else { Some("t") }, Some("t")),
                    (false, false, _) => (None, None),
                };
                assert_eq!(value(&and, &[left, right]).expect("no error").as_deref(), least, "{left:?} AND {right:?}");
                assert_eq!(value(&or, &[left, right]).expect("no error").as_deref(), greatest, "{left:?} OR {right:?}");
            }
            let negated = left.map(|truth| if truth == "t" { "f" } else { "t" });
            assert_eq!(value(&not, &[left]).expect("no error").as_deref(), negated);
        }
    }

    #[test]
    fn what_is_not_reached_does_not_fail() {
        let boolean = |truth: &str| Expr::Const { text: Some(truth.into()), kind: Kind::Bool };
        let zero = [Some("0")];
        assert!(value(&fails_for_zero(), &zero).is_err());
        let after = |first| vec![boolean(first), fails_for_zero()];
        assert_eq!(value(&Expr::And(after("f")), &zero).expect("AND stops").as_deref(), Some("f"));
        assert_eq!(value(&Expr::Or(after("t")), &zero).expect("OR stops").as_deref(), Some("t"));
        assert_eq!(value(&Expr::Coalesce(after("f")), &zero).expect("COALESCE stops").as_deref(), Some("f"));
        assert!(value(&Expr::And(after("t")), &zero).is_err() && value(&Expr::Or(after("f")), &zero).is_err());
        let case = Expr::Case { whens: vec![(boolean("f"), fails_for_zero())], otherwise: Box::new(boolean("t")) };
        assert_eq!(value(&case, &zero).expect("CASE skips").as_deref(), Some("t"));
    }

    #[test]
    fn comparisons_with_null_follow_the_standard() {
        let equal = native(65, &[23, 23], Collation::None).expect("int4eq");
        let args = Box::new([column(0, Kind::Int), column(1, Kind::Int)]);
        let distinct = Expr::Distinct { equal, args: args.clone() };
        let null_if = Expr::NullIf { equal, args };
        let cells = [(Some("1"), Some("1")), (Some("1"), Some("2")), (Some("1"), None), (None, Some("1")), (None, None)];
        let of = |expr: &Expr| cells.map(|(a, b)| value(expr, &[a, b]).expect("no error"));
        assert_eq!(of(&distinct).each_ref().map(Option::as_deref), [Some("f"), Some("t"), Some("t"), Some("t"), Some("f")]);
        assert_eq!(of(&null_if).each_ref().map(Option::as_deref), [None, Some("1"), Some("1"), None, None]);
        let among = |items: &[Option<&str>], all| Expr::AnyOf {
            function: equal,
            operand: Box::new(column(0, Kind::Int)),
            items: items.iter().map(|item| Expr::Const { text: item.map(Into::into), kind: Kind::Int }).collect(),
            all,
        };
        for (items, all, operand, truth) in [
            (&[Some("1"), None][..], false, Some("1"), Some("t")),
            (&[Some("1"), None], false, Some("2"), None),
            (&[Some("1"), Some("3")], false, Some("2"), Some("f")),
            (&[Some("1"), Some("1")], true, Some("1"), Some("t")),
            (&[Some("1"), None], true, Some("1"), None),
            (&[Some("1"), None], true, Some("2"), Some("f")),
            (&[Some("1")], false, None, None),
            (&[], false, None, Some("f")),
            (&[], true, None, Some("t")),
        ] {
            assert_eq!(value(&among(items, all), &[operand]).expect("no error").as_deref(), truth, "{operand:?} {items:?} {all}");
        }
    }

    #[test]
    fn columns_are_found_moved_and_replaced() {
        let or = Expr::Or(vec![fails_for_zero(), Expr::IsNull(Box::new(column(3, Kind::Text)))]);
        assert_eq!(or.columns(), BTreeSet::from([0, 3]));
        assert_eq!(or.clone().shifted(2).columns(), BTreeSet::from([2, 5]));
        assert_eq!(or.clone().remapped(|index| 7 - index).columns(), BTreeSet::from([4, 7]));
        let maps = [column(9, Kind::Int), column(8, Kind::Text), column(8, Kind::Text), Expr::Coalesce(vec![column(0, Kind::Text)])];
        assert_eq!(or.substituted(&maps).columns(), BTreeSet::from([0, 9]), "what is put in is not replaced again");
    }
}
