//! One view's dataflow: from the row changes of commits to the facts that begin and cease to be true.
//!
//! Two phases. Each operator first computes what its output gains and loses, reading only the state before the chunk and the chunk's own
//! changes; then everything is folded into the state. A chunk is any run of row changes: since every run takes the tables from one valid
//! state to the next, a transaction of any size is applied chunk by chunk, and the facts that come and go again in between cancel in the end.

use std::{collections::BTreeMap, io, path::Path};

use crate::{
    data::{Change, Extent, Row},
    query::{EvalError, RemoteExpr, ViewPlan},
    target::Op,
    view::State,
};

/// Why a view cannot be kept up to date from here on. Its state must not be used any more; other views are not concerned.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The state cannot be read or written: of no view any more.
    #[error("could not use the view's state")]
    State(#[from] io::Error),
    /// The query itself fails on these rows, as it would at the source.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The source could not compute an expression.
    #[error("could not compute an expression at the source")]
    Remote(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Keeping it would cost more than running the query again.
    #[error("{0}")]
    Budget(String),
    /// What is stored contradicts the change log or itself.
    #[error("the view's state is not what its tables were: {0}")]
    Broken(String),
}

/// Computes immutable expressions over values at the source. The same in, the same out.
pub trait Remote {
    /// The results for each of `rows`, in order.
    fn evaluate(&mut self, expr: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError>;
}

/// What happens to the view's result. Within one call of the dataflow a row may flip more than once, each time for real: only a row that is not
/// in the result is inserted, only one that is in it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flip {
    /// This row becomes or ceases to be a fact.
    Row(Op, Row),
    /// No row is a fact any more, whichever there were: the view keeps no rows that could tell, and its table was emptied.
    Clear,
}

/// Called with each change of the view's result.
pub type Sink<'a> = &'a mut dyn FnMut(Flip) -> io::Result<()>;

/// A view's operators. Holds no rows: those are in its [`State`].
pub struct Dataflow {
    plan: ViewPlan,
}

impl Dataflow {
    /// Lays out operators and spaces; the same plan always gives the same layout. An error says why this plan is better refreshed.
    pub fn new(plan: &ViewPlan) -> Result<Self, String> {
        Ok(Self { plan: plan.clone() })
    }

    /// The tables it needs, by OID.
    pub fn tables(&self) -> &BTreeMap<u32, crate::query::Table> {
        &self.plan.tables
    }

    /// Applies one chunk of row changes, in order, of tables of [`Dataflow::tables`] (others are skipped). Images have the cells of
    /// `columns`: for each table where the image's cells are found, in the order of [`crate::query::Table::columns`].
    pub fn apply<'a>(
        &mut self,
        changes: &mut dyn Iterator<Item = (u32, Change<'a>)>,
        columns: &BTreeMap<u32, Vec<usize>>,
        now: i64,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        let _ = (changes, columns, now, state, remote, sink);
        unimplemented!()
    }

    /// Lets time pass: `now()` was `from` and becomes `to`, in microseconds since 2000-01-01 UTC.
    pub fn advance(&mut self, from: i64, to: i64, state: &mut dyn State, remote: &mut dyn Remote, sink: Sink<'_>) -> Result<(), ViewError> {
        let _ = (from, to, state, remote, sink);
        unimplemented!()
    }

    /// The first moment after `now` at which [`Dataflow::advance`] may change something; `None` if never without a commit.
    pub fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        let _ = (now, state);
        unimplemented!()
    }

    /// Whether the result depends on the time.
    pub fn has_clock(&self) -> bool {
        unimplemented!()
    }

    /// Builds the state, which must be empty, from whole tables (see [`crate::source::Reading::tables`]) and returns the result.
    pub fn load(
        &mut self,
        tables: BTreeMap<u32, Extent>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
    ) -> Result<Extent, ViewError> {
        let _ = (tables, now, spool, state, remote);
        unimplemented!()
    }

    /// Recomputes the result from the stored rows of the tables and checks every arrangement and count against them: what is stored is
    /// what a load would store. For tests and audits. `None` if a table's rows are not stored, so that there is nothing to compare with.
    pub fn verify(&self, now: i64, spool: &Path, state: &dyn State, remote: &mut dyn Remote) -> Result<Option<Extent>, ViewError> {
        let _ = (now, spool, state, remote);
        unimplemented!()
    }
}
