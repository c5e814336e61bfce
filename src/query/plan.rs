//! The relational operators. Columns are places in a row, from 0.
//!
//! Rows are multisets: an operator's output says how often each row occurs. Every operator is deterministic.

use std::collections::BTreeMap;

use crate::{data::Row, query::expr::Expr};

/// What tells a table's rows apart in the change log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// These attributes (numbers), the replica identity: an UPDATE that leaves them and a DELETE bring no other old values.
    Key(Vec<i16>),
    /// These attributes, and a change tells what the row is now, whatever was there before: the documents of MongoDB.
    Document(Vec<i16>),
    /// `REPLICA IDENTITY FULL`: old rows come whole, and two rows may be equal.
    Full,
}

impl Identity {
    /// The attributes that tell rows apart, if there are any.
    pub fn key(&self) -> Option<&[i16]> {
        match self {
            Self::Key(key) | Self::Document(key) => Some(key),
            Self::Full => None,
        }
    }
}

/// A table as one view reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `schema.name`, for people.
    pub title: String,
    /// The attributes the view needs, identity included, in ascending order: the cells of its rows.
    pub columns: Vec<i16>,
    /// What tells its rows apart.
    pub identity: Identity,
    /// Whether a kept column can be stored out of line: its value is then absent from an UPDATE that leaves it unchanged.
    pub toast: bool,
}

/// Whether equal texts mean equal values, and what to do if not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyClass {
    /// The text is canonical (`btequalimage`, deterministic collations).
    Exact,
    /// It has a canonical form: numeric (trailing zeros), bpchar (trailing blanks), float (-0).
    Canonical,
    /// Neither: citext, nondeterministic collations, jsonb, interval, arrays, ranges, records.
    None,
}

/// Two columns that must be equal and not NULL: (input, column) on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EqualPair {
    /// One side: which input of the join, which of its columns.
    pub left: (usize, usize),
    /// The other.
    pub right: (usize, usize),
}

/// Which rows of the left side a semi join keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SemiKind {
    /// Those with a match: `EXISTS`, `IN` as a condition.
    Semi,
    /// Those without: `NOT EXISTS`. A row with a NULL in the key has none.
    Anti,
    /// All, with a boolean column appended that says whether there is a match: `EXISTS` inside an expression.
    Mark,
}

/// Which side of an outer join is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OuterKind {
    /// Left rows without a match stay, with NULLs on the right. RIGHT is this with the sides exchanged.
    Left,
    /// Both.
    Full,
}

/// EXCEPT and INTERSECT. NULLs equal each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// Rows of the left side that are not on the right, once.
    Except,
    /// As often as they are more frequent on the left.
    ExceptAll,
    /// Rows on both sides, once.
    Intersect,
    /// As often as on the side with fewer.
    IntersectAll,
}

/// What an aggregate computes. All but `CountAll` skip NULLs; all but the counts are NULL for a group without values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AggregateKind {
    /// `count(*)`.
    CountAll,
    /// `count(x)`.
    Count,
    /// `sum` of int2, int4 or int8, exact.
    Sum,
    /// `min`, by [`Order`]'s comparison of the kind.
    Min,
    /// `max`.
    Max,
    /// `bool_and`, `every`.
    BoolAnd,
    /// `bool_or`.
    BoolOr,
    /// The only row of a scalar subquery; more than one is PostgreSQL's error "more than one row returned by a subquery".
    Single,
}

/// One aggregate of a [`Plan::Group`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Aggregate {
    /// What.
    pub kind: AggregateKind,
    /// Over which column; none for `count(*)`.
    pub column: Option<usize>,
    /// `DISTINCT`.
    pub distinct: bool,
    /// How `min` and `max` compare.
    pub order: Option<Order>,
}

/// How texts of a type compare. Types whose order is none of these cannot be ordered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// As integers.
    Int,
    /// FALSE before TRUE.
    Bool,
    /// Byte by byte: text under collation "C", uuid, "char", name.
    Bytes,
    /// Dates and timestamps in ISO form, `-infinity`, `infinity` and years BC included.
    Time,
    /// Numeric, NaN last.
    Numeric,
}

/// One term of an ORDER BY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    /// Which column; for `min` and `max` the aggregate's own.
    pub column: usize,
    /// How it compares.
    pub comparison: Comparison,
    /// DESC.
    pub descending: bool,
    /// NULLS FIRST, written out or implied.
    pub nulls_first: bool,
}

/// A set-returning function in FROM, applied to each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Srf {
    /// `unnest(anyarray)` of one array, from its text.
    Unnest,
    /// `jsonb_array_elements_text`.
    JsonbArrayElementsText,
    /// `json_array_elements_text`.
    JsonArrayElementsText,
}

/// An immutable expression that the source computes over values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteExpr {
    /// The expression over `$1`, `$2`, …, each already cast to its type; every name written with its schema.
    pub sql: String,
    /// Which columns of the input fill the parameters.
    pub args: Vec<usize>,
    /// The parameters' types as SQL spells them.
    pub types: Vec<String>,
}

/// A condition that depends on the time.
#[derive(Debug, Clone, PartialEq)]
pub struct Clock {
    /// The condition; [`Expr::Now`] occurs in it only as one side of a comparison of timestamptz whose other side is free of it.
    pub condition: Expr,
    /// The other sides: the condition can change only when `now() + shift` passes one of these values.
    pub terms: Vec<(Expr, i64)>,
}

/// A relational expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The rows of a table: all of [`Table::columns`].
    Scan {
        /// Its OID.
        table: u32,
    },
    /// Constant rows. `SELECT` without FROM is one row without columns.
    Values {
        /// The rows; one may occur more than once.
        rows: Vec<Row>,
        /// Their columns.
        width: usize,
    },
    /// Rows for which the condition is TRUE.
    Filter {
        /// From here.
        input: Box<Plan>,
        /// The condition.
        condition: Expr,
    },
    /// One output row for each input row.
    Map {
        /// From here.
        input: Box<Plan>,
        /// The output's columns.
        columns: Vec<Expr>,
    },
    /// The input's columns and those the source computes.
    Remote {
        /// From here.
        input: Box<Plan>,
        /// What is appended.
        columns: Vec<RemoteExpr>,
    },
    /// The input's columns and one more: each element that the function returns for the row.
    Unnest {
        /// From here.
        input: Box<Plan>,
        /// The function.
        function: Srf,
        /// Its argument.
        argument: Expr,
    },
    /// The rows that a column of each input row holds ([`pack`](crate::data::pack)), and nothing else of it.
    Unpack {
        /// From here.
        input: Box<Plan>,
        /// Which column.
        column: usize,
        /// Columns of each of them.
        width: usize,
    },
    /// Inner join: the inputs' columns one after the other.
    Join {
        /// At least two.
        inputs: Vec<Plan>,
        /// The equalities.
        on: Vec<EqualPair>,
        /// What else must be TRUE, over the output's columns.
        filter: Option<Expr>,
    },
    /// Left or full outer join: left columns, right columns.
    Outer {
        /// What is kept.
        kind: OuterKind,
        /// The left side.
        left: Box<Plan>,
        /// The right side.
        right: Box<Plan>,
        /// The equalities of ON: left column, right column.
        on: Vec<(usize, usize)>,
        /// What else ON asks, over left and right columns.
        filter: Option<Expr>,
    },
    /// Semi join, anti join, mark join: the left columns, and for [`SemiKind::Mark`] one more.
    Semi {
        /// Which.
        kind: SemiKind,
        /// The rows that are judged.
        left: Box<Plan>,
        /// Where a match is looked for.
        right: Box<Plan>,
        /// The equalities: left column, right column.
        on: Vec<(usize, usize)>,
        /// What else makes a match, over left and right columns.
        filter: Option<Expr>,
    },
    /// `operand NOT IN (SELECT …)`: the left columns of rows for which it is TRUE.
    NotIn {
        /// The rows that are judged.
        left: Box<Plan>,
        /// The subquery.
        right: Box<Plan>,
        /// Correlation: left column, right column, equal and not NULL.
        on: Vec<(usize, usize)>,
        /// The compared columns: left, right.
        operand: (usize, usize),
    },
    /// All rows of all inputs.
    UnionAll(Vec<Plan>),
    /// Every row once.
    Distinct(Box<Plan>),
    /// EXCEPT, INTERSECT.
    Set {
        /// Which.
        kind: SetKind,
        /// The left side.
        left: Box<Plan>,
        /// The right side.
        right: Box<Plan>,
    },
    /// GROUP BY: the keys' columns, then the aggregates'. Without keys there is exactly one row, also over nothing.
    Group {
        /// From here.
        input: Box<Plan>,
        /// The keys; NULL is a group.
        keys: Vec<usize>,
        /// The aggregates.
        aggregates: Vec<Aggregate>,
    },
    /// The first rows of each partition: DISTINCT ON, `row_number() <= limit`. The order is total within a partition.
    Top {
        /// From here; its columns are the output's.
        input: Box<Plan>,
        /// The partition; NULL is one.
        partition: Vec<usize>,
        /// The order.
        order: Vec<Order>,
        /// How many.
        limit: u64,
    },
    /// `WITH RECURSIVE … UNION`: the smallest set that holds `base` and what `step` makes of it.
    Recursive {
        /// The start.
        base: Box<Plan>,
        /// One step; holds [`Plan::Itself`] exactly once, as an input of an inner join or alone, below maps and filters only.
        step: Box<Plan>,
        /// Columns of the set.
        width: usize,
    },
    /// The set of the enclosing [`Plan::Recursive`], inside its step.
    Itself {
        /// Its columns.
        width: usize,
    },
    /// Rows whose condition is TRUE now.
    Clock {
        /// From here.
        input: Box<Plan>,
        /// The condition.
        clock: Clock,
    },
}

/// A view that can be kept up to date change by change.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewPlan {
    /// The query; its output row is the fact's, every cell as the fact has it (booleans as `true` and `false`).
    pub plan: Plan,
    /// The tables it reads, by OID.
    pub tables: BTreeMap<u32, Table>,
}

impl Plan {
    /// How many columns its rows have, where it reads `tables`.
    pub fn width(&self, tables: &BTreeMap<u32, Table>) -> usize {
        match self {
            Self::Scan { table } => tables.get(table).map_or(0, |table| table.columns.len()),
            Self::Values { width, .. } | Self::Recursive { width, .. } | Self::Itself { width } => *width,
            Self::Filter { input, .. } | Self::Top { input, .. } | Self::Clock { input, .. } | Self::Distinct(input) => input.width(tables),
            Self::Map { columns, .. } => columns.len(),
            Self::Remote { input, columns } => input.width(tables) + columns.len(),
            Self::Unnest { input, .. } => input.width(tables) + 1,
            Self::Unpack { width, .. } => *width,
            Self::Join { inputs, .. } => inputs.iter().map(|input| input.width(tables)).sum(),
            Self::Outer { left, right, .. } => left.width(tables) + right.width(tables),
            Self::Semi { kind, left, .. } => left.width(tables) + usize::from(*kind == SemiKind::Mark),
            Self::NotIn { left, .. } | Self::Set { left, .. } => left.width(tables),
            Self::UnionAll(inputs) => inputs.first().map_or(0, |input| input.width(tables)),
            Self::Group { keys, aggregates, .. } => keys.len() + aggregates.len(),
        }
    }
}
