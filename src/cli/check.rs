//! `factsync check`: everything that would stop a run, at once, before anything is started.

use anyhow::Context;
use clap::Args;

use crate::{
    cli::{Configs, Exit, Global, load, print, target},
    config::{Config, LocalAuthorization, Place, SourceConfig, SourceKind},
    error::causes,
    source::{
        csv, mongo,
        postgres::{self, Severity},
    },
};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    configs: Configs,
    /// Look at the files only, without connecting to anything
    #[arg(long)]
    offline: bool,
    /// Let the PostgreSQL database at this URL judge the queries of local-authorization files
    #[arg(long, value_name = "URL", conflicts_with = "offline")]
    db: Option<String>,
}

/// One line of the report, with what it is about.
struct Line {
    severity: Severity,
    place: Option<Place>,
    text: String,
    remedy: Option<String>,
}

impl Line {
    fn new(severity: Severity, text: impl Into<String>) -> Self {
        Self { severity, place: None, text: text.into(), remedy: None }
    }

    fn at(self, place: &Place) -> Self {
        Self { place: Some(place.clone()), ..self }
    }

    fn remedy(self, remedy: &str) -> Self {
        Self { remedy: Some(remedy.to_owned()), ..self }
    }
}

impl From<postgres::Finding> for Line {
    fn from(finding: postgres::Finding) -> Self {
        let postgres::Finding { severity, place, text, remedy } = finding;
        Self { severity, place, text, remedy }
    }
}

pub(super) async fn run(global: &Global, args: &CheckArgs) -> anyhow::Result<Exit> {
    let config = load(global, &args.configs)?;
    let mut lines = vec![Line::new(Severity::Fine, told(&config))];
    if args.offline {
        let unjudged = "the SQL itself was not judged: only a database can. Without --offline its own database does";
        lines.push(Line::new(Severity::Warning, unjudged));
    } else {
        for source in &config.sources {
            lines.extend(check_source(source).await?);
        }
        for local in &config.local {
            lines.extend(check_local(local, args.db.as_deref()).await);
        }
        if !config.sources.is_empty() {
            lines.push(check_target(global).await);
        }
    }
    report(&lines)
}

fn told(config: &Config) -> String {
    let fact_types = config.sources.iter().map(|source| source.fact_types().len()).sum::<usize>();
    let local = config.local.iter().map(|local| local.views.len()).sum::<usize>();
    let local = if local == 0 { String::new() } else { format!(", {local} fact types of local authorization") };
    format!("the files are valid: {fact_types} fact types of {} sources{local}", config.sources.len())
}

async fn check_source(source: &SourceConfig) -> anyhow::Result<Vec<Line>> {
    Ok(match &source.kind {
        SourceKind::Postgres(config) => postgres::preflight(&source.name, config).await.into_iter().map(Line::from).collect(),
        SourceKind::Mongo(config) => match mongo::probe(&source.name, config).await {
            Ok(findings) => findings.into_iter().map(Line::from).collect(),
            Err(error) => vec![Line::new(Severity::Problem, causes(&error)).at(&source.place)],
        },
        SourceKind::Csv(config) => {
            let spool = tempfile::tempdir().context("could not make a temporary folder. TMPDIR says where")?;
            match csv::snapshot(&source.name, config, spool.path(), &|_, _| ()).await {
                Ok(snapshot) => {
                    let failed = snapshot.views.iter().zip(source.places());
                    let failed =
                        failed.filter_map(|(view, place)| Some(Line::new(Severity::Problem, causes(view.as_ref().err()?)).at(place)));
                    let fine = Line::new(Severity::Fine, format!("file \"{}\" can be read", config.path.display()));
                    std::iter::once(fine).chain(failed).collect()
                }
                Err(error) => vec![Line::new(Severity::Problem, causes(&error)).at(&source.place)],
            }
        }
    })
}

async fn check_local(local: &LocalAuthorization, db: Option<&str>) -> Vec<Line> {
    match db {
        Some(url) => postgres::judge(&url.to_owned().into(), &local.views).await.into_iter().map(Line::from).collect(),
        None => vec![
            Line::new(Severity::Warning, format!("the SQL of \"{}\" was not judged: the file names no database", local.file.display()))
                .remedy("Pass --db with the URL of a PostgreSQL database that has its tables."),
        ],
    }
}

async fn check_target(global: &Global) -> Line {
    let choice = match target::choose(global) {
        Ok(choice) => choice,
        Err(misuse) => return Line::new(Severity::Problem, misuse.to_string()),
    };
    match choice {
        // Looking must not create it.
        target::Choice::Embedded if !global.state.exists() => {
            Line::new(Severity::Fine, format!("facts go to the embedded store, a new one in \"{}\"", global.state.display()))
        }
        target::Choice::Embedded => match target::lock(&global.state) {
            Ok(state) => Line::new(Severity::Fine, format!("facts go to the embedded store in \"{}\"", state.path().display())),
            Err(error) => Line::new(Severity::Problem, format!("{error:#}")),
        },
        remote @ target::Choice::Remote { .. } => match remote.open(global, None) {
            Err(error) => Line::new(Severity::Problem, format!("{error:#}")),
            Ok(target) => match target.store.probe().await {
                Ok(()) => Line::new(Severity::Fine, "the fact store answers and takes the key"),
                Err(error) => Line::new(Severity::Problem, causes(&error)),
            },
        },
    }
}

fn report(lines: &[Line]) -> anyhow::Result<Exit> {
    let count = |severity| lines.iter().filter(|line| line.severity == severity).count();
    let mut text = String::new();
    for line in lines {
        let label = match line.severity {
            Severity::Fine => "ok",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        };
        let place = line.place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
        text.push_str(&format!("{label}: {place}{}\n", line.text));
        text.extend(line.remedy.iter().map(|remedy| format!("  {remedy}\n")));
    }
    let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
    text.push_str(&format!("{problems} problems, {warnings} warnings\n"));
    print(&text)?;
    Ok(if problems == 0 { Exit::Done } else { Exit::Failure })
}
