//! One file: what kind it is, its facts, its sources.
//!
//! A file is a local-authorization file if it has neither `dbs` nor `sync`, no fact of it has a `db`, and its `source` is absent or
//! `postgres`. Every other file is for syncing.

use std::{collections::BTreeSet, path::PathBuf};

use secrecy::SecretString;

use crate::{
    config::{
        CsvConfig, MongoConfig, Place, SslConfig, View,
        claims::Claim,
        csv,
        fields::{Field, Fields, Reader, nearest},
        mongo,
        place::Spot,
        postgres,
        raw::{Node, Value},
        sync::SyncBlock,
    },
    fact::FactType,
};

/// What a file says, as far as it can be read.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) drafts: Vec<Draft>,
    /// The views of a local-authorization file.
    pub(super) local: Option<Vec<View<String>>>,
    pub(super) sync: SyncBlock,
    /// Every signature, also where the rest of its entry cannot be read.
    pub(super) claims: Vec<Claim>,
}

/// A source as one file has it; the run as a whole decides the slot.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) kind: DraftKind,
}

/// As [`SourceKind`](super::SourceKind), with the slot still open.
pub(super) enum DraftKind {
    Postgres { connection_string: SecretString, ssl: Option<SslConfig>, slot: Option<String>, views: Vec<View<String>> },
    Mongo(MongoConfig),
    Csv(CsvConfig),
}

/// The names under `dbs`, and which of them facts use.
pub(super) struct Databases {
    /// `None` if `dbs` cannot be read, which has been noted; then nobody can say whether a name is under it.
    names: Option<Vec<String>>,
    used: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Postgres,
    Mongo,
    Csv,
    LocalAuthorization,
    /// The source is not known, which has been noted: of the facts only the signatures can be read.
    Unknown,
}

/// Reads the whole file, noting every problem.
pub(super) fn read(reader: &mut Reader<'_>, root: Node) -> Contents {
    if !matches!(root.value, Value::Map(_)) {
        let message = format!("the file must be a mapping, found {}", root.value.kind());
        reader.problem(root.spot, message, "Write \"facts:\" and \"dbs:\" into it, with what belongs to them indented below.");
        return Contents::default();
    }
    let spot = root.spot;
    let Some(entries) = reader.entries(Field::root(root)) else { return Contents::default() };
    let local = is_local(&entries);
    let known: &[_] = if local { &["version", "source", "facts", "sql_types"] } else { &["version", "source", "facts", "dbs", "sync"] };
    let mut fields = reader.known_fields("the file".into(), spot, entries, known);
    let source = fields.take("source");
    let source_spot = source.as_ref().map_or(spot, |field| field.node.spot);
    let kind = match source {
        _ if local => FileKind::LocalAuthorization,
        Some(field) => file_kind(reader, &field),
        None => FileKind::Postgres,
    };
    version(reader, fields.take("version"), kind, source_spot);
    let mut contents = Contents::default();
    if let Some(block) = fields.take("sync") {
        contents.sync = SyncBlock::read(reader, block, matches!(kind, FileKind::Postgres | FileKind::Unknown));
    }
    sources(reader, &mut fields, kind, &mut contents);
    contents
}

fn is_local(entries: &[Field]) -> bool {
    let find = |key: &str| entries.iter().find(|field| field.key == key).map(|field| &field.node.value);
    let has_db = |body: &Node| matches!(&body.value, Value::Map(keys) if keys.iter().any(|(key, _)| is_text(&key.value, "db")));
    let some_db = matches!(find("facts"), Some(Value::Map(facts)) if facts.iter().any(|(_, body)| has_db(body)));
    let postgres = find("source").is_none_or(|source| matches!(source, Value::Null) || is_text(source, "postgres"));
    postgres && !some_db && find("dbs").is_none() && find("sync").is_none()
}

fn is_text(value: &Value, wanted: &str) -> bool {
    matches!(value, Value::Text(text) if text == wanted)
}

fn file_kind(reader: &mut Reader<'_>, source: &Field) -> FileKind {
    let Some(name) = reader.text(source) else { return FileKind::Unknown };
    match name.as_str() {
        "postgres" => FileKind::Postgres,
        "mongodb" => FileKind::Mongo,
        "csv" => FileKind::Csv,
        _ => {
            // MySQL is no slip of anything: Oso Sync has it, factsync does not.
            let suggestion = match name.as_str() {
                "mysql" | "mariadb" => "; MySQL is not supported".to_owned(),
                "mongo" => "; did you mean \"mongodb\"?".to_owned(),
                other => nearest(other, ["postgres", "mongodb", "csv"].into_iter())
                    .map_or(String::new(), |near| format!("; did you mean \"{near}\"?")),
            };
            reader.problem(
                source.node.spot,
                format!("unknown source \"{}\"{suggestion}", source.as_written()),
                "Use postgres, mongodb or csv.",
            );
            FileKind::Unknown
        }
    }
}

fn version(reader: &mut Reader<'_>, field: Option<Field>, kind: FileKind, source: Spot) {
    match (field, kind) {
        (Some(field), _) => {
            if !matches!(&field.node.value, Value::Number(number) if number.as_u64() == Some(1)) {
                reader.problem(field.node.spot, "\"version\" is not 1", "Write version: 1, the only version there is.");
            }
        }
        (None, FileKind::Mongo | FileKind::Csv) => {
            reader.problem(
                source,
                "missing key \"version\" in the file",
                "Write version: 1 above it; only for postgres it is the default.",
            );
        }
        (None, FileKind::Postgres | FileKind::LocalAuthorization | FileKind::Unknown) => {}
    }
}

fn sources(reader: &mut Reader<'_>, fields: &mut Fields, kind: FileKind, contents: &mut Contents) {
    let facts = facts(reader, fields);
    let claims = &mut contents.claims;
    match kind {
        FileKind::Postgres => {
            let (dbs, mut databases) = Databases::read(reader, fields);
            let views = views(reader, facts, claims, |reader, body, _| postgres::fact(reader, body, &mut databases));
            contents.drafts = drafts(reader, dbs, &databases, views, |reader, entry, used, views| {
                let postgres::Database { connection_string, ssl } = postgres::database(reader, entry, used)?;
                Some(DraftKind::Postgres { connection_string, ssl, slot: contents.sync.slot.clone(), views })
            });
        }
        FileKind::Mongo => {
            let (dbs, mut databases) = Databases::read(reader, fields);
            let views = views(reader, facts, claims, |reader, body, variables| mongo::fact(reader, body, variables, &mut databases));
            contents.drafts = drafts(reader, dbs, &databases, views, |reader, entry, used, views| {
                let connection_string = mongo::database(reader, entry, used)?;
                Some(DraftKind::Mongo(MongoConfig { connection_string, views }))
            });
        }
        FileKind::Csv => {
            if let Some(dbs) = fields.take("dbs") {
                csv::no_databases(reader, &dbs);
            }
            let groups = grouped(views(reader, facts, claims, csv::fact));
            contents.drafts.extend(groups.into_iter().map(|(name, views)| Draft {
                place: views[0].place.clone(),
                kind: DraftKind::Csv(CsvConfig { path: PathBuf::from(&name), views }),
                name,
            }));
        }
        FileKind::LocalAuthorization => {
            if let Some(types) = fields.take("sql_types") {
                sql_types(reader, types);
            }
            contents.local = Some(views(reader, facts, claims, |reader, body, _| postgres::local_fact(reader, body)));
        }
        FileKind::Unknown => _ = views(reader, facts, claims, |_, _, _| None::<()>),
    }
}

fn facts(reader: &mut Reader<'_>, fields: &mut Fields) -> Vec<Field> {
    let Some(field) = fields.require(reader, "facts") else { return Vec::new() };
    let spot = field.spot;
    let facts = reader.entries(field);
    if facts.as_ref().is_some_and(Vec::is_empty) {
        reader.problem(spot, "\"facts\" is empty", "Add a fact type, as in has_role(User:_, String:_, Organization:_), with its query.");
    }
    facts.unwrap_or_default()
}

/// Reads each fact's signature, and its body with `query`, which is told the number of variables if that is known.
fn views<Q>(
    reader: &mut Reader<'_>,
    facts: Vec<Field>,
    claims: &mut Vec<Claim>,
    mut query: impl FnMut(&mut Reader<'_>, Field, Option<usize>) -> Option<Q>,
) -> Vec<View<Q>> {
    let mut views = Vec::with_capacity(facts.len());
    for fact in facts {
        let place = reader.place(fact.spot);
        let fact_type = fact_type(reader, &fact);
        // A repeated key has been noted as one; as a claim it would be noted again.
        claims.extend(
            fact_type.iter().filter(|_| !fact.repeated).map(|fact_type| Claim { fact_type: fact_type.clone(), place: place.clone() }),
        );
        let query = query(reader, fact, fact_type.as_ref().map(FactType::variables));
        views.extend(fact_type.zip(query).map(|(fact_type, query)| View { fact_type, place, query }));
    }
    views
}

fn fact_type(reader: &mut Reader<'_>, fact: &Field) -> Option<FactType> {
    match fact.key.parse::<FactType>() {
        Ok(fact_type) if fact_type.variables() == 0 => {
            let hint = "Put \"_\" where the query's columns go, as in has_role(User:_, String:admin).";
            reader.problem(fact.spot, format!("\"{}\" has no variable for a query to fill", fact.key), hint);
            None
        }
        Ok(fact_type) => Some(fact_type),
        Err(error) => {
            let hint = "Write predicate(Type:_, Type:constant), as in has_role(User:_, String:admin, Organization:_).";
            reader.problem(fact.spot, error.to_string(), hint);
            None
        }
    }
}

/// A draft for each entry of `dbs` that facts use, in the order of the file.
fn drafts<Q>(
    reader: &mut Reader<'_>,
    dbs: Vec<Field>,
    databases: &Databases,
    views: Vec<View<(String, Q)>>,
    mut kind: impl FnMut(&mut Reader<'_>, Field, bool, Vec<View<Q>>) -> Option<DraftKind>,
) -> Vec<Draft> {
    let mut groups = grouped(views);
    let mut drafts = Vec::new();
    for entry in dbs {
        let (name, place) = (entry.key.clone(), reader.place(entry.spot));
        let views = groups.iter().position(|(db, _)| *db == name).map_or(Vec::new(), |index| groups.swap_remove(index).1);
        let kind = kind(reader, entry, databases.used.contains(&name), views);
        drafts.extend(kind.map(|kind| Draft { name, place, kind }));
    }
    drafts
}

/// The views by the source they name, sources in the order they are first named.
fn grouped<Q>(views: Vec<View<(String, Q)>>) -> Vec<(String, Vec<View<Q>>)> {
    let mut groups: Vec<(String, Vec<View<Q>>)> = Vec::new();
    for View { fact_type, place, query: (name, query) } in views {
        let view = View { fact_type, place, query };
        match groups.iter_mut().find(|(source, _)| *source == name) {
            Some((_, views)) => views.push(view),
            None => groups.push((name, vec![view])),
        }
    }
    groups
}

fn sql_types(reader: &mut Reader<'_>, field: Field) {
    for entry in reader.entries(field).unwrap_or_default() {
        reader.text(&entry);
    }
}

/// The list `fields`, which fills the variables from left to right, so that there must be as many.
pub(super) fn columns(reader: &mut Reader<'_>, field: Field, variables: Option<usize>) -> Option<Vec<Field>> {
    let spot = field.node.spot;
    let columns = reader.list(field)?;
    if let Some(variables) = variables.filter(|variables| *variables != columns.len()) {
        let message = format!("\"fields\" has {} for {}", counted(columns.len(), "field"), counted(variables, "variable"));
        reader.problem(spot, message, "Name one field for each \"_\" of the fact type, from left to right.");
    }
    Some(columns)
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl Databases {
    fn read(reader: &mut Reader<'_>, fields: &mut Fields) -> (Vec<Field>, Self) {
        let mut dbs = fields.require(reader, "dbs").and_then(|field| reader.entries(field));
        if let Some(dbs) = &mut dbs {
            dbs.retain(|entry| !entry.repeated);
        }
        let names = dbs.as_ref().map(|dbs| dbs.iter().map(|entry| entry.key.clone()).collect());
        (dbs.unwrap_or_default(), Self { names, used: BTreeSet::new() })
    }

    /// The fact's `db`, which must be one of the names.
    pub(super) fn of_fact(&mut self, reader: &mut Reader<'_>, fields: &mut Fields) -> Option<String> {
        let field = fields.require(reader, "db")?;
        let name = reader.text(&field)?;
        if let Some(names) = self.names.as_ref().filter(|names| !names.contains(&name)) {
            let suggestion = nearest(&name, names.iter().map(String::as_str)).map(|near| format!("; did you mean \"{near}\"?"));
            let message = format!("there is no \"{}\" under \"dbs\"{}", field.as_written(), suggestion.unwrap_or_default());
            reader.problem(field.node.spot, message, format!("Add it there; \"dbs\" has: {}.", names.join(", ")));
            return None;
        }
        self.used.insert(name.clone());
        Some(name)
    }
}
