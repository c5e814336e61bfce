//! What is known before following begins: how each view is kept up to date, and what its stored state depends on.
//!
//! Each view has a fingerprint of its own: of its query and everything the query names, of what the publication has of its tables, and
//! of their partitions. So what happens to one view's tables does not concern the others. The survey is repeated while the stream
//! is followed; a fingerprint that differs ends the attempt with the view's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use postgres_protocol::escape::escape_identifier;
use sha2::{Digest, Sha256};

use crate::{
    config::View,
    query::{Identity, ViewPlan},
    source::{
        self, PreparedView, SourceError, ViewMode,
        postgres::{
            analyze::{self, AnalysedView, Analysis, TableUse},
            catalog::{self, Column, Kind, Trace},
            copy::bounded,
            fault,
            images::{Announced, Kept, KeptColumn},
            look::{Look, LookedAt, Looking},
            publication::{self, Publication, Standing, quoted},
            session::{Purpose, Server},
        },
    },
};

/// How a refresh view that depends on the time is kept up to date.
const CLOCK_REASON: &str = "it depends on the time, so its query runs again every few seconds, and when one of its tables changes";
/// The same for other refresh views.
const REFRESH_REASON: &str = "its query runs again when one of its tables changes";

/// How long a survey waits for a table that somebody has locked for DDL. Shorter than PostgreSQL's `deadlock_timeout` of a second, so
/// that a survey never is the reason for which one of the application's transactions is cancelled.
const LOCK_PATIENCE: &str = "500ms";

/// How often the catalogues may have changed between two surveys before the attempt ends; the next one begins with them.
const MOST_SURVEYS: usize = 10;

/// The system columns that say where a row is stored.
const PLACE: [&str; 2] = ["tableoid", "ctid"];

/// What is known before following begins.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The views, in order.
    pub views: Vec<PreparedView>,
    /// The cluster's identity.
    pub system_identifier: String,
    /// Its timeline, which a failover changes.
    pub timeline: u32,
}

impl Prepared {
    /// What the engine asks of every source.
    pub(crate) fn describe(self, database: &str) -> source::Prepared {
        // Not the timeline: after a failover it is still the same database.
        let identity = source::Prepared::identify(&format!("database \"{database}\""), &self.system_identifier);
        source::Prepared { identity, views: self.views }
    }
}

/// What the server says about the views, all of it at about the same time.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) analysis: Analysis,
    /// What each view's fingerprint is without the partitions of its tables.
    definitions: Vec<String>,
    /// How each view is kept up to date, and its fingerprint.
    pub(crate) views: Vec<PreparedView>,
    /// The catalogues, as heartbeats see them.
    pub(crate) look: Look,
}

impl Survey {
    /// Asks the server; with `ensure` the publication is made right, too.
    ///
    /// What is followed by it is asked for twice. DDL between an analysis and the look that belongs to it, for instance while somebody's
    /// lock holds up the publication, would be in the look alone, and nothing would ever seem to have changed.
    pub(crate) async fn take(server: &Server, slot: &str, views: &[View<String>], ensure: bool) -> Result<Self, SourceError> {
        let mut survey = Self::once(server, slot, views, ensure).await?;
        for _ in 0..MOST_SURVEYS {
            if !ensure {
                return Ok(survey);
            }
            let again = Self::once(server, slot, views, false).await?;
            if survey.definitions == again.definitions && survey.analysis.tables == again.analysis.tables {
                return Ok(survey);
            }
            survey = Self::once(server, slot, views, true).await?;
        }
        let source = "they change all the time".into();
        Err(SourceError::Unreachable { name: server.name.to_string(), action: "read the catalogue", source })
    }

    async fn once(server: &Server, slot: &str, views: &[View<String>], ensure: bool) -> Result<Self, SourceError> {
        let failed = |error| fault::sql(&server.name, "read the catalogue", error);
        let mut session = server.connect(Purpose::Analyze).await?;
        session.client.batch_execute(&format!("SET lock_timeout = '{LOCK_PATIENCE}'")).await.map_err(failed)?;
        let analysis = analyze::analyze(server, &mut session, views).await?;
        let mut standing = Standing::Right;
        if ensure {
            let writer = server.connect(Purpose::Write).await?;
            standing = publication::ensure(server, &writer, slot, &analysis).await?;
        }
        // The texts that heartbeats compare come first: a change in between is noticed by the next heartbeat.
        let looking = Looking::at(&session.client, looked_at(&analysis, slot)).await.map_err(failed)?;
        let look = looking.look(&session.client).await.map_err(failed)?;
        let published = Publication::read(&session.client, slot, analysis.server_version).await.map_err(failed)?;
        let tables: Vec<u32> = analysis.tables.keys().copied().collect();
        let traces = catalog::traces(&session.client, &tables).await.map_err(failed)?;
        let definition = |(view, analysed): (&View<String>, &Result<AnalysedView, String>)| match analysed {
            Ok(analysed) => definition(&analysis, analysed, published.as_ref(), &traces),
            Err(problem) => digest([&*view.fact_type.to_string(), &view.query, problem]),
        };
        let definitions: Vec<String> = views.iter().zip(&analysis.views).map(definition).collect();
        let prepared = analysis.views.iter().zip(&definitions).map(|(analysed, definition)| PreparedView {
            fingerprint: analysed.as_ref().map_or(definition.clone(), |view| fingerprint(&analysis, view, definition, &look)),
            mode: match unpublished(&analysis, analysed, published.as_ref(), &standing) {
                Some(problem) => ViewMode::Refused(problem),
                None => mode(&analysis, analysed.as_ref()),
            },
        });
        let views = prepared.collect();
        Ok(Self { definitions, views, look, analysis })
    }

    /// What must stay the same for each view while it is followed: for the views `incremental` everything. The others are read again when a
    /// partition comes or goes, which heartbeats notice.
    pub(crate) fn essence(&self, incremental: &BTreeSet<usize>) -> Vec<String> {
        let views = self.views.iter().zip(&self.definitions).enumerate();
        views
            .map(|(number, (view, definition))| if incremental.contains(&number) { &view.fingerprint } else { definition }.clone())
            .collect()
    }

    /// The [essence](Self::essence) of the views `wanted` as they are now. Only their tables are locked for it, or waited for.
    pub(crate) async fn essence_of(
        server: &Server,
        slot: &str,
        views: &[View<String>],
        wanted: BTreeSet<usize>,
        incremental: &BTreeSet<usize>,
    ) -> Result<BTreeMap<usize, String>, SourceError> {
        let wanted: Vec<usize> = wanted.into_iter().filter(|view| *view < views.len()).collect();
        let chosen: Vec<View<String>> = wanted.iter().map(|view| views[*view].clone()).collect();
        let places = wanted.iter().enumerate().filter(|(_, view)| incremental.contains(view)).map(|(place, _)| place);
        let essence = Self::take(server, slot, &chosen, false).await?.essence(&places.collect());
        Ok(wanted.into_iter().zip(essence).collect())
    }

    /// The plan of an incremental view.
    pub(crate) fn plan(&self, view: usize) -> Option<&Arc<ViewPlan>> {
        match &self.views.get(view)?.mode {
            ViewMode::Incremental(plan) => Some(plan),
            ViewMode::Refresh(_) | ViewMode::Refused(_) => None,
        }
    }

    /// Why a view cannot be followed.
    pub(crate) fn refusal(&self, view: usize) -> Option<&str> {
        match &self.views.get(view)?.mode {
            ViewMode::Refused(problem) => Some(problem),
            ViewMode::Incremental(_) | ViewMode::Refresh(_) => None,
        }
    }

    /// Whether a view depends on the time.
    pub(crate) fn has_clock(&self, view: usize) -> bool {
        self.analysis.views[view].as_ref().is_ok_and(|view| view.clock)
    }

    /// What is delivered to the views `incremental`.
    pub(crate) fn kept(&self, incremental: &BTreeSet<usize>) -> BTreeMap<u32, Kept> {
        let plans = || incremental.iter().filter_map(|view| Some((*view, self.plan(*view)?)));
        let columns = source::image_columns(plans().map(|(_, plan)| &**plan));
        let kept = columns.into_iter().filter_map(|(oid, numbers)| {
            let table = self.analysis.tables.get(&oid)?;
            let users: Vec<_> = plans().filter_map(|(view, plan)| Some((view, plan.tables.get(&oid)?))).collect();
            let column = |number: i16| {
                let column = table.columns.get(&number)?;
                Some(KeptColumn {
                    number,
                    name: column.name.clone(),
                    type_oid: column.type_oid,
                    modifier: column.typmod,
                    labels: self.analysis.labels.get(&column.type_oid).cloned(),
                })
            };
            let kept = Kept {
                title: table.title(),
                columns: numbers.into_iter().filter_map(column).collect(),
                identity: users.first()?.1.identity.clone(),
                announced: match &table.identity {
                    catalog::Identity::Full => Announced::Full,
                    catalog::Identity::Columns(names) => {
                        Announced::Columns { key: names.iter().cloned().collect(), included: table.included.iter().cloned().collect() }
                    }
                    catalog::Identity::Missing => Announced::Columns { key: Vec::new(), included: Vec::new() },
                },
                partitioned: table.kind == Kind::Partitioned,
                users: users.iter().map(|(view, table)| (*view, table.columns.clone())).collect(),
            };
            Some((oid, kept))
        });
        kept.collect()
    }

    /// Which of the views `refreshed` a change of which relation touches: the tables a view names, their partitions and children, and
    /// the roots whose name changes of a partition are published under.
    pub(crate) fn touched(&self, refreshed: &[usize]) -> BTreeMap<u32, Vec<usize>> {
        let mut touched: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &number in refreshed {
            let Ok(view) = &self.analysis.views[number] else { continue };
            for relation in view.tables.keys().flat_map(|oid| self.family(*oid)) {
                let views = touched.entry(relation).or_default();
                if !views.contains(&number) {
                    views.push(number);
                }
            }
        }
        touched
    }

    fn family(&self, oid: u32) -> impl Iterator<Item = u32> {
        family(&self.analysis, oid)
    }

    /// What to look at while these views are followed.
    pub(crate) fn looked_at(&self, slot: &str) -> LookedAt {
        looked_at(&self.analysis, slot)
    }
}

fn family(analysis: &Analysis, oid: u32) -> impl Iterator<Item = u32> {
    let relatives = analysis.tables.get(&oid).into_iter().flat_map(|table| table.descendants.iter().chain(&table.ancestors));
    relatives.copied().chain([oid])
}

/// Besides what the queries name, tables whose rows can change without a row in the log.
fn looked_at(analysis: &Analysis, slot: &str) -> LookedAt {
    LookedAt::new(watched(analysis), &analysis.named, slot, analysis.server_version)
}

fn watched(analysis: &Analysis) -> Vec<u32> {
    let used: BTreeSet<u32> = analysis.views.iter().flatten().flat_map(|view| view.tables.keys().copied()).collect();
    let moves = |oid: &u32| {
        analysis
            .tables
            .get(oid)
            .is_some_and(|table| table.kind == Kind::Partitioned || !table.descendants.is_empty() || !table.ancestors.is_empty())
    };
    used.into_iter().filter(moves).collect()
}

/// What stands against following a view whose tables are not published as it needs them.
fn unpublished(
    analysis: &Analysis,
    view: &Result<AnalysedView, String>,
    published: Option<&Publication>,
    standing: &Standing,
) -> Option<String> {
    let (Ok(view), Standing::Lacking(problem)) = (view, standing) else { return None };
    let covered = published.is_some_and(|published| published.covers(&publication::needed_by(analysis, std::iter::once(view))));
    (!covered).then(|| problem.clone())
}

/// What tells that the rows of a view's tables were written anew without a row in the change log: a column gets another type, and
/// perhaps other values, where no column list stands in the way; a table is unlogged for a while; a generated column gets another
/// expression.
fn rewritten(view: &AnalysedView, published: Option<&Publication>, traces: &BTreeMap<u32, Trace>) -> String {
    let mut parts = Vec::new();
    for (oid, used) in &view.tables {
        let Some(trace) = traces.get(oid) else { continue };
        let columns = || trace.columns.iter().filter(|(name, _)| used.columns.contains(*name));
        parts.extend(columns().filter_map(|(name, _)| Some(format!("{name} {}", trace.generated.get(name)?))));
        if !published.is_some_and(|published| published.lists_columns(*oid)) {
            parts.extend(columns().map(|(name, writer)| format!("{name} {writer}")));
        }
        if !published.is_some_and(|published| published.names(*oid)) {
            parts.push(trace.file.to_string());
        }
    }
    parts.join(", ")
}

/// What a view's query means and which changes of its tables are in the change log.
fn definition(analysis: &Analysis, view: &AnalysedView, published: Option<&Publication>, traces: &BTreeMap<u32, Trace>) -> String {
    let mut parts = vec![view.fingerprint.clone()];
    let family: BTreeSet<u32> = view.tables.keys().flat_map(|oid| family(analysis, *oid)).collect();
    parts.push(published.map(|published| published.of(&family)).unwrap_or_default());
    parts.push(rewritten(view, published, traces));
    // A partition is published with its root; an inheritance child is not.
    let parents = view.with_children.iter().filter_map(|oid| analysis.tables.get(oid)).filter(|table| table.kind == Kind::Table);
    parts.extend(parents.map(|table| format!("{:?}", table.descendants)));
    digest(parts.iter().map(String::as_str))
}

/// Everything a view's stored state depends on besides rows.
fn fingerprint(analysis: &Analysis, view: &AnalysedView, definition: &str, look: &Look) -> String {
    let mut parts = vec![definition.to_owned()];
    parts.extend(view.tables.keys().filter_map(|oid| Some(format!("{oid} {}", look.shape(*oid)?))));
    // What old rows tell is decided by the partitions' identities.
    let family: BTreeSet<u32> = view.tables.keys().flat_map(|oid| family(analysis, *oid)).collect();
    let members = family.iter().filter_map(|oid| Some((oid, analysis.tables.get(oid)?)));
    parts.extend(members.map(|(oid, table)| format!("{oid} {:?}", table.identity)));
    digest(parts.iter().map(String::as_str))
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mode(analysis: &Analysis, view: Result<&AnalysedView, &String>) -> ViewMode {
    match view {
        Ok(view) => match incremental(analysis, view) {
            Ok(plan) => ViewMode::Incremental(plan.clone()),
            Err(reason) => ViewMode::Refresh(refresh_reason(view, &reason)),
        },
        Err(problem) => ViewMode::Refused(problem.clone()),
    }
}

/// How a view is refreshed, and why.
pub(crate) fn refresh_reason(view: &AnalysedView, because: &str) -> String {
    let how = if view.clock { CLOCK_REASON } else { REFRESH_REASON };
    format!("{how}, because {because}")
}

/// The plan by which a view is kept up to date change by change, or why there is none.
pub(crate) fn incremental<'a>(analysis: &Analysis, view: &'a AnalysedView) -> Result<&'a Arc<ViewPlan>, String> {
    let plan = view.plan.as_ref().map_err(Clone::clone)?;
    undelivered(analysis, view, plan).map_or(Ok(plan), Err)
}

/// Why the change log does not have what the plan needs, if so.
fn undelivered(analysis: &Analysis, view: &AnalysedView, plan: &ViewPlan) -> Option<String> {
    plan.tables.iter().find_map(|(oid, used)| {
        let table = analysis.tables.get(oid)?;
        let title = table.title();
        if !table.ancestors.is_empty() {
            return Some(format!("{title} is a partition, whose changes may come under its root's name. Query the root"));
        }
        if table.kind == Kind::Table && view.with_children.contains(oid) && !table.descendants.is_empty() {
            return Some(format!("{title} has inheritance children. Query it with ONLY"));
        }
        if let Some(column) = used.columns.iter().filter_map(|number| table.columns.get(number)).find(|column| column.generated) {
            return Some(format!("column \"{}\" of {title} is generated, and such columns are not in the change log", column.name));
        }
        let partitions = table.descendants.iter().filter_map(|oid| analysis.tables.get(oid)).filter(|table| table.kind == Kind::Table);
        for member in partitions.chain((table.kind == Kind::Table).then_some(table)) {
            if !tells(&member.identity, used, table) {
                return Some(format!("{} has another replica identity than {title}", member.title()));
            }
        }
        None
    })
}

/// The queries that read the tables of a plan: the columns it keeps, and for a table whose rows may be equal where each is stored.
/// Each with the count of its columns.
pub(crate) fn table_queries(analysis: &Analysis, plan: &ViewPlan) -> BTreeMap<u32, (String, usize)> {
    let queries = plan.tables.iter().filter_map(|(oid, used)| {
        let table = analysis.tables.get(oid)?;
        let columns = used.columns.iter().filter_map(|number| table.columns.get(number));
        let cell = |column: &Column| bounded(&format!("t.{}", escape_identifier(&column.name)), column.type_oid);
        let mut cells: Vec<String> = columns.map(cell).collect();
        if used.identity == Identity::Full {
            cells.push("t.tableoid::pg_catalog.text || t.ctid::pg_catalog.text".to_owned());
        }
        // The rows of a partitioned table are those of its partitions; children of an ordinary one are tables of their own.
        let only = if table.kind == Kind::Partitioned { "" } else { "ONLY " };
        let sql = format!("SELECT {} FROM {only}{} AS t", cells.join(", "), quoted(&table.schema, &table.name));
        Some((*oid, (sql, cells.len())))
    });
    queries.collect()
}

/// The columns of each table and view that the role reads: those of the queries, and what [`table_queries`] asks for besides. The tables
/// behind a view are read by the rights of its owner in a query, and by ours when they are loaded.
pub(crate) fn columns_read(analysis: &Analysis) -> BTreeMap<u32, TableUse> {
    let mut read: BTreeMap<u32, TableUse> = BTreeMap::new();
    for view in analysis.views.iter().flatten() {
        for (oid, used) in view.tables.iter().chain(&view.shown) {
            read.entry(*oid).or_insert_with(|| used.clone()).columns.extend(used.columns.iter().cloned());
        }
        let Ok(plan) = incremental(analysis, view) else { continue };
        for (oid, used) in &plan.tables {
            let (Some(table), Some(read)) = (analysis.tables.get(oid), read.get_mut(oid)) else { continue };
            let columns = used.columns.iter().filter_map(|number| Some(table.columns.get(number)?.name.clone()));
            let places = (used.identity == Identity::Full).then(|| PLACE.map(str::to_owned)).into_iter().flatten();
            read.columns.extend(columns.chain(places));
        }
    }
    read
}

/// Whether old rows with this identity tell what the plan takes from them.
fn tells(identity: &catalog::Identity, used: &crate::query::Table, table: &catalog::Table) -> bool {
    let names = |numbers: &[i16]| -> Option<BTreeSet<String>> {
        numbers.iter().map(|number| table.columns.get(number).map(|column| column.name.clone())).collect()
    };
    match (identity, &used.identity) {
        (catalog::Identity::Full, Identity::Full | Identity::Key(_) | Identity::Document(_)) => true,
        (catalog::Identity::Columns(told), Identity::Key(key)) => names(key).as_ref() == Some(told),
        (catalog::Identity::Columns(_) | catalog::Identity::Missing, _) => false,
    }
}
