//! MongoDB sources. A query is YAML in the file and Extended JSON from here on: `{$oid: …}`, `{$date: …}` are passed on as they are.

use secrecy::SecretString;
use serde_json::Value as Json;

use crate::config::{
    MongoField, MongoQuery, MongoSelect, connection,
    fields::{Field, Reader},
    file::{self, Databases},
    raw::{Node, Value},
};

/// Stages that write; a pipeline here only reads. MongoDB has no operators of these names elsewhere.
const WRITING_STAGES: [&str; 2] = ["$out", "$merge"];

/// A fact: the name of its database and its query.
pub(super) fn fact(
    reader: &mut Reader<'_>,
    body: Field,
    variables: Option<usize>,
    databases: &mut Databases,
) -> Option<(String, MongoQuery)> {
    let mut fields = reader.fields(body, &["db", "collection", "fields", "query"])?;
    let db = databases.of_fact(reader, &mut fields);
    let collection = fields.require(reader, "collection").and_then(|field| reader.text(&field));
    let columns = fields.require(reader, "fields").and_then(|field| columns(reader, field, variables));
    let select = match fields.take("query") {
        Some(field) => select(reader, field),
        None => Some(MongoSelect::Find(Json::Object(serde_json::Map::new()))),
    };
    Some((db?, MongoQuery { collection: collection?, select: select?, fields: columns? }))
}

/// An entry of `dbs`; the variables in it are only looked up if it is `used`.
pub(super) fn database(reader: &mut Reader<'_>, entry: Field, used: bool) -> Option<SecretString> {
    let mut fields = reader.fields(entry, &["connection_string"])?;
    let field = fields.require(reader, "connection_string").filter(|_| used)?;
    connection::mongo(reader, &field)
}

fn columns(reader: &mut Reader<'_>, field: Field, variables: Option<usize>) -> Option<Vec<MongoField>> {
    let items = file::columns(reader, field, variables)?;
    let mut has_array = false;
    let mut columns = Vec::new();
    for item in items {
        let spot = item.spot;
        let Some(column) = column(reader, item) else { continue };
        if column.is_array && std::mem::replace(&mut has_array, true) {
            reader.problem(spot, "more than one field has \"is_array: true\"", "Unwind the second array in an aggregate, with $unwind.");
        }
        columns.push(column);
    }
    Some(columns)
}

/// `name`, or `{name: …, is_array: …}`.
fn column(reader: &mut Reader<'_>, item: Field) -> Option<MongoField> {
    if !matches!(item.node.value, Value::Map(_)) {
        let name = reader.literal(&item)?;
        return Some(MongoField { name, is_array: false });
    }
    let mut fields = reader.fields(item, &["name", "is_array"])?;
    let name = fields.require(reader, "name").and_then(|field| reader.literal(&field));
    let is_array = fields.take("is_array").and_then(|field| reader.boolean(&field)).unwrap_or(false);
    Some(MongoField { name: name?, is_array })
}

fn select(reader: &mut Reader<'_>, field: Field) -> Option<MongoSelect> {
    let spot = field.spot;
    let mut fields = reader.fields(field, &["find", "aggregate"])?;
    match (fields.take("find"), fields.take("aggregate")) {
        (Some(find), None) => match find.node.value {
            Value::Map(_) => json(reader, find).map(MongoSelect::Find),
            _ => {
                reader.wrong_kind(&find, "a mapping", "Write the filter document; {} selects every document.");
                None
            }
        },
        (None, Some(pipeline)) => aggregate(reader, pipeline).map(MongoSelect::Aggregate),
        (Some(_), Some(both)) => {
            reader.problem(
                both.spot,
                "\"query\" has both \"find\" and \"aggregate\"",
                "Keep one of them; $match does in a pipeline what find does.",
            );
            None
        }
        (None, None) => {
            reader.problem(
                spot,
                "\"query\" has neither \"find\" nor \"aggregate\"",
                "Write find: {} for every document, or remove \"query\".",
            );
            None
        }
    }
}

fn aggregate(reader: &mut Reader<'_>, pipeline: Field) -> Option<Vec<Json>> {
    let stages = reader.list(pipeline)?;
    let mut pipeline = Vec::new();
    let mut whole = true;
    for stage in stages {
        refuse_writes(reader, &stage.node);
        let is_stage = matches!(&stage.node.value, Value::Map(keys) if matches!(&keys[..], [(key, _)] if is_operator(key)));
        if !is_stage {
            reader.problem(
                stage.spot,
                "a stage of \"aggregate\" is not one operator",
                "Write each stage as {$operator: …}, one \"-\" per stage.",
            );
        }
        let stage = json(reader, stage);
        whole &= is_stage && stage.is_some();
        pipeline.extend(stage);
    }
    whole.then_some(pipeline)
}

fn is_operator(key: &Node) -> bool {
    matches!(&key.value, Value::Text(key) if key.starts_with('$'))
}

/// Also in the pipelines inside `$facet`, `$lookup`, `$unionWith`: anywhere.
fn refuse_writes(reader: &mut Reader<'_>, node: &Node) {
    match &node.value {
        Value::Null | Value::Boolean(_) | Value::Number(_) | Value::Text(_) | Value::Tagged => {}
        Value::List(items) => items.iter().for_each(|item| refuse_writes(reader, item)),
        Value::Map(entries) => {
            for (key, value) in entries {
                if let Value::Text(name) = &key.value
                    && WRITING_STAGES.contains(&name.as_str())
                {
                    reader.problem(key.spot, format!("\"{name}\" writes to the database"), "Remove the stage: a query only reads.");
                }
                refuse_writes(reader, value);
            }
        }
    }
}

/// The value as Extended JSON, keys in the order of the file.
fn json(reader: &mut Reader<'_>, field: Field) -> Option<Json> {
    match field.node.value {
        Value::Null => Some(Json::Null),
        Value::Boolean(value) => Some(Json::Bool(value)),
        Value::Text(text) => Some(Json::String(text)),
        Value::Number(number) => Some(json_number(&number)),
        Value::List(_) => {
            let items = reader.list(field)?;
            let items: Vec<_> = items.into_iter().map(|item| json(reader, item)).collect();
            items.into_iter().collect::<Option<_>>().map(Json::Array)
        }
        Value::Map(_) => {
            let fields = reader.entries(field)?;
            let fields: Vec<_> = fields.into_iter().map(|field| (field.key.clone(), json(reader, field))).collect();
            fields.into_iter().map(|(key, value)| Some((key, value?))).collect::<Option<_>>().map(Json::Object)
        }
        Value::Tagged => {
            reader.wrong_kind(&field, "plain YAML", "Write Extended JSON instead, as in {$oid: \"…\"}.");
            None
        }
    }
}

fn json_number(number: &serde_yaml::Number) -> Json {
    let infinite = |text: &str| serde_json::json!({ "$numberDouble": text });
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(integer), _, _) => integer.into(),
        (_, Some(integer), _) => integer.into(),
        (_, _, Some(float)) if float.is_finite() => float.into(),
        (_, _, Some(f64::INFINITY)) => infinite("Infinity"),
        (_, _, Some(f64::NEG_INFINITY)) => infinite("-Infinity"),
        _ => infinite("NaN"),
    }
}
