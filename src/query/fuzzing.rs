//! What a fuzz target needs of the node tree's reader and of the binder, which are private.
//!
//! Compiled with `--cfg fuzzing` only, by `fuzz/run.sh`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::query::{
    ViewPlan, bind,
    catalogue::{Catalogue, TableKind},
    tree::{Node, Tree},
};

/// What a server's catalogues said about the queries of a capture.
pub struct Names(pub(crate) Catalogue);

impl Names {
    /// Reads what [`Names::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(Self)
    }

    /// The type of a table's column, below its domains.
    pub fn type_of(&self, table: u32, attribute: i16) -> Option<u32> {
        let column = self.0.tables.get(&table)?.columns.get(&attribute)?;
        Some(self.0.base(column.type_oid))
    }

    /// All of them.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&self.0)
    }
}

/// The words of a tree in order, its number of nodes and its depth.
#[derive(Debug, PartialEq, Eq)]
pub struct Outline {
    /// Words, brackets and field names.
    pub words: Vec<String>,
    /// Nodes at any depth.
    pub nodes: usize,
    /// Items around the innermost one.
    pub depth: usize,
}

/// Reads a text, and all that can be asked of each of its nodes.
pub fn outline(text: &str) -> Result<Outline, String> {
    let tree = Tree::read(text).map_err(|error| error.to_string())?;
    let mut words = Vec::new();
    tree.words_without(&[], |word| words.push(word.to_owned()));
    let mut nodes = 0;
    for node in tree.nodes() {
        nodes += 1;
        ask(node);
    }
    Ok(Outline { words, nodes, depth: tree.depth() })
}

fn ask(node: Node<'_, '_>) {
    let names: Vec<&str> = node.names().collect();
    for name in names.into_iter().chain(["no_such_field"]) {
        let asked = (node.atom(name), node.number(name), node.words(name), node.bytes(name), node.child(name), node.node(name).is_some());
        assert!(asked.1.is_none() || asked.0.is_some(), "a number is a word");
        assert_eq!(asked.4.is_some(), asked.5, "a node is there once");
        assert!(node.has(name) || node.nodes(name).is_some_and(|nodes| nodes.is_empty()), "what is not there is no list of anything");
        let _ = node.lists(name);
    }
    assert_eq!(node.fields().count(), node.names().count());
}

/// Binds a text, if it is a tree.
pub fn bound(text: &str, names: &Names) -> Option<Result<ViewPlan, String>> {
    Tree::read(text).ok().map(|tree| bind(&tree, &names.0))
}

/// Which other kind of relation it is does not matter to a plan.
impl Serialize for TableKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Table => "table",
            Self::Partitioned => "partitioned",
            Self::Other(what) => what,
        })
    }
}

impl<'de> Deserialize<'de> for TableKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "table" => Self::Table,
            "partitioned" => Self::Partitioned,
            _ => Self::Other("another relation"),
        })
    }
}
