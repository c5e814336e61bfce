//! The single writer of the local store, shared by the loops.
//!
//! SQLite has one writer anyway; here it is one [`Store`] behind a mutex that is only ever locked on the blocking pool, one
//! whole transaction at a time. A source's cut and the acknowledgement of a batch therefore follow each other in some order, and
//! each finds the other's work complete.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use crate::{
    config::{SourceConfig, SourceKind},
    crash::{self, Moment},
    data::{ChangeBatch, Extent},
    engine::{
        board::Board,
        error::EngineError,
        flows::{Absent, Flows, Task},
        parked::ParkedChanges,
    },
    store::{
        Changes, Differing, Followed, Found, Fresh, Loaded, OutboxEntry, OutboxKey, Reached, SourceRecord, Store, StoreError, Turn, ViewId,
        ViewRecord, Waiting, Watching,
    },
    target::Offset,
    view::Guard,
};

/// A handle of the writer.
#[derive(Clone)]
pub(super) struct Writer {
    store: Arc<Mutex<Store>>,
    id: Arc<str>,
    commit_no: watch::Sender<u64>,
    queues: watch::Sender<Queues>,
    /// The end of what the process before this one may have had on its way.
    left_over: Option<OutboxKey>,
    /// Turns when the fact store is to be compared anew.
    again: watch::Sender<()>,
    board: Arc<Board>,
    /// Held by the delivery loop from reading a batch to its answer.
    under_way: Arc<tokio::sync::Mutex<()>>,
}

/// What may go next.
#[derive(Default)]
pub(super) struct Parcel {
    /// The start of the outbox.
    pub(super) outbox: Vec<OutboxEntry>,
    /// Of the backlog, what the desired facts confirm.
    pub(super) backlog: Vec<Waiting>,
    /// What they did not confirm, and is gone.
    pub(super) dropped: u64,
}

/// Entries of the outbox that can be on their way at once: a batch of the largest plan.
const MOST_UNDER_WAY: usize = 1_000;

/// How many changes wait where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) outbox: u64,
    pub(super) backlog: u64,
    /// Whether the backlog has deletes.
    pub(super) deletes: bool,
}

impl Queues {
    pub(super) fn is_empty(self) -> bool {
        self.outbox == 0 && self.backlog == 0
    }

    pub(super) fn of(store: &Store) -> Self {
        Self { outbox: store.outbox_len(), backlog: store.backlog_len(), deletes: store.backlog_deletes() }
    }
}

impl Writer {
    /// `board` shows how much waits in the outbox.
    pub(super) fn new(store: Store, board: Arc<Board>) -> Result<Self, EngineError> {
        board.queues(Queues::of(&store));
        board.hold(store.holds()?);
        Ok(Self {
            board,
            id: store.id().into(),
            commit_no: watch::Sender::new(store.commit_no()),
            queues: watch::Sender::new(Queues::of(&store)),
            left_over: store.outbox(MOST_UNDER_WAY)?.last().map(|entry| entry.key),
            again: watch::Sender::default(),
            store: Arc::new(Mutex::new(store)),
            under_way: Arc::default(),
        })
    }

    /// The store's UUID.
    pub(super) fn store_id(&self) -> String {
        self.id.to_string()
    }

    /// The number of the last commit that is to be sent.
    pub(super) fn commit_no(&self) -> u64 {
        *self.commit_no.borrow()
    }

    /// Follows [`Writer::commit_no`].
    pub(super) fn commits(&self) -> watch::Receiver<u64> {
        self.commit_no.subscribe()
    }

    /// The delivery loop holds this while a batch is on its way.
    pub(super) async fn under_way(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.under_way.lock().await
    }

    /// Settles whose views are whose; gives the sources that the configuration no longer has, and their slots.
    pub(super) async fn reassign(&self, sources: &[SourceConfig]) -> Result<Vec<(String, Option<String>)>, EngineError> {
        let own = |source: &SourceConfig| (source.name.clone(), source.fact_types().into_iter().cloned().collect::<Vec<_>>());
        let claims: Vec<_> = sources.iter().map(own).collect();
        let body = move |store: &mut Store| {
            let claims: Vec<_> = claims.iter().map(|(name, fact_types)| (name.as_str(), fact_types.iter().collect())).collect();
            let gone = store.reassign(&claims)?;
            gone.into_iter().map(|name| store.slot(&name).map(|slot| (name, slot))).collect()
        };
        self.run(body).await
    }

    /// Writes down which slot each source is followed with; gives those that had another one.
    pub(super) async fn keep_slots(&self, sources: &[SourceConfig]) -> Result<Vec<(String, String)>, EngineError> {
        let slot = |source: &SourceConfig| match &source.kind {
            SourceKind::Postgres(config) => Some((source.name.clone(), config.slot.clone())),
            SourceKind::Mongo(_) | SourceKind::Csv(_) => None,
        };
        let slots: Vec<_> = sources.iter().filter_map(slot).collect();
        self.run(move |store| store.keep_slots(&slots)).await
    }

    pub(super) async fn register(&self, source: &SourceConfig) -> Result<Vec<ViewRecord>, EngineError> {
        let (name, fact_types) = (source.name.clone(), source.fact_types().into_iter().cloned().collect::<Vec<_>>());
        self.run(move |store| store.register(&name, &fact_types.iter().collect::<Vec<_>>())).await
    }

    pub(super) async fn source(&self, name: &str) -> Result<Option<SourceRecord>, EngineError> {
        let name = name.to_owned();
        self.run(move |store| store.source(&name)).await
    }

    pub(super) async fn begin(&self, name: &str, fingerprint: &str, identity: &str) -> Result<(), EngineError> {
        let (name, fingerprint, identity) = (name.to_owned(), fingerprint.to_owned(), identity.to_owned());
        self.run(move |store| store.begin(&name, &fingerprint, &identity)).await
    }

    pub(super) async fn set_identity(&self, name: &str, identity: &str) -> Result<(), EngineError> {
        let (name, identity) = (name.to_owned(), identity.to_owned());
        self.run(move |store| store.set_identity(&name, &identity)).await
    }

    pub(super) async fn forget_position(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.run(move |store| store.forget_position(&name)).await
    }

    pub(super) async fn advance(&self, name: &str, reached: Reached) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.run(move |store| store.advance(&name, &reached)).await
    }

    pub(super) async fn mark_failing(&self, view: ViewId) -> Result<(), EngineError> {
        self.run(move |store| store.mark_failing(view)).await
    }

    pub(super) async fn replace(&self, name: &str, reached: Reached, views: Vec<Fresh>, guard: Guard) -> Result<Changes, EngineError> {
        let name = name.to_owned();
        let board = self.board.clone();
        let body = move |store: &mut Store| {
            let changes = store.replace(&name, &reached, views, guard)?;
            board.parked(ParkedChanges::of(store)?);
            Ok(changes)
        };
        self.run(body).await
    }

    pub(super) async fn apply(&self, name: &str, reached: Reached, views: Vec<Fresh>, guard: Guard) -> Result<Changes, EngineError> {
        let name = name.to_owned();
        self.run(move |store| store.apply(&name, &reached, views, guard)).await
    }

    /// The outcome is `None` if the views were read anew since they were watched.
    pub(super) async fn settle_drift(
        &self,
        name: &str,
        watching: Watching,
        found: Vec<Found>,
        mend: Option<Guard>,
    ) -> Result<Option<(Vec<Differing>, Changes)>, EngineError> {
        let name = name.to_owned();
        let board = self.board.clone();
        let body = move |store: &mut Store| {
            let settled = store.settle_drift(&name, &watching, found, mend)?;
            board.parked(ParkedChanges::of(store)?);
            Ok(settled)
        };
        self.run(body).await
    }

    pub(super) async fn correct(&self, name: &str, views: Vec<(ViewRecord, Extent)>, guard: Guard) -> Result<Changes, EngineError> {
        let name = name.to_owned();
        let board = self.board.clone();
        let body = move |store: &mut Store| {
            let changes = store.correct(&name, views, guard)?;
            // What was parked is either tried again, or no longer differs.
            board.parked(ParkedChanges::of(store)?);
            Ok(changes)
        };
        self.run(body).await
    }

    /// Applies `first` and what `task.inbox` has, in one transaction; `None` if the rest of a source's transaction did not come.
    pub(super) async fn follow(&self, mut task: Task, first: ChangeBatch, now: i64) -> Result<(Task, Option<Followed>), EngineError> {
        let mut remote = task.flows.remote();
        let body = move |store: &mut Store| {
            let Task { source, records, flows, inbox, guard } = &mut task;
            let inbox = RefCell::new(inbox);
            let more = &mut |wait| {
                crash::moment(if wait { Moment::Split } else { Moment::Computing });
                inbox.borrow_mut().batch(wait)
            };
            let settled = &|| inbox.borrow().peek_settled().cloned();
            let followed = store.follow(source, first, more, settled, now, &mut flows.live(records), &mut remote, *guard)?;
            crash::moment(Moment::Committed);
            Ok((task, followed))
        };
        self.run(body).await
    }

    /// Lets time pass for the flows of `task`.
    pub(super) async fn advance_clock(&self, mut task: Task, now: i64) -> Result<(Task, Followed), EngineError> {
        let mut remote = task.flows.remote();
        let body = move |store: &mut Store| {
            let Task { source, records, flows, guard, .. } = &mut task;
            let followed = store.advance_clock(source, now, &mut flows.live(records), &mut remote, *guard)?;
            crash::moment(Moment::Passed);
            Ok((task, followed))
        };
        self.run(body).await
    }

    /// The same while the source is away: nothing happens if views need it, and the inner error says which.
    pub(super) async fn advance_clock_alone(
        &self,
        mut task: Task,
        now: i64,
    ) -> Result<(Flows, Result<Followed, Vec<ViewId>>), EngineError> {
        let body = move |store: &mut Store| {
            let Task { source, records, flows, guard, .. } = &mut task;
            let outcome = store.advance_clock_alone(source, now, &mut flows.live(records), &mut Absent, *guard)?;
            Ok((task.flows, outcome))
        };
        self.run(body).await
    }

    /// Builds the state of one of `flows` from whole tables.
    pub(super) async fn load(
        &self,
        mut flows: Flows,
        view: usize,
        record: ViewRecord,
        tables: BTreeMap<u32, Extent>,
        answer: Extent,
        now: i64,
    ) -> Result<(Flows, Loaded), EngineError> {
        let mut remote = flows.remote();
        let body = move |store: &mut Store| {
            let flow = flows.get_mut(view).expect("only incremental views are loaded");
            let loaded = store.load(record, &mut flow.dataflow, &flow.fingerprint, tables, answer, now, &mut remote)?;
            Ok((flows, loaded))
        };
        self.run(body).await
    }

    /// Lets go of a view's state.
    pub(super) async fn drop_state(&self, view: ViewId) -> Result<(), EngineError> {
        self.run(move |store| store.drop_state(view)).await
    }

    /// Remembers why a plan is not trusted with a view.
    pub(super) async fn demote(&self, view: ViewId, fingerprint: &str, why: &str) -> Result<(), EngineError> {
        let (fingerprint, why) = (fingerprint.to_owned(), why.to_owned());
        self.run(move |store| store.demote(view, &fingerprint, &why)).await?;
        crash::moment(Moment::Demoted);
        Ok(())
    }

    /// Remembers what the results of refresh views depend on.
    pub(super) async fn set_fingerprint(&self, name: &str, fingerprint: &str) -> Result<(), EngineError> {
        let (name, fingerprint) = (name.to_owned(), fingerprint.to_owned());
        self.run(move |store| store.set_fingerprint(&name, &fingerprint)).await
    }

    /// The views as they stand.
    pub(super) async fn views(&self, views: &[ViewRecord]) -> Result<Vec<ViewRecord>, EngineError> {
        let views = views.to_vec();
        self.run(move |store| views.iter().map(|view| store.view(view.id, &view.fact_type)).collect()).await
    }

    /// What goes next: the first `live` entries of the outbox and one more, if there are so many, and up to `backlog` of the backlog when
    /// these are all of the outbox.
    ///
    /// If `behind` says so of the queues as they are now, what the outbox has is folded first, in the same moment: it must not go before
    /// the backlog. If that is too much for now, there is nothing to be sent yet.
    pub(super) async fn parcel(
        &self,
        (live, backlog): (usize, usize),
        (behind, tried, most): (impl Fn(Queues) -> bool + Send + 'static, Option<OutboxKey>, usize),
    ) -> Result<Parcel, EngineError> {
        let body = move |store: &mut Store| {
            if behind(Queues::of(store)) {
                store.fold(tried, most)?;
                if behind(Queues::of(store)) {
                    return Ok(Parcel::default());
                }
            }
            let outbox = store.outbox(live + 1)?;
            let turn = if backlog > 0 && outbox.len() <= live { store.backlog(backlog)? } else { Turn::default() };
            Ok(Parcel { outbox, backlog: turn.entries, dropped: turn.dropped })
        };
        self.run(body).await
    }

    /// Folds the start of the outbox into the backlog.
    pub(super) async fn fold(&self, tried: Option<OutboxKey>, limit: usize) -> Result<u64, EngineError> {
        self.run(move |store| store.fold(tried, limit)).await
    }

    /// Nobody knows whether `entries` arrived.
    pub(super) async fn doubt(&self, entries: Vec<Waiting>) -> Result<(), EngineError> {
        self.run(move |store| store.doubt(&entries)).await
    }

    /// How long both queues are after the last transaction.
    pub(super) fn queues(&self) -> Queues {
        *self.queues.borrow()
    }

    /// The end of what the process before this one may have had on its way: nobody knows whether it arrived.
    pub(super) fn left_over(&self) -> Option<OutboxKey> {
        self.left_over
    }

    /// What was compared was perhaps not the fact store: a restart compares again, and so does whoever hears of
    /// [`Writer::compare_again`], which is for the time when it is back.
    pub(super) async fn doubt_comparisons(&self) -> Result<(), EngineError> {
        self.run(|store| store.doubt_comparisons()).await
    }

    pub(super) fn compare_again(&self) {
        self.again.send_replace(());
    }

    /// Turns with [`Writer::compare_again`].
    pub(super) fn comparisons(&self) -> watch::Receiver<()> {
        self.again.subscribe()
    }

    /// Up to which commit everything is delivered, the fact store's last token, and what it refused.
    pub(super) async fn delivered(&self) -> Result<(u64, Option<Offset>, ParkedChanges), EngineError> {
        self.run(|store| Ok((store.delivered()?, store.offset()?, ParkedChanges::of(store)?))).await
    }

    pub(super) async fn outbox_holds(&self, views: Vec<ViewId>) -> Result<bool, EngineError> {
        self.run(move |store| store.outbox_holds(&views)).await
    }

    /// Lets go of what the fact store has taken; returns up to which commit everything is delivered.
    pub(super) async fn acknowledge(&self, entries: Vec<Waiting>, offset: Offset) -> Result<u64, EngineError> {
        let board = self.board.clone();
        let body = move |store: &mut Store| {
            if store.acknowledge(&entries, &offset)?.unparked > 0 {
                board.parked(ParkedChanges::of(store)?);
            }
            store.delivered()
        };
        self.run(body).await
    }

    pub(super) async fn park(&self, entry: Waiting, reason: String) -> Result<(), EngineError> {
        self.run(move |store| store.park(&entry, &reason)).await
    }

    /// Runs `body` with the store on the blocking pool: what it does to the store in one call is one transaction.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (store, commit_no, queues, board) = (self.store.clone(), self.commit_no.clone(), self.queues.clone(), self.board.clone());
        let run = move || {
            // A panic inside a transaction rolled it back; the store itself is as committed.
            let mut store = store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let value = body(&mut store);
            // Under the lock, so that what is shown is of the last transaction, and before anybody hears of it.
            board.queues(Queues::of(&store));
            board.hold(store.holds()?);
            queues.send_replace(Queues::of(&store));
            commit_no.send_if_modified(|last| std::mem::replace(last, store.commit_no()) != store.commit_no());
            value
        };
        Ok(tokio::task::spawn_blocking(run).await.map_err(EngineError::panicked)??)
    }
}
