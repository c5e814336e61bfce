//! The incremental views of one source, as its loop holds them between two store transactions.
//!
//! A flow travels: its loop lends it to the blocking pool for one store transaction and gets it back with the outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::runtime::Handle;

use crate::{
    engine::inbox::Inbox,
    query::{RemoteExpr, ViewPlan},
    source::{Evaluate, Prepared, ViewMode, image_columns},
    store::{Live, ViewRecord},
    view::{Dataflow, Guard, Remote, ViewError},
};

/// Why a view is not followed change by change although it could be.
const FAILING_REASON: &str = "its query fails, so it runs again when one of its tables changes, until it succeeds";

/// One incremental view.
pub(super) struct Flow {
    plan: Arc<ViewPlan>,
    pub(super) dataflow: Dataflow,
    pub(super) fingerprint: String,
    /// Where in the images each table's columns are.
    columns: BTreeMap<u32, Vec<usize>>,
    /// Whether its stored state can be used.
    pub(super) loaded: bool,
}

/// The flows of a source; `None` for views of other modes.
#[derive(Default)]
pub(super) struct Flows {
    flows: Vec<Option<Flow>>,
    /// Views whose query fails: they are run again like refresh views until it succeeds, and then loaded.
    failing: BTreeSet<usize>,
    evaluator: Option<Arc<dyn Evaluate>>,
}

impl Flows {
    /// Lays out a flow for each view that can be followed change by change; for the others why not, if that is news.
    pub(super) fn new(prepared: &Prepared, records: &[ViewRecord], evaluator: Option<Arc<dyn Evaluate>>) -> (Self, Vec<Option<String>>) {
        let mut reasons = vec![None; records.len()];
        let mut failing = BTreeSet::new();
        let mut flows = Vec::with_capacity(records.len());
        for ((view, record), reason) in prepared.views.iter().zip(records).zip(&mut reasons) {
            let ViewMode::Incremental(plan) = &view.mode else {
                flows.push(None);
                continue;
            };
            let built = match record.demotion(&view.fingerprint) {
                Some(why) => Err(why.to_owned()),
                None if record.failing => {
                    failing.insert(flows.len());
                    Err(FAILING_REASON.to_owned())
                }
                None => Dataflow::new(plan),
            };
            match built {
                Ok(dataflow) => flows.push(Some(Flow {
                    plan: plan.clone(),
                    dataflow,
                    fingerprint: view.fingerprint.clone(),
                    columns: BTreeMap::new(),
                    loaded: record.known && record.has_state(&view.fingerprint),
                })),
                Err(why) => {
                    flows.push(None);
                    *reason = Some(why);
                }
            }
        }
        let mut flows = Self { flows, failing, evaluator };
        flows.find_columns();
        (flows, reasons)
    }

    /// Images hold the columns of all flows of the source; each flow finds its own.
    fn find_columns(&mut self) {
        let images = image_columns(self.flows.iter().flatten().map(|flow| &*flow.plan));
        let place = |image: &[i16], column: &i16| image.binary_search(column).expect("images hold the columns of every plan");
        for flow in self.flows.iter_mut().flatten() {
            let tables = flow.plan.tables.iter();
            flow.columns =
                tables.map(|(oid, table)| (*oid, table.columns.iter().map(|column| place(&images[oid], column)).collect())).collect();
        }
    }

    /// Whether the query of `view` failed when it was tried last, and nothing else stands against following it change by change.
    pub(super) fn is_failing(&self, view: usize) -> bool {
        self.failing.contains(&view)
    }

    /// Whether one of them depends on the time.
    pub(super) fn has_clock(&self) -> bool {
        self.flows.iter().flatten().any(|flow| flow.dataflow.has_clock())
    }

    pub(super) fn get(&self, view: usize) -> Option<&Flow> {
        self.flows.get(view)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, view: usize) -> Option<&mut Flow> {
        self.flows.get_mut(view)?.as_mut()
    }

    /// Takes the flow of `view` out: it is not kept up to date from here on.
    pub(super) fn drop_view(&mut self, view: usize) {
        if let Some(flow) = self.flows.get_mut(view) {
            *flow = None;
        }
    }

    /// Lets go of the session in which the source computes.
    pub(super) fn leave_source(&mut self) {
        self.evaluator = None;
    }

    /// The flows whose state can be used, with their views' numbers and records.
    pub(super) fn live<'a>(&'a mut self, records: &'a [ViewRecord]) -> Vec<Live<'a>> {
        let usable = self.flows.iter_mut().zip(records).filter_map(|(flow, record)| Some((flow.as_mut()?, record)));
        usable
            .filter(|(flow, _)| flow.loaded)
            .map(|(flow, record)| Live { record, dataflow: &mut flow.dataflow, columns: &flow.columns })
            .collect()
    }

    /// What computes expressions at the source, for use on the blocking pool of the runtime this is called in.
    pub(super) fn remote(&self) -> Bridge {
        Bridge { evaluator: self.evaluator.clone(), runtime: Handle::current() }
    }
}

/// From the synchronous dataflow to the asynchronous source.
pub(super) struct Bridge {
    evaluator: Option<Arc<dyn Evaluate>>,
    runtime: Handle,
}

impl Remote for Bridge {
    fn evaluate(&mut self, expr: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        let Some(evaluator) = &self.evaluator else {
            return Err(ViewError::Broken("it needs expressions that its source does not compute".to_owned()));
        };
        self.runtime.block_on(evaluator.evaluate(expr, rows.to_vec())).map_err(|error| ViewError::Remote(error.into()))
    }
}

/// A source that is away.
pub(super) struct Absent;

impl Remote for Absent {
    fn evaluate(&mut self, _: &RemoteExpr, _: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        Err(ViewError::Remote("the source is away".into()))
    }
}

/// What one store transaction of a source needs; it comes back with the outcome.
pub(super) struct Task {
    pub(super) source: String,
    pub(super) records: Vec<ViewRecord>,
    pub(super) flows: Flows,
    /// Where further batches come from.
    pub(super) inbox: Inbox,
    pub(super) guard: Guard,
}
