//! The comparison itself, beside the loop.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    data::{Extent, ExtentBuilder, Position},
    engine::{audit::Trouble, error::EngineError},
    error::causes,
    reconcile::{Drift, Scale, SourceAudit, TypeAudit, Verdict, Weighed, Witnessed, witness},
    source::{Answer, Stand, Testimony},
    store::{Differing, Found, Sight, StoreError, ViewRecord, Watching},
};

/// A view that is compared.
pub(super) struct Candidate {
    pub(super) number: usize,
    pub(super) record: ViewRecord,
    /// What the fact store holds of it.
    pub(super) listed: Extent,
    /// Why its facts need not be those of its query.
    pub(super) unjudged: Option<String>,
    /// How it is kept up to date.
    pub(super) mode: &'static str,
}

/// Everything that is compared.
pub(super) struct Case {
    pub(super) watching: Watching,
    pub(super) sight: Sight,
    pub(super) candidates: Vec<Candidate>,
    pub(super) stand: Option<Stand>,
    pub(super) position: Position,
    /// What time it is in the incremental views that depend on it, and before which moment that changes nothing.
    pub(super) time: Option<(i64, Option<i64>)>,
    pub(super) spool: PathBuf,
}

/// What came out.
pub(in crate::engine) struct Judged {
    pub(super) watching: Watching,
    /// In the order of `audit.numbers`.
    pub(super) found: Vec<Found>,
    pub(super) audit: Draft,
}

/// A report without what is found out when drift is settled.
pub(in crate::engine) struct Draft {
    /// The views' numbers.
    pub(super) numbers: Vec<usize>,
    position: Position,
    about: BTreeMap<&'static str, String>,
    at: SystemTime,
    fact_types: Vec<TypeAudit>,
}

/// What only the loop knows of a report.
pub(super) struct Report {
    pub(super) source: String,
    pub(super) kind: &'static str,
    pub(super) identity: String,
    pub(super) took_ms: u64,
    pub(super) held_up_ms: u64,
}

impl Draft {
    /// Adds what differs between the desired facts and the fact store.
    pub(super) fn settle(&mut self, differing: &[Differing]) {
        for (audit, Differing { missing, stale, foreign }) in self.fact_types.iter_mut().zip(differing) {
            let drift = Drift { missing_grant: *missing, stale_access: *stale, foreign_fact: *foreign, ..audit.drift };
            *audit = TypeAudit { drift, ..audit.clone() }.judged();
        }
    }

    /// The views whose facts are not those of their queries.
    pub(super) fn wrong(&self) -> Vec<usize> {
        let audits = self.numbers.iter().zip(&self.fact_types);
        audits.filter(|(_, audit)| audit.drift.view_error > 0).map(|(number, _)| *number).collect()
    }

    pub(super) fn finish(self, report: &Report) -> SourceAudit {
        let Self { position, about, at, fact_types, .. } = self;
        SourceAudit {
            source: report.source.clone(),
            kind: report.kind,
            identity: report.identity.clone(),
            about,
            position: position.to_string(),
            at: humantime::format_rfc3339_seconds(at).to_string(),
            took_ms: report.took_ms,
            held_up_ms: report.held_up_ms,
            verdict: SourceAudit::verdict_of(&fact_types),
            fact_types,
        }
    }
}

/// Compares everything.
pub(super) async fn judge(case: Case) -> Result<Judged, Trouble> {
    let Case { watching, sight, candidates, stand, position, time, spool } = case;
    let at = SystemTime::now();
    let weighed = blocking(move || weigh_all(sight, candidates, &spool)).await?;
    let asked = stand.is_some();
    let testimony = match stand {
        // Only now: what asks for the time must not have asked before the desired facts were taken hold of.
        Some(stand) => stand.testimony.await?,
        None => Testimony::default(),
    };
    let mut answers: BTreeMap<usize, Answer> = testimony.views.into_iter().map(|answer| (answer.view, answer)).collect();
    let (mut numbers, mut found, mut fact_types) = (Vec::new(), Vec::new(), Vec::new());
    for view in weighed {
        let answer = answers.remove(&view.number);
        numbers.push(view.number);
        let (differs, audit) = blocking(move || hear(view, answer, asked, time)).await?;
        found.push(differs);
        fact_types.push(audit);
    }
    Ok(Judged { watching, found, audit: Draft { numbers, position, about: testimony.about, at, fact_types } })
}

/// A view whose desired facts were compared with the fact store.
struct WeighedView {
    number: usize,
    record: ViewRecord,
    unjudged: Option<String>,
    mode: &'static str,
    weighed: Weighed,
}

/// In one go, so that the local store's log is held for no longer than it takes to read the desired facts once.
fn weigh_all(mut sight: Sight, candidates: Vec<Candidate>, spool: &Path) -> io::Result<Vec<WeighedView>> {
    let weigh = |Candidate { number, record, listed, unjudged, mode }: Candidate| {
        let mut held = ExtentBuilder::new(spool);
        sight.held(record.id, &mut |row| held.push(row))?;
        let on_their_way = sight.on_their_way(record.id)?;
        let mut scale = Scale::new(&record.fact_type, listed, held.finish()?, on_their_way, spool);
        sight.desired(record.id, &mut |row| scale.desire(row))?;
        let weighed = scale.finish()?;
        Ok(WeighedView { number, record, unjudged, mode, weighed })
    };
    candidates.into_iter().map(weigh).collect()
}

/// Hears what the source says of a view.
fn hear(view: WeighedView, answer: Option<Answer>, asked: bool, time: Option<(i64, Option<i64>)>) -> io::Result<(Found, TypeAudit)> {
    let WeighedView { record, unjudged, mode, weighed, .. } = view;
    let Weighed { desired, stored, listed, held, on_their_way, missing, stale, mut wanted } = weighed;
    let (witnessed, moment, problem) = match answer {
        None if !asked => (None, None, Some("its source cannot be asked again".to_owned())),
        None => (None, None, None),
        Some(Answer { rows: Err(error), .. }) => (None, None, Some(causes(&error))),
        Some(Answer { rows: Ok(rows), now, .. }) => (Some(witness(&record.fact_type, rows, &mut wanted)?), now, None),
    };
    let wrong = witnessed.as_ref().map_or(0, |witnessed| witnessed.wrong);
    // What agrees agrees, whatever stands against a comparison.
    let unjudged = problem.or_else(|| unjudged.or_else(|| moved(mode, moment, time)).filter(|_| wrong > 0 || witnessed.is_none()));
    let drift = Drift { view_error: if unjudged.is_none() { wrong } else { 0 }, ..Drift::default() };
    let (rows, source) = witnessed.map(|Witnessed { rows, facts, .. }| (rows, facts)).unzip();
    let audit = TypeAudit {
        fact_type: record.fact_type.to_string(),
        mode,
        rows,
        source,
        desired: Some(desired),
        stored: Some(stored),
        listed,
        held,
        on_their_way,
        drift,
        unjudged,
        verdict: Verdict::Equal,
    };
    Ok((Found { view: record, missing, stale }, audit.judged()))
}

/// Why time may have changed the query's result between the desired facts and the answer, in which `now()` was `moment`.
fn moved(mode: &str, moment: Option<i64>, time: Option<(i64, Option<i64>)>) -> Option<String> {
    let moment = moment?;
    let quiet = time.is_some_and(|(from, until)| from <= moment && until.is_some_and(|until| moment < until));
    let exact = mode == "incremental" && quiet;
    (!exact).then(|| "it depends on the time, which changed it between the two".to_owned())
}

/// Whole datasets are read here: too long for a thread that others wait for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await.map_err(EngineError::panicked)?;
    Ok(done.map_err(|error| EngineError::from(StoreError::Rows(error)))?)
}
