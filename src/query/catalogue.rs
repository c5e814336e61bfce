//! What the source's catalogues say about everything a query names: plain data, filled by whoever can ask the database.
//!
//! The numbers are OIDs. Nothing here decides what a query means; [`crate::query::bind()`] and [`crate::query::deparse`] do, and what
//! they cannot find here they refuse.

use std::collections::{BTreeMap, BTreeSet};

use crate::query::KeyClass;

/// `text`.
const TEXT: u32 = 25;
/// `character(n)`: the server calls its equality bytewise, but two that differ in trailing blanks are equal.
const BPCHAR: u32 = 1042;
/// `varchar`, which has the operators of `text`.
const VARCHAR: u32 = 1043;
/// `float4`, `float8` and `numeric`: -0 equals 0 and 1.0 equals 1.00.
const SPELLED_IN_MANY_WAYS: [u32; 3] = [700, 701, 1700];

/// Everything a query names.
#[derive(Debug, Clone, Default)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Catalogue {
    /// Types, with their bases and elements.
    pub(crate) types: BTreeMap<u32, Type>,
    /// Collations.
    pub(crate) collations: BTreeMap<u32, Collation>,
    /// Functions, also those behind operators and the types' input and output.
    pub(crate) functions: BTreeMap<u32, Function>,
    /// Operators.
    pub(crate) operators: BTreeMap<u32, Operator>,
    /// Tables with their families.
    pub(crate) tables: BTreeMap<u32, Table>,
    /// `server_version_num`.
    pub(crate) server_version: u32,
    /// Whether the database's encoding is UTF-8; in others texts count and compare otherwise than here.
    pub(crate) utf8: bool,
}

/// What kind of type it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) enum TypeKind {
    /// Neither of the others.
    Plain,
    /// An enum.
    Enum,
    /// A domain over [`Type::base`].
    Domain,
    /// An array of [`Type::element`].
    Array,
    /// A composite type, a range, a multirange or a pseudo-type.
    Other,
}

/// How a type's default equality relates to its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) enum EqualImage {
    /// Equal values have equal bytes (`btequalimage`).
    Always,
    /// They have under a deterministic collation (`btvarstrequalimage`).
    Deterministic,
    /// Nothing is promised.
    Never,
}

/// A type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Type {
    /// As SQL spells it, with its schema unless it is PostgreSQL's own, quoted where needed, without a modifier.
    pub(crate) sql: String,
    /// What it is.
    pub(crate) kind: TypeKind,
    /// `typcategory`.
    pub(crate) category: char,
    /// What a domain is over, at the end; else the type itself.
    pub(crate) base: u32,
    /// What an array holds; else 0.
    pub(crate) element: u32,
    /// `typlen`: -1 is any length.
    pub(crate) length: i16,
    /// Whether its datums are passed by value.
    pub(crate) by_value: bool,
    /// Whether equal values have equal bytes; a domain's is its base's.
    pub(crate) equal_image: EqualImage,
    /// `=` of its default btree operator class, 0 if it has none; a domain's is its base's.
    pub(crate) equality: u32,
    /// From text.
    pub(crate) input: u32,
    /// To text.
    pub(crate) output: u32,
    /// An enum's labels in order, each with the OID its datums have.
    pub(crate) labels: Vec<(u32, String)>,
}

/// A collation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Collation {
    /// As SQL spells it, with its schema, quoted where needed.
    pub(crate) sql: String,
    /// What people call it: the locale.
    pub(crate) locale: String,
    /// Whether only equal bytes are equal.
    pub(crate) deterministic: bool,
    /// Whether it is "C" or "POSIX": ordered byte by byte, and only ASCII has letters.
    pub(crate) c: bool,
    /// The version of what defines it, now.
    pub(crate) version: String,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Function {
    /// `schema.name`, for people.
    pub(crate) title: String,
    /// The same as SQL spells it, quoted where needed.
    pub(crate) sql: String,
    /// `i`, `s` or `v`.
    pub(crate) volatility: String,
    /// NULL for any NULL argument.
    pub(crate) strict: bool,
    /// Whether it returns a set.
    pub(crate) returns_set: bool,
    /// Neither PostgreSQL's nor an extension's.
    pub(crate) users: bool,
    /// Changes when it is redefined.
    pub(crate) version: String,
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Operator {
    /// Its schema, quoted where needed.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) name: String,
    /// Its function.
    pub(crate) function: u32,
    /// The types it takes; 0 for none.
    pub(crate) left: u32,
    /// The types it takes.
    pub(crate) right: u32,
    /// Whether it is an equality of a family with a default btree operator class.
    pub(crate) equality: bool,
    /// Whether it is `<` of one.
    pub(crate) less: bool,
    /// Whether it is `>` of one.
    pub(crate) greater: bool,
}

/// Which columns of an UPDATE's or DELETE's old row the change log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) enum ReplicaIdentity {
    /// The columns of the primary key or of the chosen index.
    Columns(BTreeSet<String>),
    /// All of them.
    Full,
    /// None: publishing the table would break the application's own UPDATEs and DELETEs.
    Missing,
}

/// What kind of relation a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableKind {
    /// Rows of its own.
    Table,
    /// Rows in its partitions.
    Partitioned,
    /// Anything that logical replication does not carry.
    Other(&'static str),
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// Its type, as `format_type` spells it with its modifier.
    pub(crate) type_name: String,
    /// Its type.
    pub(crate) type_oid: u32,
    /// Its type's modifier; -1 for none.
    pub(crate) typmod: i32,
    /// Its collation; 0 for none.
    pub(crate) collation: u32,
    /// Whether it is declared NOT NULL.
    pub(crate) not_null: bool,
    /// Whether it is computed from others.
    pub(crate) generated: bool,
    /// Whether a value may be stored out of line.
    pub(crate) toast: bool,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Table {
    /// Its schema.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: TableKind,
    /// Its own identity; a partitioned table's rows have that of their partition.
    pub(crate) identity: ReplicaIdentity,
    /// Columns that the index of its identity has besides, which old rows do not tell.
    #[cfg_attr(fuzzing, serde(default))]
    pub(crate) included: BTreeSet<String>,
    /// Its columns by attribute number, dropped ones left out.
    pub(crate) columns: BTreeMap<i16, Column>,
    /// The columns of each key that holds at every moment: unique, not deferrable, not partial, over columns that are NOT NULL.
    pub(crate) unique: Vec<BTreeSet<i16>>,
    /// Its partitions and inheritance children, at any depth.
    pub(crate) descendants: BTreeSet<u32>,
    /// The partitioned tables it is a partition of: changes are published under their names.
    pub(crate) ancestors: BTreeSet<u32>,
}

impl Table {
    /// `schema.name`, for messages.
    pub(crate) fn title(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Catalogue {
    /// Whether equal texts of a type under a collation (0 for none) mean equal values.
    pub(crate) fn key_class(&self, type_oid: u32, collation: u32) -> KeyClass {
        let Some(found) = self.types.get(&type_oid) else { return KeyClass::None };
        match found.base {
            BPCHAR if self.is_deterministic(collation) => KeyClass::Canonical,
            base if SPELLED_IN_MANY_WAYS.contains(&base) => KeyClass::Canonical,
            BPCHAR => KeyClass::None,
            _ => match found.equal_image {
                EqualImage::Always => KeyClass::Exact,
                EqualImage::Deterministic if self.is_deterministic(collation) => KeyClass::Exact,
                EqualImage::Deterministic | EqualImage::Never => KeyClass::None,
            },
        }
    }

    /// Whether only equal bytes are equal under a collation; 0 is none, of a type that has none.
    pub(crate) fn is_deterministic(&self, collation: u32) -> bool {
        self.collations.get(&collation).is_some_and(|collation| collation.deterministic)
    }

    /// What a domain is over, at the end; else the type itself.
    pub(crate) fn base(&self, type_oid: u32) -> u32 {
        self.types.get(&type_oid).map_or(type_oid, |found| found.base)
    }

    /// The type as SQL spells it, for messages too.
    pub(crate) fn type_sql(&self, type_oid: u32) -> &str {
        self.types.get(&type_oid).map_or("an unknown type", |found| &found.sql)
    }

    /// Whether values of one type, taken as the other without a function, keep their text.
    pub(crate) fn same_text(&self, from: u32, to: u32) -> bool {
        let (from, to) = (self.base(from), self.base(to));
        // bpchar prints its trailing blanks, and becomes text only through a function.
        let strings = |oid: u32| matches!(oid, TEXT | BPCHAR | VARCHAR);
        let elements = |oid: u32| self.types.get(&oid).map(|found| found.element).filter(|&element| element != 0);
        match (elements(from), elements(to)) {
            (Some(from), Some(to)) => from == to || (strings(from) && strings(to)),
            _ => from == to || (strings(from) && strings(to)),
        }
    }
}
