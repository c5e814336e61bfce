//! What each query reads, asked of the database that owns the tables, and whether it can be kept up to date.
//!
//! In a read-only session with `debug_print_rewritten` the server reports the analysed, view-expanded tree of every statement it
//! prepares. Preparing goes through the extended protocol, which takes one statement only. The first report after a
//! preparation is that statement's: the driver may prepare lookups of its own, but only after it.
//!
//! A query is refused, with the reason and the remedy, when its result can change without a commit that touches its tables, when
//! such commits are not in the change log, or when publishing its tables would break the application.
//! The clock is the exception: a query that asks for the time is also re-run on a timer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tokio_postgres::{
    Client,
    types::{Kind as TypeKind, Type},
};

use crate::{
    config::View,
    query::{PLAN_VERSION, ViewPlan, bind, catalogue::Catalogue, tree::Tree},
    source::{
        SourceError,
        postgres::{
            catalog::{self, Function, Identity, Kind, Table},
            fault,
            look::Named,
            session::{Server, Session},
            uses::{ColumnsUsed, Uses},
        },
    },
};

/// What the server calls the report we are after; not translated.
const REPORT: &str = "rewritten parse tree:";
/// `now`, `transaction_timestamp`, `statement_timestamp`, `age(timestamptz)`, `age(timestamp)`: stable functions of the clock.
const CLOCK_FUNCTIONS: [u32; 5] = [1299, 2647, 2648, 1386, 2059];
/// PostgreSQL's stable functions that read something other than their arguments, the tables and the settings we pin.
const ELSEWHERE: [&str; 15] = [
    "pg_catalog.pg_",
    "pg_catalog.has_",
    "pg_catalog.txid_",
    "pg_catalog.table_to_xml",
    "pg_catalog.schema_to_xml",
    "pg_catalog.database_to_xml",
    "pg_catalog.query_to_xml",
    "pg_catalog.cursor_to_xml",
    "pg_catalog.inet_client_",
    "pg_catalog.inet_server_",
    "pg_catalog.current_setting",
    "pg_catalog.obj_description",
    "pg_catalog.col_description",
    "pg_catalog.shobj_description",
    "pg_catalog.row_security_active",
];

/// Fields of a tree that a new column nobody uses would change, and places in the text.
const LISTS_AND_PLACES: [&str; 9] =
    ["eref", "joinaliasvars", "joinleftcols", "joinrightcols", "varnosyn", "varattnosyn", "location", "stmt_location", "stmt_len"];

/// One table as one query uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableUse {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The columns the query uses.
    pub columns: BTreeSet<String>,
}

/// A query that can be kept up to date.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysedView {
    /// The tables it reads, by OID.
    pub tables: BTreeMap<u32, TableUse>,
    /// The views it reads them through, where not only the owner of another view needs to be allowed to.
    pub shown: BTreeMap<u32, TableUse>,
    /// Its columns: name and type.
    pub columns: Vec<(String, String)>,
    /// Whether it depends on the time and is re-run on a timer too.
    pub clock: bool,
    /// How it is kept up to date change by change, or why its query is run again instead: "because …".
    pub plan: Result<Arc<ViewPlan>, String>,
    /// Changes when anything that this view's result or plan depends on changes.
    pub fingerprint: String,
    /// The tables whose inheritance children it reads.
    pub(crate) with_children: BTreeSet<u32>,
}

/// What the server says about all queries of a source.
#[derive(Debug)]
pub(crate) struct Analysis {
    /// One for each view: what it uses, or why it cannot be followed, as a sentence or two.
    pub(crate) views: Vec<Result<AnalysedView, String>>,
    /// `server_version_num`.
    pub(crate) server_version: u32,
    /// Used tables with their families.
    pub(crate) tables: BTreeMap<u32, Table>,
    /// The labels of the enums among the types of columns, and of the domains over them.
    pub(crate) labels: BTreeMap<u32, Arc<BTreeSet<String>>>,
    /// What each query names; nothing, if the server does not understand it.
    pub(crate) named: Vec<Named>,
}

/// What preparing one query told.
struct Prepared {
    uses: Uses,
    columns: Vec<(String, Type)>,
    /// The tree as the server printed it, and the digest of what it means.
    tree: String,
    tree_digest: Vec<u8>,
}

/// Analyses every query; the error is about the connection, never about a query.
pub(crate) async fn analyze(server: &Server, session: &mut Session, views: &[View<String>]) -> Result<Analysis, SourceError> {
    let failed = |error| fault::sql(&server.name, "read the catalogue", error);
    let mut prepared = Vec::with_capacity(views.len());
    for view in views {
        prepared.push(prepare(server, session, view).await?);
    }
    let (catalogue, search_path) = catalogue(&session.client, &prepared).await.map_err(failed)?;
    let shown: BTreeSet<u32> = prepared.iter().flatten().flat_map(|prepared| prepared.uses.shown.keys().copied()).collect();
    let shown = match shown.is_empty() {
        true => BTreeMap::new(),
        false => catalog::tables(&session.client, &shown.into_iter().collect::<Vec<u32>>()).await.map_err(failed)?,
    };
    let judge = |(view, prepared): (&View<String>, &Result<Prepared, String>)| {
        let prepared = prepared.as_ref().map_err(Clone::clone)?;
        let used = prepared.uses.shown.iter().filter_map(|(oid, used)| Some((*oid, table_use(shown.get(oid)?, used))));
        Ok(AnalysedView { shown: used.collect(), ..judge(view, prepared, &catalogue, &search_path)? })
    };
    let judged: Vec<_> = views.iter().zip(&prepared).map(judge).collect();
    let (labels, named) = (labels(&catalogue), named(&prepared, &catalogue));
    Ok(Analysis { views: judged, server_version: catalogue.server_version, tables: catalogue.tables, labels, named })
}

fn labels(catalogue: &Catalogue) -> BTreeMap<u32, Arc<BTreeSet<String>>> {
    let base = |found: &catalog::Type| catalogue.types.get(&found.base).filter(|base| base.kind == catalog::TypeKind::Enum);
    let enums = catalogue.types.iter().filter_map(|(oid, found)| Some((*oid, base(found)?)));
    enums.map(|(oid, base)| (oid, Arc::new(base.labels.iter().map(|(_, label)| label.clone()).collect()))).collect()
}

/// What each query names; built-in functions and types do not change.
fn named(prepared: &[Result<Prepared, String>], catalogue: &Catalogue) -> Vec<Named> {
    let users = |oids: BTreeSet<u32>| -> BTreeSet<u32> { oids.into_iter().filter(|oid| *oid >= catalog::FIRST_USER_OID).collect() };
    let uses = prepared.iter().map(|prepared| prepared.as_ref().map(|prepared| &prepared.uses));
    let named = uses.map(|uses| match uses {
        Ok(uses) => Named {
            relations: uses.relations.keys().flat_map(|oid| with_family(*oid, catalogue)).chain(uses.views.iter().copied()).collect(),
            functions: users(called(uses, catalogue)),
            types: users(types_of(uses, catalogue)),
        },
        Err(_) => Named::default(),
    });
    let mut named: Vec<Named> = named.collect();
    // A domain over a domain is known by what is below both: the one in between is anybody's.
    let claimed: BTreeSet<u32> = named.iter().flat_map(|named| named.types.iter().copied()).collect();
    let anybodys: BTreeSet<u32> = users(catalogue.types.keys().copied().collect()).difference(&claimed).copied().collect();
    named.iter_mut().for_each(|named| named.types.extend(&anybodys));
    named
}

fn with_family(oid: u32, catalogue: &Catalogue) -> impl Iterator<Item = u32> {
    let relatives = catalogue.tables.get(&oid).into_iter().flat_map(|table| table.descendants.iter().chain(&table.ancestors));
    relatives.copied().chain([oid])
}

/// The types that a query has something to do with: those in its tree, those of the columns of its tables, and what they are made of.
fn types_of(uses: &Uses, catalogue: &Catalogue) -> BTreeSet<u32> {
    let tables = uses.relations.keys().filter_map(|oid| catalogue.tables.get(oid));
    let columns = tables.flat_map(|table| table.columns.values()).map(|column| column.type_oid);
    with_parts(uses.types.iter().copied().chain(columns).collect(), catalogue)
}

/// The same types with what they are made of: the element of an array, and what is below a domain.
fn with_parts(mut types: BTreeSet<u32>, catalogue: &Catalogue) -> BTreeSet<u32> {
    let mut todo: Vec<u32> = types.iter().copied().collect();
    while let Some(oid) = todo.pop() {
        let parts = catalogue.types.get(&oid).into_iter().flat_map(|found| [found.base, found.element]);
        todo.extend(parts.filter(|part| types.insert(*part)));
    }
    types
}

/// The trees of all queries and everything they name, for the corpus of a fuzz target; a query that cannot be prepared is left out.
#[cfg(fuzzing)]
pub(crate) async fn capture(
    server: &Server,
    session: &mut Session,
    views: &[View<String>],
) -> Result<(Vec<String>, Catalogue), SourceError> {
    let mut prepared = Vec::with_capacity(views.len());
    for view in views {
        prepared.push(prepare(server, session, view).await?);
    }
    let (catalogue, _) =
        catalogue(&session.client, &prepared).await.map_err(|error| fault::sql(&server.name, "read the catalogue", error))?;
    Ok((prepared.into_iter().flatten().map(|prepared| prepared.tree).collect(), catalogue))
}

/// Everything that the queries name, and the `search_path` by which they were understood.
async fn catalogue(client: &Client, prepared: &[Result<Prepared, String>]) -> Result<(Catalogue, String), tokio_postgres::Error> {
    let all =
        |pick: fn(&Uses) -> Vec<u32>| -> BTreeSet<u32> { prepared.iter().flatten().flat_map(|prepared| pick(&prepared.uses)).collect() };
    let list = |oids: BTreeSet<u32>| oids.into_iter().collect::<Vec<u32>>();
    let tables = catalog::tables(client, &list(all(|uses| uses.relations.keys().copied().collect()))).await?;
    let columns = || tables.values().flat_map(|table| table.columns.values());
    let mut types = all(|uses| uses.types.iter().copied().collect());
    types.extend(columns().map(|column| column.type_oid));
    let mut collations = all(|uses| uses.collations.iter().copied().collect());
    collations.extend(columns().map(|column| column.collation));
    let types = catalog::types(client, &list(types)).await?;
    let collations = catalog::collations(client, &list(collations)).await?;
    let operators = catalog::operators(client, &list(all(|uses| uses.operators.iter().copied().collect()))).await?;
    let mut functions = all(|uses| uses.functions.iter().copied().collect());
    functions.extend(operators.values().map(|operator| operator.function));
    functions.extend(types.values().flat_map(|found| [found.input, found.output]));
    let functions = catalog::functions(client, &list(functions)).await?;
    let place = client
        .query_one(
            "SELECT pg_catalog.current_schemas(false)::text, pg_catalog.current_setting('server_version_num')::int,
                    pg_catalog.getdatabaseencoding() = 'UTF8'",
            &[],
        )
        .await?;
    let server_version = u32::try_from(place.get::<_, i32>(1)).unwrap_or_default();
    Ok((Catalogue { types, collations, functions, operators, tables, server_version, utf8: place.get(2) }, place.get(0)))
}

/// Prepares one query: what it uses, or what the server holds against it.
async fn prepare(server: &Server, session: &mut Session, view: &View<String>) -> Result<Result<Prepared, String>, SourceError> {
    let failed = |error| fault::sql(&server.name, "prepare a query", error);
    let on = "SET debug_print_rewritten = on; SET debug_pretty_print = off; SET client_min_messages = log";
    session.client.batch_execute(on).await.map_err(failed)?;
    while session.next_notice().is_some() {}
    let answer = session.client.prepare(&view.query).await;
    let report = std::iter::from_fn(|| session.next_notice()).find(|notice| notice.message() == REPORT);
    let off = "SET debug_print_rewritten = off; SET client_min_messages = warning";
    session.client.batch_execute(off).await.map_err(failed)?;
    let statement = match answer {
        Ok(statement) => statement,
        Err(error) => return fault::of_query(&error).map(Err).ok_or_else(|| failed(error)),
    };
    let wanted = view.fact_type.variables();
    let columns: Vec<_> = statement.columns().iter().map(|column| (column.name().to_owned(), column.type_().clone())).collect();
    if columns.len() != wanted {
        return Ok(Err(format!(
            "the query has {} and the fact type has {}. Each variable is filled by one column, left to right",
            counted(columns.len(), "column"),
            counted(wanted, "variable"),
        )));
    }
    let Some(text) = report.as_ref().and_then(|report| report.detail()) else {
        return Ok(Err("the server did not report how it reads the query. Allow this role to set debug_print_rewritten".to_owned()));
    };
    Ok(Tree::read(text).map_err(|error| error.to_string()).map(|tree| Prepared {
        uses: Uses::of(&tree),
        columns,
        tree_digest: tree_digest(&tree),
        tree: text.to_owned(),
    }))
}

/// The meaning of a query: its tree without what only lists the columns of tables, used or not, or says where a word stood.
fn tree_digest(tree: &Tree<'_>) -> Vec<u8> {
    let mut hash = Sha256::new();
    tree.words_without(&LISTS_AND_PLACES, |word| {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word.as_bytes());
    });
    hash.finalize().to_vec()
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Whether the view can be followed.
fn judge(view: &View<String>, prepared: &Prepared, catalogue: &Catalogue, search_path: &str) -> Result<AnalysedView, String> {
    let uses = &prepared.uses;
    let mut refusals: BTreeSet<String> = uses.refusals.clone();
    let mut clock = uses.clock;
    for function in called(uses, catalogue) {
        match catalogue.functions.get(&function) {
            Some(_) if CLOCK_FUNCTIONS.contains(&function) => clock = true,
            Some(called) => refusals.extend(refuse_function(called)),
            None => drop(refusals.insert(format!("it calls function {function}, which does not exist any more. Try again"))),
        }
    }
    refusals.extend(prepared.columns.iter().filter_map(|(name, of)| refuse_column(name, of)));
    for (oid, used) in &uses.relations {
        match catalogue.tables.get(oid) {
            Some(table) => refusals.extend(refuse_table(table, used, catalogue)),
            None => drop(refusals.insert(format!("it reads table {oid}, which does not exist any more. Try again"))),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals.into_iter().collect::<Vec<_>>().join("; "));
    }
    let tables = uses.relations.iter().filter_map(|(oid, used)| Some((*oid, table_use(catalogue.tables.get(oid)?, used))));
    let tables: BTreeMap<u32, TableUse> = tables.collect();
    let tree = Tree::read(&prepared.tree).map_err(|error| error.to_string())?;
    let plan = bind(&tree, catalogue);
    Ok(AnalysedView {
        fingerprint: fingerprint(view, prepared, &tables, &plan, catalogue, search_path),
        plan: plan.map(Arc::new),
        tables,
        shown: BTreeMap::new(),
        columns: prepared.columns.iter().map(|(name, column_type)| (name.clone(), column_type.name().to_owned())).collect(),
        clock,
        with_children: uses.relations.iter().filter(|(_, used)| used.with_children).map(|(oid, _)| *oid).collect(),
    })
}

/// Functions called by name and through operators.
fn called(uses: &Uses, catalogue: &Catalogue) -> BTreeSet<u32> {
    let behind = uses.operators.iter().filter_map(|operator| catalogue.operators.get(operator)).map(|operator| operator.function);
    uses.functions.iter().copied().chain(behind).collect()
}

fn refuse_function(function: &Function) -> Option<String> {
    let title = &function.title;
    match function.volatility.as_str() {
        "i" => None,
        "s" if function.users => Some(format!(
            "function {title} is STABLE, so it may read tables nobody watches. Inline it, or declare it IMMUTABLE if it reads none"
        )),
        "s" if ELSEWHERE.iter().any(|prefix| title.starts_with(prefix)) => {
            Some(format!("function {title} depends on more than the tables. Store what it returns in a column"))
        }
        "s" => None,
        _ => Some(format!("function {title} is volatile: it may return something else each time. Store its result in a column")),
    }
}

/// The text of these values is the name that a catalogue has for a number at the moment: `ALTER … RENAME` changes it in no row.
fn refuse_column(name: &str, of: &Type) -> Option<String> {
    match of.kind() {
        TypeKind::Domain(inner) | TypeKind::Array(inner) => refuse_column(name, inner),
        _ if of.schema() == "pg_catalog" && (of.name().starts_with("reg") || of.name() == "aclitem") => Some(format!(
            "column \"{name}\" is of type {of}, whose text changes when something is renamed, and no change log says so. \
             Cast it to oid, or store the name in a text column"
        )),
        _ => None,
    }
}

/// The first version that refuses to update a published table whose identity has a generated column that is not published.
const MINDS_GENERATED: u32 = 180_000;

/// Whether a published table can neither be updated nor deleted from because of a generated column in its identity.
pub(crate) fn is_stuck(table: &Table, version: u32) -> bool {
    let mut generated = table.columns.values().filter(|column| column.generated);
    let told = |name: &String| match &table.identity {
        Identity::Full => true,
        Identity::Columns(key) => key.contains(name),
        Identity::Missing => false,
    };
    version >= MINDS_GENERATED && table.kind == Kind::Table && generated.any(|column| told(&column.name))
}

fn refuse_table(table: &Table, used: &ColumnsUsed, catalogue: &Catalogue) -> Vec<String> {
    let tables = &catalogue.tables;
    let title = table.title();
    if let Kind::Other(what) = table.kind {
        return vec![format!("{title} is {what}, whose changes are not in the change log. Query the tables behind it")];
    }
    let mut family: Vec<&Table> = vec![table];
    if used.with_children || table.kind == Kind::Partitioned {
        family.extend(table.descendants.iter().filter_map(|oid| tables.get(oid)));
    }
    let mut refusals = Vec::new();
    for member in family {
        match (member.kind, &member.identity) {
            (Kind::Other(what), _) => refusals.push(format!(
                "{} is {what} below {title}, whose changes are not in the change log. Detach it or query its siblings",
                member.title()
            )),
            (Kind::Table, _) if is_stuck(member, catalogue.server_version) => refusals.push(format!(
                "the replica identity of {} has a generated column, and publishing it would break the application's UPDATE and DELETE. \
                 Give it a primary key without one, and run ALTER TABLE {} REPLICA IDENTITY DEFAULT",
                member.title(),
                super::publication::quoted(&member.schema, &member.name),
            )),
            (Kind::Table, Identity::Missing) => refusals.push(format!(
                "{} has no primary key (a deferrable one does not count), and publishing it would break the application's UPDATE and \
                 DELETE. Add a primary key, or run ALTER TABLE {} REPLICA IDENTITY FULL",
                member.title(),
                super::publication::quoted(&member.schema, &member.name),
            )),
            (Kind::Table | Kind::Partitioned, _) => {}
        }
    }
    refusals
}

fn table_use(table: &Table, used: &ColumnsUsed) -> TableUse {
    let columns = table.columns.iter().filter(|(number, _)| used.whole_row || used.attributes.contains(number));
    TableUse { schema: table.schema.clone(), name: table.name.clone(), columns: columns.map(|(_, column)| column.name.clone()).collect() }
}

/// Whether a result can depend on `search_path` although every name in the query is resolved: the text of a function of the user's may have
/// names in it, and so may what a stable one is given or gives back, such as the text of a `regclass`.
fn feels_search_path(uses: &Uses, tables: &BTreeMap<u32, TableUse>, catalogue: &Catalogue) -> bool {
    let of_tables = tables.keys().filter_map(|oid| catalogue.tables.get(oid)).flat_map(|table| table.columns.values());
    let types: BTreeSet<u32> = uses.types.iter().copied().chain(of_tables.map(|column| column.type_oid)).collect();
    let of_types = types.iter().filter_map(|oid| catalogue.types.get(oid)).flat_map(|found| [found.input, found.output]);
    let mut functions = called(uses, catalogue).into_iter().chain(of_types);
    functions.any(|oid| oid >= catalog::FIRST_USER_OID || catalogue.functions.get(&oid).is_none_or(|found| found.volatility != "i"))
}

/// SHA-256 over everything that one view's result, its plan and the layout of its state depend on.
fn fingerprint(
    view: &View<String>,
    prepared: &Prepared,
    tables: &BTreeMap<u32, TableUse>,
    plan: &Result<ViewPlan, String>,
    catalogue: &Catalogue,
    search_path: &str,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    let search_path = if feels_search_path(&prepared.uses, tables, catalogue) { search_path } else { "" };
    add(format!("{PLAN_VERSION} {} {search_path}", catalogue.server_version / 10_000).as_bytes());
    add(view.fact_type.to_string().as_bytes());
    add(view.query.as_bytes());
    add(&prepared.tree_digest);
    // Whatever else it depends on, such as the identity of partitions, shows in the plan.
    add(format!("{plan:?}").as_bytes());
    let (mut types, mut collations) = (prepared.uses.types.clone(), prepared.uses.collations.clone());
    for (oid, used) in tables {
        let Some(table) = catalogue.tables.get(oid) else { continue };
        add(format!("{oid} {} {:?} {:?} {:?}", table.title(), table.kind, table.identity, table.unique).as_bytes());
        let identity = |name: &String| matches!(&table.identity, Identity::Columns(key) if key.contains(name));
        for (number, column) in table.columns.iter().filter(|(_, column)| used.columns.contains(&column.name) || identity(&column.name)) {
            add(format!("{number} {column:?}").as_bytes());
            types.insert(column.type_oid);
            collations.insert(column.collation);
        }
    }
    let types = with_parts(types, catalogue);
    for (oid, found) in catalogue.types.iter().filter(|(oid, _)| types.contains(oid)) {
        add(format!("{oid} {found:?}").as_bytes());
    }
    for (oid, found) in catalogue.collations.iter().filter(|(oid, _)| collations.contains(oid)) {
        add(format!("{oid} {found:?}").as_bytes());
    }
    let called = called(&prepared.uses, catalogue);
    for (oid, function) in catalogue.functions.iter().filter(|(oid, _)| called.contains(oid)) {
        add(format!("{oid} {function:?}").as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
