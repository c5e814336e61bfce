//! Random tables: every kind of replica identity, a partitioned one, one with a value stored out of line, foreign keys, a view.

use std::fmt::Write;

use crate::support::github::Random;

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Int,
    Uuid,
    Text,
    Bool,
    Numeric,
    Time,
    Json,
    Mood,
    Texts,
}

/// A column by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) of: Type,
}

/// How a table is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One table with a primary key.
    Keyed,
    /// Without a key: rows may be equal, and old rows come whole.
    Bag,
    /// With a primary key, and old rows come whole all the same.
    KeyedFull,
    /// Hash partitions on the first column of the key, published as one table.
    Partitioned,
}

/// A table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) layout: Layout,
    /// The key first.
    pub(crate) columns: Vec<Column>,
    /// How many columns are the primary key.
    pub(crate) keys: usize,
    /// Whether there is a column `big`, stored out of line.
    pub(crate) big: bool,
    /// Whether there is a last column `unused`, with a default, that nobody reads or writes.
    pub(crate) unused: bool,
    /// Column `p` references `k0` of this table; what happens on delete.
    pub(crate) parent: Option<(String, &'static str)>,
}

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    pub(crate) tables: Vec<Table>,
    /// Views, each with its columns and its query.
    pub(crate) views: Vec<(String, Vec<Column>, String)>,
}

impl Type {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Uuid => "uuid",
            Self::Text => "text",
            Self::Bool => "boolean",
            Self::Numeric => "numeric",
            Self::Time => "timestamptz",
            Self::Json => "jsonb",
            Self::Mood => "mood",
            Self::Texts => "text[]",
        }
    }

    /// The whole domain. Of numeric and timestamptz two values are equal and look different.
    pub(crate) fn literals(self) -> &'static [&'static str] {
        match self {
            Self::Int => &["0", "1", "2"],
            Self::Uuid => &[
                "'00000000-0000-0000-0000-00000000000a'::uuid",
                "'00000000-0000-0000-0000-00000000000b'::uuid",
                "'10000000-0000-0000-0000-000000000000'::uuid",
            ],
            Self::Text => &["'x'", "'X'", "'y '"],
            Self::Bool => &["true", "false"],
            Self::Numeric => &["1.0", "1.00", "-2"],
            Self::Time => &["'2024-06-01 10:00:00+00'::timestamptz", "'2024-06-01 12:00:00+02'::timestamptz", "'infinity'::timestamptz"],
            Self::Json => &[r#"'{"k": "x", "l": ["x", "y", null]}'::jsonb"#, r#"'{"k": null}'::jsonb"#, r#"'{"l": [], "k": 1}'::jsonb"#],
            Self::Mood => &["'low'::mood", "'mid'::mood", "'high'::mood"],
            Self::Texts => &["'{x,y}'::text[]", "'{}'::text[]", r#"'{x,NULL,"a b"}'::text[]"#],
        }
    }

    /// Whether `=` on it may join, group and tell rows apart.
    pub(crate) fn is_key(self) -> bool {
        !matches!(self, Self::Json | Self::Texts)
    }

    /// Whether equal values print alike, too.
    pub(crate) fn is_exact(self) -> bool {
        self.is_key() && !matches!(self, Self::Numeric)
    }

    /// A value, one time in four NULL.
    pub(crate) fn value(self, random: &mut Random) -> String {
        if random.chance(4) { "NULL".into() } else { (*random.one(self.literals())).into() }
    }
}

impl Column {
    pub(crate) fn new(name: impl Into<String>, of: Type) -> Self {
        Self { name: name.into(), of }
    }
}

impl Table {
    fn new(random: &mut Random, name: String, parents: &[Self]) -> Self {
        let layout = *random.one(&[Layout::Keyed, Layout::Keyed, Layout::Bag, Layout::KeyedFull, Layout::Partitioned]);
        let keys = match layout {
            Layout::Bag => 0,
            Layout::Keyed | Layout::KeyedFull | Layout::Partitioned => 1 + random.below(4) as usize / 3,
        };
        let key_types = [Type::Int, Type::Int, Type::Uuid, Type::Text];
        let mut columns: Vec<Column> = (0..keys).map(|key| Column::new(format!("k{key}"), *random.one(&key_types))).collect();
        columns.extend([Column::new("c0", Type::Int), Column::new("c1", Type::Int)]);
        let types = [Type::Uuid, Type::Text, Type::Bool, Type::Numeric, Type::Time, Type::Json, Type::Mood, Type::Texts];
        columns.extend((2..4 + random.below(3)).map(|number| Column::new(format!("c{number}"), *random.one(&types))));
        let candidates: Vec<&Self> = parents.iter().filter(|table| table.keys == 1).collect();
        let parent = match candidates.as_slice() {
            [] => None,
            _ if random.chance(2) => None,
            some => Some(*random.one(some)),
        };
        columns.extend(parent.map(|parent| Column::new("p", parent.columns[0].of)));
        let big = random.chance(3);
        let parent = parent.map(|parent| (parent.name.clone(), *random.one(&["CASCADE", "SET NULL"])));
        Self { name, layout, columns, keys, big, unused: false, parent }
    }

    /// The columns of the primary key.
    pub(crate) fn key(&self) -> &[Column] {
        &self.columns[..self.keys]
    }

    /// What can be updated without touching the key.
    pub(crate) fn payload(&self) -> &[Column] {
        &self.columns[self.keys..]
    }

    fn ddl(&self) -> String {
        let mut lines: Vec<String> = self.columns.iter().map(|column| format!("{} {}", column.name, column.of.sql())).collect();
        lines.extend(self.big.then(|| "big text".to_owned()));
        lines.extend(self.unused.then(|| "unused timestamptz DEFAULT clock_timestamp()".to_owned()));
        if self.keys > 0 {
            let key: Vec<&str> = self.key().iter().map(|column| column.name.as_str()).collect();
            lines.push(format!("PRIMARY KEY ({})", key.join(", ")));
        }
        if let Some((parent, action)) = &self.parent {
            lines.push(format!("FOREIGN KEY (p) REFERENCES {parent} (k0) ON UPDATE CASCADE ON DELETE {action}"));
        }
        let name = &self.name;
        let mut ddl = format!("CREATE TABLE {name} ({})", lines.join(", "));
        match self.layout {
            Layout::Keyed => ddl.push_str(";\n"),
            Layout::Bag | Layout::KeyedFull => write!(ddl, ";\nALTER TABLE {name} REPLICA IDENTITY FULL;\n").expect("a text"),
            Layout::Partitioned => {
                ddl.push_str(" PARTITION BY HASH (k0);\n");
                for part in 0..2 {
                    let bound = format!("FOR VALUES WITH (MODULUS 2, REMAINDER {part})");
                    writeln!(ddl, "CREATE TABLE {name}_{part} PARTITION OF {name} {bound};").expect("a text");
                }
            }
        }
        if self.big {
            writeln!(ddl, "ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;").expect("a text");
        }
        ddl
    }
}

impl Schema {
    /// Two to four tables, the later ones perhaps with a foreign key to an earlier one; and a view over one of them.
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut tables = Vec::new();
        for number in 0..2 + random.below(3) {
            tables.push(Table::new(random, format!("t{number}"), &tables));
        }
        let table = random.one(&tables);
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let condition = *random.one(&["c0 > 0", "c0 IS DISTINCT FROM c1", "c1 IS NOT NULL"]);
        let query = format!("SELECT {} FROM {} WHERE {condition}", names.join(", "), table.name);
        let views = vec![("v0".to_owned(), table.columns.clone(), query)];
        Self { tables, views }
    }

    /// Creates everything.
    pub(crate) fn ddl(&self) -> String {
        let mut ddl = String::from("CREATE TYPE mood AS ENUM ('low', 'mid', 'high');\n");
        self.tables.iter().for_each(|table| ddl.push_str(&table.ddl()));
        ddl + &self.views_ddl()
    }

    /// The same columns without keys, references and partitions: what applies a change log in place of the application.
    pub(crate) fn shadow_ddl(&self) -> String {
        let mut ddl = String::from("CREATE TYPE mood AS ENUM ('low', 'mid', 'high');\n");
        for table in &self.tables {
            let mut columns: Vec<String> = table.columns.iter().map(|column| format!("{} {}", column.name, column.of.sql())).collect();
            columns.extend(table.big.then(|| "big text".to_owned()));
            writeln!(ddl, "CREATE TABLE {} ({});", table.name, columns.join(", ")).expect("a text");
        }
        ddl + &self.views_ddl()
    }

    fn views_ddl(&self) -> String {
        self.views.iter().map(|(name, _, query)| format!("CREATE VIEW {name} AS {query};\n")).collect()
    }
}
