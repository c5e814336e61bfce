//! The sources of all files as one list, and the replication slots' names.
//!
//! Two files may name the same source, if they define it alike: then it is one source that feeds what both say.
//!
//! A slot is unique in a PostgreSQL cluster, and two databases may be in one cluster. So a run with several PostgreSQL sources
//! names its slots (and publications) `factsync_<name under dbs>`, other characters than a-z, 0-9 and `_` being `_`, upper case being
//! lower case, cut to 63 bytes; with one such source it is `factsync`. `sync.slot` of a file overrides both for the sources of that
//! file. Two sources with
//! one slot are refused.
//!
//! These names depend on the other sources, and a slot that changes its name is a slot left behind, which keeps the server's log until the
//! disk is full. So a source that was followed before keeps its slot ([`KeptSlots`]), whatever comes and goes beside it, unless its file
//! says otherwise. A state directory of before names were kept had the one name or the other, as its number of sources tells.

use std::collections::{BTreeMap, HashMap};

use secrecy::ExposeSecret;

use crate::config::{
    Place, PostgresConfig, Problem, SourceConfig, SourceKind,
    file::{Draft, DraftKind},
    postgres::MAX_SLOT_BYTES,
};

/// The slot of the only PostgreSQL source, and the beginning of the names of several.
const DEFAULT_SLOT: &str = "factsync";

/// The sources that a state directory knows and the slots they were followed with; `None` if that was before names were kept.
pub type KeptSlots = BTreeMap<String, Option<String>>;

/// The sources of a run, in the order they are first named.
pub(super) fn merge(drafts: Vec<Draft>, kept: &KeptSlots, problems: &mut Vec<Problem>) -> Vec<SourceConfig> {
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
    let sources: Vec<_> = merged.into_iter().map(|draft| draft.finish(kept, several)).collect();
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

    fn finish(self, kept: &KeptSlots, several: bool) -> SourceConfig {
        let Self { name, place, kind } = self;
        let kind = match kind {
            DraftKind::Postgres { connection_string, ssl, slot, views } => {
                let slot = slot.or_else(|| kept_slot(kept, &name)).unwrap_or_else(|| default_slot(&name, several));
                SourceKind::Postgres(PostgresConfig { connection_string, ssl, slot, views })
            }
            DraftKind::Mongo(config) => SourceKind::Mongo(config.into()),
            DraftKind::Csv(config) => SourceKind::Csv(config),
        };
        SourceConfig { name, place, kind }
    }
}

fn kept_slot(kept: &KeptSlots, name: &str) -> Option<String> {
    kept.get(name).map(|slot| slot.clone().unwrap_or_else(|| default_slot(name, kept.len() > 1)))
}

fn default_slot(name: &str, several: bool) -> String {
    if several { slot_of(name) } else { DEFAULT_SLOT.to_owned() }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots of PostgreSQL sources without a `sync.slot`.
    fn slots(names: &[&str], kept: &[(&str, Option<&str>)]) -> (Vec<String>, Vec<String>) {
        let draft = |name: &&str| Draft {
            name: (*name).to_owned(),
            place: Place { file: "sync.yaml".into(), line: 1, column: 1 },
            kind: DraftKind::Postgres { connection_string: "postgresql:///x".into(), ssl: None, slot: None, views: Vec::new() },
        };
        let kept = kept.iter().map(|(name, slot)| ((*name).to_owned(), slot.map(str::to_owned))).collect();
        let mut problems = Vec::new();
        let sources = merge(names.iter().map(draft).collect(), &kept, &mut problems);
        let slot = |source: SourceConfig| match source.kind {
            SourceKind::Postgres(config) => config.slot,
            SourceKind::Mongo(_) | SourceKind::Csv(_) => panic!("only PostgreSQL was merged"),
        };
        (sources.into_iter().map(slot).collect(), problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn a_slot_stays_with_its_source_whatever_comes_and_goes() {
        let named = |names: &[&str], kept: &[(&str, Option<&str>)]| slots(names, kept).0;
        assert_eq!(named(&["a"], &[]), ["factsync"]);
        assert_eq!(named(&["a", "B-1"], &[]), ["factsync_a", "factsync_b_1"]);
        for one in [Some("factsync"), None] {
            assert_eq!(named(&["b", "a"], &[("a", one)]), ["factsync_b", "factsync"], "a second one comes");
        }
        assert_eq!(named(&["b"], &[("a", None), ("b", None)]), ["factsync_b"], "the first one goes");
        assert_eq!(named(&["b"], &[("a", Some("factsync")), ("b", Some("factsync_b"))]), ["factsync_b"]);
        assert_eq!(named(&["renamed"], &[("a", Some("factsync"))]), ["factsync"], "one that takes the place of the only one");
    }

    #[test]
    fn a_kept_slot_that_another_one_would_get_is_a_problem() {
        let (_, problems) = slots(&["a", "b"], &[("a", Some("factsync_b"))]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("would share the replication slot \"factsync_b\""), "{problems:?}");
    }
}
