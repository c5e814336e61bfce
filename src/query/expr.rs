//! Scalar expressions over a row's cells.

use std::{borrow::Cow, fmt};

/// How a cell's text is read before a function sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `t` or `f`.
    Bool,
    /// int2, int4, int8 and oid.
    Int,
    /// Every other type: as it is.
    Text,
}

/// A value while an expression is evaluated. The functions read `Int` and `Bool` from their texts too, so that a value whose kind the
/// caller did not know is still right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datum<'a> {
    /// SQL NULL, of whatever type.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer of any width; the function that made it has checked its range. For [`Expr::Now`]: microseconds since 2000.
    Int(i64),
    /// The canonical text of any other type.
    Text(Cow<'a, str>),
}

/// What PostgreSQL would have raised as an error, such as `division by zero`. It never holds the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an expression of the query fails: {0}")]
pub struct EvalError(pub Cow<'static, str>);

/// A function of PostgreSQL that is computed here, with exactly its meaning.
pub struct Native {
    /// Its OID in `pg_proc`, the same in every PostgreSQL since it exists; 0 for what is no function there, such as a canonical form.
    pub oid: u32,
    /// Its name, for plans and errors.
    pub name: &'static str,
    /// Strict functions are NULL when an argument is, and are not called then.
    pub strict: bool,
    /// What the result is.
    pub result: Kind,
    /// Computes it.
    pub eval: for<'a> fn(&[Datum<'a>]) -> Result<Datum<'a>, EvalError>,
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

impl PartialEq for Native {
    fn eq(&self, other: &Self) -> bool {
        (self.oid, self.name) == (other.oid, other.name)
    }
}

/// `now()` in a [`Clock`](super::Clock) condition: the transaction's time plus a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    /// Microseconds to add, from `now() - interval '1 day'`. Months have no length, so they are not here.
    pub shift: i64,
}

/// An expression over the cells of one row. Three-valued logic throughout.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A cell.
    Column {
        /// Its place in the row.
        index: usize,
        /// How to read it.
        kind: Kind,
    },
    /// A constant; NULL is `None`, else its canonical text.
    Const {
        /// The text.
        text: Option<Box<str>>,
        /// How to read it.
        kind: Kind,
    },
    /// A function or operator.
    Call {
        /// Which.
        function: &'static Native,
        /// Its arguments.
        args: Vec<Expr>,
    },
    /// `AND`: FALSE wins over NULL.
    And(Vec<Expr>),
    /// `OR`: TRUE wins over NULL.
    Or(Vec<Expr>),
    /// `NOT`.
    Not(Box<Expr>),
    /// `IS NULL`.
    IsNull(Box<Expr>),
    /// `IS TRUE` (`Some(true)`), `IS FALSE`, `IS UNKNOWN` (`None`).
    IsBool(Box<Expr>, Option<bool>),
    /// `a IS DISTINCT FROM b`, by the equality function.
    Distinct {
        /// `=`.
        equal: &'static Native,
        /// Both sides.
        args: Box<[Expr; 2]>,
    },
    /// `CASE WHEN … THEN … ELSE … END`; the form with an operand is bound to this one.
    Case {
        /// Conditions and results; the first TRUE one wins and later ones are not evaluated.
        whens: Vec<(Expr, Expr)>,
        /// Otherwise.
        otherwise: Box<Expr>,
    },
    /// The first argument that is not NULL; later ones are not evaluated.
    Coalesce(Vec<Expr>),
    /// `NULLIF(a, b)`, by the equality function.
    NullIf {
        /// `=`.
        equal: &'static Native,
        /// Both sides.
        args: Box<[Expr; 2]>,
    },
    /// `a op ANY (array)` and, with `all`, `a op ALL (array)`, over a constant array.
    AnyOf {
        /// The operator's function.
        function: &'static Native,
        /// `a`.
        operand: Box<Expr>,
        /// The array's elements.
        items: Vec<Expr>,
        /// ALL instead of ANY.
        all: bool,
    },
    /// `a op ANY (array)` and, with `all`, `a op ALL (array)`, over an array that the row holds.
    AnyElement {
        /// The operator's function.
        function: &'static Native,
        /// `a`.
        operand: Box<Expr>,
        /// The array, as its text.
        array: Box<Expr>,
        /// How its elements are read.
        element: Kind,
        /// ALL instead of ANY.
        all: bool,
    },
    /// `now()`; only inside the condition of a [`Plan::Clock`](super::Plan::Clock), and there only as one side of a comparison
    /// of timestamptz.
    Now(Now),
}
