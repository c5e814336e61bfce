//! Operators whose output's difference depends on their input's difference alone, and constant rows.
//!
//! The difference of the output is the operator applied to the difference of the input, weights carried along: a condition keeps a row
//! when it is TRUE, expressions are deterministic, so a row that goes produces exactly what it produced when it came.

use std::borrow::Cow;

use crate::{
    data::{Cells, Part, Row, unpack},
    query::{Datum, EvalError, Expr, Srf, scalar},
    view::{
        ViewError,
        delta::Delta,
        operator::{Context, Emit, Load, Operator, broken},
    },
};

/// A table; the dataflow itself nets the changes and feeds them in.
pub(super) struct Scan;

impl Operator for Scan {
    fn delta(&self, _: &[&Delta], _: &mut Context<'_>) -> Result<Delta, ViewError> {
        Ok(Delta::default())
    }

    fn load(&self) -> Load {
        Load::Linear
    }
}

/// Constant rows.
pub(super) struct Values {
    /// They, consolidated.
    pub(super) rows: Delta,
}

impl Operator for Values {
    fn delta(&self, _: &[&Delta], _: &mut Context<'_>) -> Result<Delta, ViewError> {
        Ok(Delta::default())
    }

    fn scan(&self, _: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        if self.rows.is_empty() { Ok(()) } else { emit(self.rows.clone()) }
    }
}

/// Rows for which a condition is TRUE.
pub(super) struct Filter {
    /// It.
    pub(super) condition: Expr,
}

impl Operator for Filter {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut rows = Vec::new();
        for (row, weight) in inputs[0].iter() {
            if self.condition.holds(&Cells::of(row.as_bytes()), context.to)? {
                rows.push((row.clone(), weight));
            }
        }
        Ok(Delta::from_consolidated(rows))
    }

    fn load(&self) -> Load {
        Load::Linear
    }

    fn is_filter(&self) -> bool {
        true
    }
}

/// One output row for each input row.
pub(super) struct Map {
    columns: Vec<Expr>,
    /// Where they come from, if every one of them is a column as it is.
    plain: Option<Vec<usize>>,
}

impl Map {
    pub(super) fn new(columns: Vec<Expr>) -> Self {
        let plain = columns.iter().map(|column| if let Expr::Column { index, .. } = column { Some(*index) } else { None }).collect();
        Self { columns, plain }
    }

    fn row(&self, row: &Row, now: i64) -> Result<Row, EvalError> {
        let cells = Cells::of(row.as_bytes());
        if let Some(plain) = &self.plain {
            return Ok(cells.row(plain));
        }
        let mut parts = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            parts.push(match column {
                Expr::Column { index, .. } => Part::Encoded(cells.encoded(*index)),
                other => Part::Value(text(other.eval(&cells, now)?)),
            });
        }
        Ok(Row::from_parts(parts))
    }
}

impl Operator for Map {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut rows = Vec::with_capacity(inputs[0].len());
        for (row, weight) in inputs[0].iter() {
            rows.push((self.row(row, context.to)?, weight));
        }
        Ok(Delta::consolidate(rows))
    }

    fn load(&self) -> Load {
        Load::Linear
    }
}

/// A value's text; `None` is NULL.
fn text(value: Datum<'_>) -> Option<Cow<'_, str>> {
    match value {
        Datum::Text(text) => Some(text),
        Datum::Null => None,
        Datum::Bool(_) | Datum::Int(_) => value.text().map(|text| Cow::Owned(text.into_owned())),
    }
}

/// All rows of all inputs.
pub(super) struct UnionAll;

impl Operator for UnionAll {
    fn delta(&self, inputs: &[&Delta], _: &mut Context<'_>) -> Result<Delta, ViewError> {
        Ok(inputs.iter().flat_map(|input| input.iter()).map(|(row, weight)| (row.clone(), weight)).collect())
    }

    fn load(&self) -> Load {
        Load::Linear
    }
}

/// The rows that a column holds.
pub(super) struct Unpack {
    /// Which column.
    pub(super) column: usize,
    /// Columns of each of them.
    pub(super) width: usize,
}

impl Operator for Unpack {
    fn delta(&self, inputs: &[&Delta], _: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut rows = Vec::new();
        for (row, weight) in inputs[0].iter() {
            let Some(packed) = Cells::of(row.as_bytes()).text(self.column) else { continue };
            let Some(unpacked) = unpack(&packed, self.width) else { return broken("what a document made cannot be read".to_owned()) };
            rows.extend(unpacked.into_iter().map(|row| (row, weight)));
        }
        Ok(Delta::consolidate(rows))
    }

    fn load(&self) -> Load {
        Load::Linear
    }
}

/// A row for each element that a function returns.
pub(super) struct Unnest {
    /// Which function.
    pub(super) function: Srf,
    /// Its argument.
    pub(super) argument: Expr,
}

impl Operator for Unnest {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut rows = Vec::new();
        for (row, weight) in inputs[0].iter() {
            let cells = Cells::of(row.as_bytes());
            let Some(argument) = text(self.argument.eval(&cells, context.to)?) else { continue };
            for element in scalar::elements(self.function, &argument)? {
                let parts = [Part::Encoded(row.as_bytes()), Part::Value(element.map(Into::into))];
                rows.push((Row::from_parts(parts), weight));
            }
        }
        Ok(Delta::consolidate(rows))
    }

    fn load(&self) -> Load {
        Load::Linear
    }
}
