//! The sources of all files as one list, and the replication slots' names.
//!
//! Two files may name the same source, if they define it alike: then it is one source that feeds what both say.
//!
//! A slot is unique in a PostgreSQL cluster, and two databases may be in one cluster. So a run with several PostgreSQL sources
//! names its slots (and publications) `factsync_<name under dbs>`, other characters than a-z, 0-9 and `_` being `_`, upper case being
//! lower case, cut to 63 bytes; with one such source it is `factsync`. `sync.slot` of a file overrides both for the sources of that
//! file. Two sources with
//! one slot are refused. Adding a second PostgreSQL source to a run therefore renames the first one's slot, unless its file has a
//! `sync.slot`.

use std::collections::HashMap;

use secrecy::ExposeSecret;

use crate::config::{
    Place, PostgresConfig, Problem, SourceConfig, SourceKind,
    file::{Draft, DraftKind},
    postgres::MAX_SLOT_BYTES,
};

/// The slot of the only PostgreSQL source, and the beginning of the names of several.
const DEFAULT_SLOT: &str = "factsync";

/// The sources of a run, in the order they are first named.
pub(super) fn merge(drafts: Vec<Draft>, problems: &mut Vec<Problem>) -> Vec<SourceConfig> {
    let mut merged: Vec<Draft> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for draft in drafts {
        match index.get(&draft.name) {
            Some(&first) => problems.extend(merged[first].absorb(draft)),
            None => {
                index.insert(draft.name.clone(), merged.len());
                merged.push(draft);
            }
        }
    }
    let several = merged.iter().filter(|draft| matches!(draft.kind, DraftKind::Postgres { .. })).count() > 1;
    let sources: Vec<_> = merged.into_iter().map(|draft| draft.finish(several)).collect();
    problems.extend(shared_slots(&sources));
    sources
}

impl Draft {
    /// Takes the views of the same source in another file.
    fn absorb(&mut self, other: Self) -> Option<Problem> {
        let slots_differ = match (&mut self.kind, other.kind) {
            (
                DraftKind::Postgres { connection_string, ssl, slot, views },
                DraftKind::Postgres { connection_string: its_string, ssl: its_ssl, slot: its_slot, views: its_views },
            ) if connection_string.expose_secret() == its_string.expose_secret() && *ssl == its_ssl => {
                views.extend(its_views);
                let differ = slot.is_some() && its_slot.is_some() && *slot != its_slot;
                *slot = slot.take().or(its_slot);
                differ
            }
            (DraftKind::Mongo(config), DraftKind::Mongo(its))
                if config.connection_string.expose_secret() == its.connection_string.expose_secret() =>
            {
                config.views.extend(its.views);
                false
            }
            (DraftKind::Csv(config), DraftKind::Csv(its)) => {
                config.views.extend(its.views);
                false
            }
            (DraftKind::Postgres { .. } | DraftKind::Mongo(_) | DraftKind::Csv(_), _) => {
                let message = format!("the source \"{}\" is defined differently at {}", self.name, self.place);
                return Some(Problem::new(other.place, message, "Define it alike, or give one of them another name."));
            }
        };
        slots_differ.then(|| {
            let message = format!("the source \"{}\" has another \"slot\" at {}", self.name, self.place);
            Problem::new(other.place, message, "Give both files the same sync.slot, or only one of them.")
        })
    }

    fn finish(self, several: bool) -> SourceConfig {
        let Self { name, place, kind } = self;
        let kind = match kind {
            DraftKind::Postgres { connection_string, ssl, slot, views } => {
                let slot = slot.unwrap_or_else(|| if several { slot_of(&name) } else { DEFAULT_SLOT.to_owned() });
                SourceKind::Postgres(PostgresConfig { connection_string, ssl, slot, views })
            }
            DraftKind::Mongo(config) => SourceKind::Mongo(config.into()),
            DraftKind::Csv(config) => SourceKind::Csv(config),
        };
        SourceConfig { name, place, kind }
    }
}

fn slot_of(name: &str) -> String {
    let legal = name.chars().map(|c| c.to_ascii_lowercase()).map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    format!("{DEFAULT_SLOT}_").chars().chain(legal).take(MAX_SLOT_BYTES).collect()
}

fn shared_slots(sources: &[SourceConfig]) -> Vec<Problem> {
    let mut first: HashMap<&str, (&str, &Place)> = HashMap::new();
    let mut problems = Vec::new();
    for SourceConfig { name, place, kind } in sources {
        let SourceKind::Postgres(PostgresConfig { slot, .. }) = kind else { continue };
        if let Some((other, at)) = first.get(slot.as_str()) {
            let message = format!("the sources \"{name}\" and \"{other}\" at {at} would share the replication slot \"{slot}\"");
            problems.push(Problem::new(
                place.clone(),
                message,
                "Give the file of one of them a sync.slot of its own; a slot is unique in a PostgreSQL cluster.",
            ));
        } else {
            first.insert(slot, (name, place));
        }
    }
    problems
}
