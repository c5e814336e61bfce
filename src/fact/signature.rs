//! Signatures: `has_relation(Repository:_, String:parent, Organization:_)`.
//!
//! The grammar, read off Oso's documentation and public sample configurations:
//!
//! ```text
//! signature := predicate "(" argument { "," argument } ")"      spaces are free
//! argument  := type ":" ( "_" | constant ) | constant           a bare constant is a String
//! constant  := any text without "," "(" ")", split from its type at the first ":"
//! ```

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::{
    data::Row,
    fact::{Fact, MAX_ARGUMENTS, Pattern, PatternValue, Value, ValueError},
};

/// One argument of a signature.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Argument {
    /// `Type:_`, filled by a column.
    Variable {
        /// The type every value of the column gets.
        type_name: String,
    },
    /// `Type:id`, the same in every fact.
    Constant(Value),
}

impl Argument {
    /// The argument's type.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Variable { type_name } => type_name,
            Self::Constant(value) => &value.type_name,
        }
    }
}

/// A fact type: all facts of one shape, claimed by one query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactType {
    /// The facts' name.
    pub predicate: String,
    /// One to [`MAX_ARGUMENTS`] arguments.
    pub args: Vec<Argument>,
}

/// Why a row makes no fact. It is counted and shown, and never stops other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum SkipReason {
    /// SQL NULL, or a missing field.
    #[error("an argument is NULL")]
    Null,
    /// The value cannot be an id of its type.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// A text that is no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not read \"{signature}\" as a fact type: {problem}")]
pub struct SignatureError {
    signature: String,
    problem: String,
}

impl FactType {
    /// How many columns the query must have.
    pub fn variables(&self) -> usize {
        self.args.iter().filter(|arg| matches!(arg, Argument::Variable { .. })).count()
    }

    /// The fact that `row` stands for: where a row becomes a fact.
    ///
    /// The row must have as many cells as there are variables; the configuration check and the sources see to that.
    pub fn fact(&self, row: &Row) -> Result<Fact, SkipReason> {
        let cells = row.cells();
        assert_eq!(cells.len(), self.variables(), "a row must have a cell for every variable");
        let mut cells = cells.into_iter();
        let args = self.args.iter().map(|arg| match arg {
            Argument::Constant(value) => Ok(value.clone()),
            Argument::Variable { type_name } => {
                let id = cells.next().flatten().ok_or(SkipReason::Null)?;
                Value::check(type_name, &id)?;
                Ok(Value::new(type_name, id))
            }
        });
        Ok(Fact { predicate: self.predicate.clone(), args: args.collect::<Result<_, SkipReason>>()? })
    }

    /// Whether `row` makes a fact, without building it.
    pub fn admits(&self, row: &Row) -> Result<(), SkipReason> {
        let variables = self.args.iter().filter_map(|arg| match arg {
            Argument::Variable { type_name } => Some(type_name),
            Argument::Constant(_) => None,
        });
        let mut cells = row.texts();
        for type_name in variables {
            let cell = cells.next().expect("a row must have a cell for every variable");
            Value::check(type_name, &cell.ok_or(SkipReason::Null)?)?;
        }
        assert_eq!(cells.next(), None, "a row must have a cell for every variable");
        Ok(())
    }

    /// The fact whose row is `row`, as a fact store may hold it: with whatever ids. For what was checked before, and for deletes,
    /// which must reach also what we would not have written.
    ///
    /// Like [`FactType::fact`] it asks for a cell for every variable, none of them NULL.
    pub fn stored_fact(&self, row: &Row) -> Fact {
        let mut cells = row.cells().into_iter();
        let args = self.args.iter().map(|arg| match arg {
            Argument::Constant(value) => value.clone(),
            Argument::Variable { type_name } => Value::new(type_name, cells.next().flatten().expect("a stored row has every cell")),
        });
        let fact = Fact { predicate: self.predicate.clone(), args: args.collect() };
        assert_eq!(cells.next(), None, "a row must have a cell for every variable");
        fact
    }

    /// The row that makes `fact`, or `None` if the fact is not of this type.
    pub fn row(&self, fact: &Fact) -> Option<Row> {
        self.row_of(&fact.predicate, fact.args.iter().map(|value| (value.type_name.as_str(), value.id.as_str())))
    }

    /// [`FactType::row`] of a fact in pieces, its arguments being types and ids: a listing has no use for the fact itself.
    pub fn row_of<'a>(&self, predicate: &str, values: impl ExactSizeIterator<Item = (&'a str, &'a str)>) -> Option<Row> {
        if predicate != self.predicate || values.len() != self.args.len() {
            return None;
        }
        let (mut ids, mut count) = ([""; MAX_ARGUMENTS], 0);
        for (arg, (found, id)) in self.args.iter().zip(values) {
            match arg {
                Argument::Constant(constant) if constant.type_name == found && constant.id == id => {}
                Argument::Variable { type_name } if type_name == found => {
                    ids[count] = id;
                    count += 1;
                }
                Argument::Constant(_) | Argument::Variable { .. } => return None,
            }
        }
        Some(Row::from_texts(ids[..count].iter().copied()))
    }

    /// The pattern that selects exactly the facts of this type.
    pub fn pattern(&self) -> Pattern {
        let args = self.args.iter().map(|arg| PatternValue {
            type_name: Some(arg.type_name().to_owned()),
            id: match arg {
                Argument::Constant(value) => Some(value.id.clone()),
                Argument::Variable { .. } => None,
            },
        });
        Pattern { predicate: self.predicate.clone(), args: args.collect() }
    }
}

/// The canonical spelling: every type written out, one space after each comma.
impl fmt::Display for FactType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.predicate)?;
        for (index, arg) in self.args.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            match arg {
                Argument::Variable { type_name } => write!(f, "{type_name}:_")?,
                Argument::Constant(value) => value.fmt(f)?,
            }
        }
        f.write_str(")")
    }
}

/// As Oso Sync prints a fact type: expanded, with `null` for the variables.
impl Serialize for FactType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pattern().serialize(serializer)
    }
}

impl FromStr for FactType {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|problem| SignatureError { signature: shown(text).into_owned(), problem })
    }
}

/// Characters of a text that an error repeats: more than those of any signature that is meant as one.
const SHOWN_CHARS: usize = 200;

/// A text for an error: its beginning, if it is long.
fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

fn parse(text: &str) -> Result<FactType, String> {
    let (predicate, rest) = text.split_once('(').ok_or("expected \"(\" after the predicate, as in has_role(User:_, admin)")?;
    let predicate = identifier(predicate.trim(), "predicate")?;
    let inside = rest.trim_end().strip_suffix(')').ok_or("expected \")\" at the end")?;
    if inside.contains(['(', ')']) {
        return Err("parentheses cannot stand inside an argument".into());
    }
    if inside.trim().is_empty() {
        return Err("a fact needs at least one argument".into());
    }
    let args = inside.split(',').map(|arg| argument(arg.trim())).collect::<Result<Vec<_>, _>>()?;
    if args.len() > MAX_ARGUMENTS {
        return Err(format!("it has {} arguments; a fact has at most {MAX_ARGUMENTS}", args.len()));
    }
    Ok(FactType { predicate, args })
}

fn argument(text: &str) -> Result<Argument, String> {
    let (type_name, id) = match text.split_once(':') {
        Some((type_name, id)) => (identifier(type_name.trim(), "type")?, id.trim()),
        None if text == "_" => return Err("\"_\" needs a type, as in User:_".into()),
        None if text.is_empty() => return Err("an argument is empty".into()),
        None => ("String".to_owned(), text),
    };
    if id == "_" {
        return Ok(Argument::Variable { type_name });
    }
    Value::check(&type_name, id).map_err(|error| format!("in the constant \"{}\" {error}", shown(text)))?;
    Ok(Argument::Constant(Value::new(type_name, id)))
}

fn identifier(text: &str, what: &str) -> Result<String, String> {
    let mut chars = text.chars();
    let starts = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
    if text == "_" || !starts || !chars.all(|c| c.is_alphanumeric() || "_-.".contains(c)) {
        return Err(format!("\"{}\" is not a {what}; expected letters, digits and \"_\"", shown(text)));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact_type(text: &str) -> FactType {
        text.parse().expect(text)
    }

    #[test]
    fn the_forms_of_real_files_are_read() {
        for (text, canonical, variables) in [
            ("has_relation(Repository:_, String:parent, Organization:_)", "has_relation(Repository:_, String:parent, Organization:_)", 2),
            ("has_relation(User:_, direct_manager, User:_)", "has_relation(User:_, String:direct_manager, User:_)", 2),
            ("is_protected (Repository:_ ,Boolean:true)", "is_protected(Repository:_, Boolean:true)", 1),
            ("has_level(User:_, Integer:3)", "has_level(User:_, Integer:3)", 1),
            (" f( User : arn:aws:iam )", "f(User:arn:aws:iam)", 0),
            ("has_role(User:_, String:_)", "has_role(User:_, String:_)", 2),
        ] {
            assert_eq!(fact_type(text).to_string(), canonical);
            assert_eq!(fact_type(text).variables(), variables, "{text}");
            assert_eq!(fact_type(canonical), fact_type(text));
        }
    }

    #[test]
    fn what_is_no_signature_is_refused_with_the_reason() {
        for (text, want) in [
            ("has_role", "expected \"(\""),
            ("has_role(User:_", "expected \")\""),
            ("has_role()", "at least one argument"),
            ("has_role(_)", "needs a type"),
            ("has_role(User:_,)", "an argument is empty"),
            ("has_role(:_)", "not a type"),
            ("9f(User:_)", "not a predicate"),
            ("f(a, b, c, d, e, f)", "at most 5"),
            ("f(Boolean:yes)", "neither"),
            ("f(Integer:007)", "64-bit integer"),
            ("f(User:)", "empty"),
            ("f((User:_))", "parentheses"),
        ] {
            let error = text.parse::<FactType>().expect_err(text).to_string();
            assert!(error.contains(want) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_megabyte() {
        let long = "é".repeat(1 << 19);
        for text in [long.clone(), format!("f({long}:_"), format!("f(User:{long}")] {
            let error = text.parse::<FactType>().expect_err("too long").to_string();
            assert!(error.len() < 1000 && error.contains("é…\""), "{} bytes", error.len());
        }
    }

    #[test]
    fn a_row_becomes_a_fact_and_back() {
        let fact_type = fact_type("has_relation(Repository:_, parent, Organization:_)");
        let row = Row::from_texts(["1", "2"]);
        let fact = fact_type.fact(&row).expect("a fact");
        assert_eq!(fact.to_string(), "has_relation(Repository:1, String:parent, Organization:2)");
        assert_eq!(fact_type.row(&fact), Some(row));
        assert!(fact_type.pattern().matches(&fact));
    }

    #[test]
    fn a_fact_of_another_arity_type_or_constant_has_no_row_here() {
        let owner = fact_type("has_relation(Repository:_, parent, Organization:_)");
        for other in [
            "has_relation(Repository:1, owner, Organization:2)",
            "has_relation(Repository:1, parent)",
            "f(Repository:1, parent, Organization:2)",
            "has_relation(Repo:1, parent, Organization:2)",
        ] {
            let concrete = fact_type(other);
            let fact = concrete.fact(&Row::from_texts([])).expect("all constant");
            assert_eq!(owner.row(&fact), None, "{other}");
        }
    }

    #[test]
    fn a_stored_fact_has_its_row_also_with_an_id_we_would_not_write() {
        let level = fact_type("has_level(User:_, parent, Integer:_)");
        let row = Row::from_texts(["*", "007"]);
        assert!(level.fact(&row).is_err());
        let fact = level.stored_fact(&row);
        assert_eq!(fact.to_string(), "has_level(User:*, String:parent, Integer:007)");
        assert_eq!(level.row(&fact), Some(row));
    }

    #[test]
    fn a_null_makes_no_fact() {
        let fact_type = fact_type("f(User:_)");
        assert_eq!(fact_type.fact(&Row::from_cells([None])), Err(SkipReason::Null));
        assert_eq!(fact_type.fact(&Row::from_texts([""])), Err(SkipReason::Value(ValueError::Empty)));
    }
}
