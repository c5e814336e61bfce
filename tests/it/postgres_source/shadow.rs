//! Tables put together again from nothing but what the source reports.

use std::sync::Arc;

use factsync::{
    data::{Cells, Change, ChangeBatch, Image, Lsn},
    query::{Identity, Table, ViewPlan},
    source::{PreparedView, Reading, Role, ViewMode, image_columns},
};

use super::*;

/// How the source keeps each view up to date; all of them are incremental.
pub(super) async fn plans(config: &PostgresConfig) -> BTreeMap<usize, Arc<ViewPlan>> {
    let prepared = Follower::new("app_db", config, std::env::temp_dir()).prepare().await.expect("prepared");
    let plan = |(view, prepared): (usize, PreparedView)| match prepared.mode {
        ViewMode::Incremental(plan) => (view, plan),
        other => panic!("view {view} is {other:?}"),
    };
    prepared.views.into_iter().enumerate().map(plan).collect()
}

type Cell = Option<String>;

/// One view's copy of one table.
#[derive(Debug)]
struct Copy {
    title: String,
    table: Table,
    /// Where its cells are in the images.
    places: Vec<usize>,
    rows: Vec<Vec<Cell>>,
}

/// What one view knows of its tables.
#[derive(Debug)]
pub(super) struct Shadow {
    copies: BTreeMap<u32, Copy>,
    /// Commits before this are skipped.
    from: Lsn,
}

impl Shadow {
    fn new(plan: &ViewPlan, columns: &BTreeMap<u32, Vec<i16>>) -> Self {
        let copies = plan.tables.iter().map(|(oid, table)| {
            let place = |number| columns[oid].iter().position(|other| other == number).expect("an image has every column");
            let places = table.columns.iter().map(place).collect();
            (*oid, Copy { title: table.title.clone(), table: table.clone(), places, rows: Vec::new() })
        });
        Self { copies: copies.collect(), from: Lsn(0) }
    }

    /// Starts from what was loaded at `point`.
    fn load(&mut self, point: Lsn, tables: BTreeMap<u32, Extent>) {
        self.from = point;
        assert_eq!(tables.keys().collect::<Vec<_>>(), self.copies.keys().collect::<Vec<_>>(), "a load has every table");
        for (oid, extent) in tables {
            let copy = self.copies.get_mut(&oid).expect("a table of the view");
            let full = copy.table.identity == Identity::Full;
            let width = copy.table.columns.len();
            let told = rows(extent).into_iter().map(|mut row| {
                // What tells equal rows apart.
                if full {
                    row.pop().flatten().expect("every row is somewhere");
                }
                assert_eq!(row.len(), width);
                row
            });
            copy.rows = told.collect();
        }
    }

    fn apply(&mut self, table: u32, change: Change<'_>) {
        let Some(copy) = self.copies.get_mut(&table) else { return };
        match change {
            Change::Insert { new } => {
                let new = copy.row(new, None);
                copy.rows.push(new);
            }
            Change::Update { old, new } => {
                let at = copy.find(old.unwrap_or(new));
                copy.rows[at] = copy.row(new, Some(&copy.rows[at]));
            }
            Change::Delete { old } => {
                let at = copy.find(old);
                copy.rows.swap_remove(at);
            }
            Change::Truncate => copy.rows.clear(),
        }
    }

    /// The copy's rows, to be compared with the table's.
    pub(super) fn agrees(&self, cluster: &Cluster, database: &str) {
        for copy in self.copies.values() {
            let numbers: Vec<String> = copy.table.columns.iter().map(i16::to_string).collect();
            let oid = format!("'{}'::regclass", copy.title);
            let names = cluster.psql(
                database,
                &format!(
                    "SELECT string_agg(pg_catalog.format('CASE WHEN %1$I IS NOT NULL THEN format(''%%s'', %1$I) END', attname),
                                       ', ' ORDER BY attnum) FROM pg_attribute
                     WHERE attrelid = {oid} AND attnum IN ({})",
                    numbers.join(",")
                ),
            );
            let json = cluster.psql(
                database,
                &format!("SET TimeZone = 'UTC'; SELECT coalesce(json_agg(json_build_array({names})), '[]') FROM {}", copy.title),
            );
            let mut want: Vec<Vec<Cell>> = serde_json::from_str(&json).expect("JSON");
            let mut got = copy.rows.clone();
            want.sort();
            got.sort();
            let short = |row: &Vec<Cell>| {
                row.iter().map(|cell| cell.as_ref().map(|text| text.chars().take(40).collect())).collect::<Vec<Option<String>>>()
            };
            let differs = got.iter().zip(&want).find(|(got, want)| got != want).map(|(got, want)| (short(got), short(want)));
            assert!(got == want, "{}: {} rows, want {}; {differs:?}", copy.title, got.len(), want.len());
        }
    }

    /// How many rows of all its tables it has.
    pub(super) fn len(&self) -> usize {
        self.copies.values().map(|copy| copy.rows.len()).sum()
    }
}

impl Copy {
    /// The image's cells that are this copy's; `None` is absent.
    fn cells(&self, image: Image<'_>) -> Vec<Option<Cell>> {
        let all: Vec<&[u8]> = image.encoded().collect();
        let cell = |place: &usize| {
            let encoded = all[*place];
            (!Image::is_absent(encoded)).then(|| Cells::of(encoded).text(0).map(|text| text.into_owned()))
        };
        self.places.iter().map(cell).collect()
    }

    fn row(&self, image: Image<'_>, before: Option<&Vec<Cell>>) -> Vec<Cell> {
        let cells = self.cells(image).into_iter().enumerate();
        cells.map(|(index, cell)| cell.unwrap_or_else(|| before.expect("an insert is whole")[index].clone())).collect()
    }

    /// Where the row is that `image` identifies.
    fn find(&self, image: Image<'_>) -> usize {
        let wanted = self.cells(image);
        let keys: Vec<usize> = match &self.table.identity {
            Identity::Key(key) | Identity::Document(key) => {
                key.iter().map(|number| self.table.columns.iter().position(|other| other == number).expect("kept")).collect()
            }
            Identity::Full => (0..wanted.len()).collect(),
        };
        let same = |row: &Vec<Cell>| keys.iter().all(|&key| wanted[key].as_ref().expect("an identity is told") == &row[key]);
        self.rows.iter().position(same).unwrap_or_else(|| panic!("{}: no row {wanted:?}", self.title))
    }
}

/// A source that is followed with incremental views, and what can be made of it.
pub(super) struct Incremental {
    task: JoinHandle<Result<(), SourceError>>,
    pub(super) events: mpsc::Receiver<Event>,
    durable: watch::Sender<Option<Position>>,
    wanted: watch::Sender<Option<Position>>,
    stop: watch::Sender<bool>,
    pub(super) shadows: BTreeMap<usize, Shadow>,
    pub(super) received: Lsn,
    pub(super) settled: Lsn,
    pub(super) last_commit: Lsn,
    /// Batches, and those that ended inside of a transaction.
    pub(super) batches: usize,
    pub(super) pieces: usize,
    pub(super) cuts: Vec<(Position, Vec<usize>, bool)>,
    pub(super) nows: Vec<Option<i64>>,
    pub(super) clocks: Vec<(i64, std::time::Instant)>,
    pub(super) failed: Vec<String>,
    open: Vec<(u32, Vec<u8>)>,
    torn: bool,
}

impl Incremental {
    pub(super) fn start(
        config: &PostgresConfig,
        plans: &BTreeMap<usize, Arc<ViewPlan>>,
        from: Option<Position>,
        roles: Vec<Role>,
        shadows: BTreeMap<usize, Shadow>,
    ) -> Self {
        let mut follower = Follower::new("app_db", config, std::env::temp_dir());
        let followed = plans.iter().filter(|(view, _)| matches!(roles[**view], Role::Incremental | Role::Load));
        let columns = image_columns(followed.clone().map(|(_, plan)| &**plan));
        let mut all: BTreeMap<usize, Shadow> = followed.map(|(view, plan)| (*view, Shadow::new(plan, &columns))).collect();
        for (view, shadow) in shadows {
            // The images may have other columns than before.
            let fresh = all.get_mut(&view).expect("a view that is followed");
            for (oid, copy) in shadow.copies {
                fresh.copies.get_mut(&oid).expect("the same tables").rows = copy.rows;
            }
            fresh.from = shadow.from;
        }
        let (sender, events) = mpsc::channel(2);
        let (durable, durable_receiver) = watch::channel(from.clone());
        let (wanted, wanted_receiver) = watch::channel(None);
        let (stop, stop_receiver) = watch::channel(false);
        let position = from.as_ref().map_or(Lsn(0), lsn);
        let task = tokio::spawn(async move {
            let mut link = Link { events: sender, durable: durable_receiver, wanted: wanted_receiver, stop: stop_receiver };
            let ahead = vec![None; roles.len()];
            follower.follow(Start { settled: from.clone(), from, roles, ahead }, &mut link).await
        });
        Self {
            task,
            events,
            durable,
            wanted,
            stop,
            shadows: all,
            received: position,
            settled: position,
            last_commit: position,
            batches: 0,
            pieces: 0,
            cuts: Vec::new(),
            nows: Vec::new(),
            clocks: Vec::new(),
            failed: Vec::new(),
            open: Vec::new(),
            torn: false,
        }
    }

    /// Takes in one event; `false` at the end.
    pub(super) async fn next(&mut self) -> bool {
        let event = timeout(DEADLINE, self.events.recv()).await.expect("the source says something in time");
        let Some(event) = event else { return false };
        assert!(!self.torn || matches!(event, Event::Changes { .. }), "{event:?} between two pieces of a transaction");
        match event {
            Event::Changes { batch, settled } => self.changes(&batch, lsn(&settled)),
            Event::Cut { position, views, snapshot } => {
                let point = lsn(&position);
                self.cuts.push((position, views.iter().map(|(view, _)| *view).collect(), snapshot));
                if snapshot {
                    (self.received, self.settled) = (point, point);
                }
                for (view, Reading { tables, now, .. }) in views {
                    self.nows.push(now);
                    if let Some(shadow) = self.shadows.get_mut(&view) {
                        shadow.load(point, tables);
                    }
                }
            }
            Event::Progress { received, settled } => self.advance(lsn(&received), lsn(&settled)),
            Event::Clock { at, seen } => self.clocks.push((at, seen)),
            Event::ViewFailed { problem, .. } => self.failed.push(problem.to_string()),
            Event::State(_) | Event::Head(_) | Event::WalKept { .. } => {}
        }
        true
    }

    fn advance(&mut self, received: Lsn, settled: Lsn) {
        assert!(received >= self.received && settled >= self.settled && settled <= received, "{received} {settled}");
        (self.received, self.settled) = (received, settled);
        // As the engine does: between two transactions only.
        self.durable.send_replace(Some(settled.into()));
    }

    fn changes(&mut self, batch: &ChangeBatch, settled: Lsn) {
        self.batches += 1;
        let mut start = 0;
        for commit in batch.commits() {
            assert!(commit.start >= self.last_commit && commit.end > commit.start, "{commit:?} after {}", self.last_commit);
            self.last_commit = commit.end;
            let held = std::mem::take(&mut self.open);
            for shadow in self.shadows.values_mut().filter(|shadow| shadow.from <= commit.start) {
                for (table, bytes) in &held {
                    // Pieces before the last one are inserts here.
                    shadow.apply(*table, replayed(bytes, &mut ChangeBatch::default()));
                }
                batch.changes(start..commit.changes).for_each(|(table, change)| shadow.apply(table, change));
            }
            start = commit.changes;
        }
        self.torn = start < batch.len();
        if self.torn {
            self.pieces += 1;
        }
        for (table, change) in batch.changes(start..batch.len()) {
            let Change::Insert { new } = change else { panic!("large transactions of these tests insert") };
            self.open.push((table, new.as_bytes().to_vec()));
        }
        let received = self.received.max(batch.commits().last().map_or(Lsn(0), |commit| commit.end));
        self.received = received;
        assert!(settled >= self.settled && settled <= received);
        self.settled = settled;
        if !self.torn {
            self.durable.send_replace(Some(settled.into()));
        }
    }

    pub(super) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            if !self.next().await {
                panic!("the source ended before {what}: {:?}", (&mut self.task).await);
            }
        }
    }

    /// Until everything that is committed now has arrived.
    pub(super) async fn catch_up(&mut self, cluster: &Cluster, database: &str) {
        let end: Position = cluster.psql(database, "SELECT pg_current_wal_lsn()").parse().expect("a position");
        self.wanted.send_replace(Some(end.clone()));
        let end = lsn(&end);
        self.until("that position", |followed| followed.settled >= end).await;
    }

    /// Compares every copy with its table.
    pub(super) fn agree(&self, cluster: &Cluster, database: &str) {
        self.shadows.values().for_each(|shadow| shadow.agrees(cluster, database));
    }

    pub(super) async fn stop(mut self) -> (Option<Position>, BTreeMap<usize, Shadow>) {
        self.stop.send_replace(true);
        while self.next().await {}
        self.task.await.expect("no panic").expect("a stop is no error");
        (Some(self.settled.into()), self.shadows)
    }

    /// The error it ends with, the position and the copies then.
    pub(super) async fn error(mut self) -> (SourceError, Option<Position>, BTreeMap<usize, Shadow>) {
        while self.next().await {}
        let error = self.task.await.expect("no panic").expect_err("an error");
        (error, Some(self.settled.into()), self.shadows)
    }
}

/// An insert of an image that was kept, written into `batch`.
fn replayed<'a>(bytes: &[u8], batch: &'a mut ChangeBatch) -> Change<'a> {
    let cells = Cells::of(bytes);
    batch.insert(0, |image| {
        for index in 0..cells.len() {
            match cells.text(index) {
                Some(text) => image.text(&text),
                None => image.null(),
            }
        }
    });
    let change = batch.changes(0..1).next().expect("it was added");
    change.1
}

pub(super) fn lsn(position: &Position) -> Lsn {
    match position {
        Position::Lsn(lsn, _) => *lsn,
        other => panic!("{other:?}"),
    }
}
