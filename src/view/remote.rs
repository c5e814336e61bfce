//! Expressions that the source computes.
//!
//! Each expression keeps, for the values it was computed over, the result and how many rows have them. So a row that goes is never sent
//! to the source, values that come again neither, and a restart asks nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    data::{Cells, Row},
    query::{Plan, RemoteExpr},
    view::{
        Space, State, ViewError,
        delta::Delta,
        lower::{Built, Lowering},
        operator::{Context, Load, Operator, broken},
    },
};

/// One expression and where its results are: under the values, a row of the count and the result.
struct Column {
    expr: RemoteExpr,
    space: Space,
}

/// The input's columns and those the source computes.
pub(super) struct Remote {
    columns: Vec<Column>,
    /// Columns of the input.
    width: usize,
}

/// Lowers one.
pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan, columns: &[RemoteExpr]) -> Result<Built, String> {
    let input = lowering.node(input)?;
    let columns = columns.iter().map(|expr| Column { expr: expr.clone(), space: lowering.space() }).collect();
    let width = lowering.width(input);
    Ok(Built { operator: Box::new(Remote { columns, width }), inputs: vec![input] })
}

impl Column {
    /// The encoded results over each of the values that occur in `delta`: what is stored, and the rest from the source in one call.
    fn results(&self, delta: &Delta, context: &mut Context<'_>) -> Result<BTreeMap<Row, Row>, ViewError> {
        let wanted: BTreeSet<Row> = delta.iter().map(|(row, _)| self.values(row)).collect();
        let mut results = BTreeMap::new();
        let mut missing = Vec::new();
        for values in wanted {
            match context.before.get(self.space, values.as_bytes())? {
                Some(stored) => {
                    results.insert(values, Stored::read(stored)?.result);
                }
                None => missing.push(values),
            }
        }
        if missing.is_empty() {
            return Ok(results);
        }
        let rows: Vec<_> = missing.iter().map(Row::cells).collect();
        let answers = context.remote.evaluate(&self.expr, &rows)?;
        if answers.len() != missing.len() {
            return broken("the source computed an expression over another number of rows than it was sent");
        }
        let answers = answers.into_iter().map(|answer| Row::from_cells([answer.as_deref()]));
        results.extend(missing.into_iter().zip(answers));
        Ok(results)
    }

    /// What fills the parameters for an input row, or for an output row, which starts with it.
    fn values(&self, row: &Row) -> Row {
        Cells::of(row.as_bytes()).row(&self.expr.args)
    }

    /// Counts the output rows that come and go; `place` is where in them the result is.
    fn fold(&self, place: usize, output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        let mut changes: BTreeMap<Row, (i64, Row)> = BTreeMap::new();
        for (row, weight) in output.iter() {
            let result = || Cells::of(row.as_bytes()).row(&[place]);
            changes.entry(self.values(row)).or_insert_with(|| (0, result())).0 += weight;
        }
        for (values, (weight, result)) in changes.into_iter().filter(|(_, (weight, _))| *weight != 0) {
            let before = state.get(self.space, values.as_bytes())?.map(Stored::read).transpose()?.map_or(0, |stored| stored.count);
            let count = before + weight;
            if count < 0 {
                return broken("values of an expression were removed more often than they were there");
            }
            let stored = Stored { count, result }.write();
            state.put(self.space, values.as_bytes(), (count > 0).then_some(stored.as_bytes()))?;
        }
        Ok(())
    }
}

/// What is stored for some values.
struct Stored {
    count: i64,
    /// One cell.
    result: Row,
}

impl Stored {
    fn read(bytes: Vec<u8>) -> Result<Self, ViewError> {
        let row = Row::from_bytes(bytes)?;
        let cells = Cells::of(row.as_bytes());
        let count = cells.text(0).and_then(|count| count.parse().ok());
        match count {
            Some(count) if cells.len() == 2 => Ok(Self { count, result: cells.row(&[1]) }),
            _ => broken("a stored result of an expression is malformed"),
        }
    }

    fn write(&self) -> Row {
        let count = Row::from_texts([self.count.to_string().as_str()]);
        Row::from_encoded([count.as_bytes(), self.result.as_bytes()])
    }
}

impl Operator for Remote {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let results = self.columns.iter().map(|column| column.results(inputs[0], context)).collect::<Result<Vec<_>, _>>()?;
        let whole = |row: &Row| {
            let results: Vec<&Row> = self.columns.iter().zip(&results).map(|(column, results)| &results[&column.values(row)]).collect();
            Row::from_encoded([row].into_iter().chain(results).map(Row::as_bytes))
        };
        Ok(Delta::consolidate(inputs[0].iter().map(|(row, weight)| (whole(row), weight)).collect()))
    }

    fn fold(&self, _: &[&Delta], output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        self.columns.iter().enumerate().try_for_each(|(index, column)| column.fold(self.width + index, output, state))
    }

    fn load(&self) -> Load {
        Load::Streamed
    }

    fn spaces(&self) -> Vec<Space> {
        self.columns.iter().map(|column| column.space).collect()
    }
}
