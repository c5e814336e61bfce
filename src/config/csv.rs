//! CSV sources: each file that facts name is one.

use crate::config::{
    fields::{Field, Reader},
    file,
    raw::Value,
};

/// A fact: the path of its file and the names of the columns that fill its variables.
pub(super) fn fact(reader: &mut Reader<'_>, body: Field, variables: Option<usize>) -> Option<(String, Vec<String>)> {
    let mut fields = reader.fields(body, &["path", "fields"])?;
    let path = fields.require(reader, "path").and_then(|field| reader.text(&field));
    let columns = fields.require(reader, "fields").and_then(|field| {
        let items = file::columns(reader, field, variables)?;
        let names: Vec<_> = items.iter().map(|item| reader.literal(item)).collect();
        names.into_iter().collect::<Option<Vec<_>>>()
    });
    Some((path?, columns?))
}

/// `dbs` has no meaning here; an empty one does no harm.
pub(super) fn no_databases(reader: &mut Reader<'_>, dbs: &Field) {
    match &dbs.node.value {
        Value::Map(entries) if entries.is_empty() => {}
        _ => reader.problem(dbs.spot, "\"dbs\" is not used by the source csv", "Remove it; each fact names its file with \"path\"."),
    }
}
