//! Reads the text of a PostgreSQL node tree, as `debug_print_rewritten` prints it.
//!
//! The format is the one `nodeToString` writes (`src/backend/nodes/outfuncs.c`): `{TAG :field value …}`, lists in
//! parentheses, byte arrays in brackets, `<>` for nothing, a backslash before every special character of a name. The server
//! breaks the text into lines at spaces, which therefore mean nothing here.
//!
//! The result is an arena. Nothing recurses, neither reading nor dropping nor walking, so no nesting can overflow the stack,
//! and whoever looks for a kind of node finds it at any depth by one pass over [`Tree::nodes`].

/// The largest text read. The tree of a query of a thousand joins over hundred-column views stays below it.
const MAX_TEXT_BYTES: usize = 32 << 20;

/// A text that is no node tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not read the query tree the server printed: {problem} at byte {offset}")]
pub(crate) struct TreeError {
    problem: &'static str,
    offset: usize,
}

/// A whole text, read.
#[derive(Debug)]
pub(crate) struct Tree<'t> {
    items: Vec<Item<'t>>,
    /// The items that are in no other.
    roots: Vec<ItemId>,
}

/// Names an item of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ItemId(usize);

#[derive(Debug)]
enum Item<'t> {
    /// A word or a quoted string, escapes included.
    Atom(&'t str),
    /// `( … )` or `[ … ]`.
    List(Vec<ItemId>),
    /// `{TAG …}`.
    Node(Fields<'t>),
}

/// What a node holds: usually one item under each name.
#[derive(Debug)]
struct Fields<'t> {
    tag: &'t str,
    fields: Vec<(&'t str, Vec<ItemId>)>,
}

/// One node of a tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a, 't> {
    tree: &'a Tree<'t>,
    id: ItemId,
    fields: &'a Fields<'t>,
}

impl<'t> Tree<'t> {
    /// Reads `text`.
    pub(crate) fn read(text: &'t str) -> Result<Self, TreeError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TreeError { problem: "the text is too long", offset: MAX_TEXT_BYTES });
        }
        Reader { text, offset: 0, open: Vec::new(), items: Vec::new(), roots: Vec::new() }.read()
    }

    /// The node that the whole text is, also in a list of its own.
    pub(crate) fn root(&self) -> Option<Node<'_, 't>> {
        let [mut root] = self.roots[..] else { return None };
        if let Item::List(items) = &self.items[root.0] {
            let [only] = items[..] else { return None };
            root = only;
        }
        self.at(root)
    }

    /// How many items are around the innermost one.
    pub(crate) fn depth(&self) -> usize {
        // An item is added when it ends, so what it holds stands before it.
        let mut depths: Vec<usize> = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let inside = |ids: &mut dyn Iterator<Item = &ItemId>| ids.map(|id| depths[id.0] + 1).max().unwrap_or(0);
            depths.push(match item {
                Item::Atom(_) => 0,
                Item::List(items) => inside(&mut items.iter()),
                Item::Node(node) => inside(&mut node.fields.iter().flat_map(|(_, values)| values)),
            });
        }
        depths.into_iter().max().unwrap_or(0)
    }

    fn at(&self, id: ItemId) -> Option<Node<'_, 't>> {
        match &self.items[id.0] {
            Item::Node(fields) => Some(Node { tree: self, id, fields }),
            Item::Atom(_) | Item::List(_) => None,
        }
    }

    /// Every node, at any depth.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node<'_, 't>> {
        self.items.iter().enumerate().filter_map(|(index, item)| match item {
            Item::Node(fields) => Some(Node { tree: self, id: ItemId(index), fields }),
            Item::Atom(_) | Item::List(_) => None,
        })
    }
}

impl<'t> Tree<'t> {
    /// Calls `each` with every word, bracket and field name in order, but for the fields named in `left_out`.
    pub(crate) fn words_without(&self, left_out: &[&str], each: impl FnMut(&'t str)) {
        self.words_of(&self.roots, left_out, each);
    }

    fn words_of(&self, roots: &[ItemId], left_out: &[&str], mut each: impl FnMut(&'t str)) {
        enum Step<'t> {
            Item(ItemId),
            Word(&'t str),
        }
        let mut steps: Vec<Step<'t>> = roots.iter().rev().map(|id| Step::Item(*id)).collect();
        while let Some(step) = steps.pop() {
            let id = match step {
                Step::Word(word) => {
                    each(word);
                    continue;
                }
                Step::Item(id) => id,
            };
            match &self.items[id.0] {
                Item::Atom(word) => each(word),
                Item::List(items) => {
                    each("(");
                    steps.push(Step::Word(")"));
                    steps.extend(items.iter().rev().map(|id| Step::Item(*id)));
                }
                Item::Node(node) => {
                    each("{");
                    each(node.tag);
                    steps.push(Step::Word("}"));
                    for (name, values) in node.fields.iter().rev().filter(|(name, _)| !left_out.contains(name)) {
                        steps.extend(values.iter().rev().map(|id| Step::Item(*id)));
                        steps.push(Step::Word(name));
                    }
                }
            }
        }
    }
}

impl<'a, 't> Node<'a, 't> {
    /// Which node it is, so that two can be told apart.
    pub(crate) fn id(&self) -> ItemId {
        self.id
    }

    /// `QUERY`, `OPEXPR` and so on.
    pub(crate) fn tag(&self) -> &'t str {
        self.fields.tag
    }

    /// The single word under `name`.
    pub(crate) fn atom(&self, name: &str) -> Option<&'t str> {
        match self.tree.items[self.only(name)?.0] {
            Item::Atom(text) => Some(text),
            Item::List(_) | Item::Node(_) => None,
        }
    }

    /// The number under `name`; `None` also for what is none.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.atom(name)?.parse().ok()
    }

    /// The words of the list under `name`, such as `(b 8 9)` and `(o 96)`.
    pub(crate) fn words(&self, name: &str) -> Option<Vec<&'t str>> {
        let Item::List(items) = &self.tree.items[self.only(name)?.0] else { return None };
        let words = items.iter().map(|id| match self.tree.items[id.0] {
            Item::Atom(text) => Some(text),
            Item::List(_) | Item::Node(_) => None,
        });
        words.collect()
    }

    /// The node under `name`.
    pub(crate) fn child(&self, name: &str) -> Option<ItemId> {
        self.only(name).filter(|id| matches!(self.tree.items[id.0], Item::Node(_)))
    }

    /// The node under `name`, with its fields.
    pub(crate) fn node(&self, name: &str) -> Option<Node<'a, 't>> {
        self.tree.at(self.only(name)?)
    }

    /// The nodes of the list under `name`; none for `<>` or no such field, `None` if it holds anything but nodes.
    pub(crate) fn nodes(&self, name: &str) -> Option<Vec<Node<'a, 't>>> {
        if !self.has(name) {
            return Some(Vec::new());
        }
        let Item::List(items) = &self.tree.items[self.only(name)?.0] else { return None };
        items.iter().map(|id| self.tree.at(*id)).collect()
    }

    /// Every node in its fields, those in lists too, in order.
    pub(crate) fn children(&self) -> Vec<Node<'a, 't>> {
        let mut found = Vec::new();
        let mut steps: Vec<ItemId> = self.fields.fields.iter().rev().flat_map(|(_, values)| values.iter().rev().copied()).collect();
        while let Some(id) = steps.pop() {
            match &self.tree.items[id.0] {
                Item::Node(fields) => found.push(Node { tree: self.tree, id, fields }),
                Item::List(items) => steps.extend(items.iter().rev()),
                Item::Atom(_) => {}
            }
        }
        found
    }

    /// Its words as [`Tree::words_without`] gives those of the whole: equal for expressions that mean the same.
    pub(crate) fn signature(&self, left_out: &[&str]) -> String {
        let mut text = String::new();
        self.tree.words_of(&[self.id], left_out, |word| {
            text.push_str(word);
            text.push(' ');
        });
        text
    }

    /// The lists of nodes of the list under `name`, such as the rows of VALUES.
    pub(crate) fn lists(&self, name: &str) -> Option<Vec<Vec<Node<'a, 't>>>> {
        let Item::List(lists) = &self.tree.items[self.only(name)?.0] else { return None };
        let lists = lists.iter().map(|id| match &self.tree.items[id.0] {
            Item::List(items) => items.iter().map(|id| self.tree.at(*id)).collect(),
            Item::Atom(_) | Item::Node(_) => None,
        });
        lists.collect()
    }

    /// The bytes under `name`, such as `4 [ 1 0 0 -7 ]`.
    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let [_, list] = self.field(name)? else { return None };
        let Item::List(items) = &self.tree.items[list.0] else { return None };
        let bytes = items.iter().map(|id| match self.tree.items[id.0] {
            Item::Atom(text) => {
                text.parse::<i16>().ok().and_then(|byte| i8::try_from(byte).map(i8::cast_unsigned).or(u8::try_from(byte)).ok())
            }
            Item::List(_) | Item::Node(_) => None,
        });
        bytes.collect()
    }

    /// The words of every field of its own, to see whether one has another value than expected: `None` for what is no single word.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'t str, Option<&'t str>)> {
        self.fields.fields.iter().map(|(name, values)| match values[..] {
            [id] => match self.tree.items[id.0] {
                Item::Atom(text) => (*name, Some(text)),
                Item::List(_) | Item::Node(_) => (*name, None),
            },
            _ => (*name, None),
        })
    }

    /// Whether there is anything under `name`: it exists and is not `<>`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.field(name).is_some_and(|_| self.atom(name) != Some("<>"))
    }

    /// The names of its fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'t str> {
        self.fields.fields.iter().map(|(name, _)| *name)
    }

    fn only(&self, name: &str) -> Option<ItemId> {
        match self.field(name)? {
            [id] => Some(*id),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> Option<&'a [ItemId]> {
        self.fields.fields.iter().find(|(found, _)| *found == name).map(|(_, values)| values.as_slice())
    }
}

/// A list or node whose end has not been seen.
enum Open<'t> {
    List(u8, Vec<ItemId>),
    Node(Fields<'t>),
}

struct Reader<'t> {
    text: &'t str,
    offset: usize,
    open: Vec<Open<'t>>,
    items: Vec<Item<'t>>,
    roots: Vec<ItemId>,
}

impl<'t> Reader<'t> {
    fn read(mut self) -> Result<Tree<'t>, TreeError> {
        loop {
            self.skip_space();
            let Some(&byte) = self.text.as_bytes().get(self.offset) else { break };
            match byte {
                b'(' | b'[' => self.start(Open::List(if byte == b'(' { b')' } else { b']' }, Vec::new())),
                b'{' => self.start_node()?,
                b')' | b']' | b'}' => self.end(byte)?,
                _ => self.word()?,
            }
        }
        if self.open.is_empty() { Ok(Tree { items: self.items, roots: self.roots }) } else { Err(self.error("the text ends too early")) }
    }

    fn start(&mut self, open: Open<'t>) {
        self.offset += 1;
        self.open.push(open);
    }

    fn start_node(&mut self) -> Result<(), TreeError> {
        self.offset += 1;
        self.skip_space();
        let tag = self.take_word();
        if tag.is_empty() {
            return Err(self.error("a node has no name"));
        }
        self.open.push(Open::Node(Fields { tag, fields: Vec::new() }));
        Ok(())
    }

    fn end(&mut self, byte: u8) -> Result<(), TreeError> {
        let item = match self.open.pop() {
            Some(Open::List(close, items)) if close == byte => Item::List(items),
            Some(Open::Node(fields)) if byte == b'}' => Item::Node(fields),
            Some(Open::List(..) | Open::Node(_)) | None => return Err(self.error("a bracket does not fit")),
        };
        self.offset += 1;
        self.add(item)
    }

    fn word(&mut self) -> Result<(), TreeError> {
        let word = self.take_word();
        if let (Some(Open::Node(node)), Some(name)) = (self.open.last_mut(), word.strip_prefix(':')) {
            node.fields.push((name, Vec::new()));
            return Ok(());
        }
        self.add(Item::Atom(word))
    }

    fn add(&mut self, item: Item<'t>) -> Result<(), TreeError> {
        let id = ItemId(self.items.len());
        self.items.push(item);
        match self.open.last_mut() {
            None => {
                self.roots.push(id);
                Ok(())
            }
            Some(Open::List(_, items)) => {
                items.push(id);
                Ok(())
            }
            Some(Open::Node(node)) => match node.fields.last_mut() {
                Some((_, values)) => {
                    values.push(id);
                    Ok(())
                }
                None => Err(self.error("a value has no field")),
            },
        }
    }

    /// A quoted string up to its closing quote, or everything up to a space or bracket; a backslash hides what follows it.
    fn take_word(&mut self) -> &'t str {
        let bytes = self.text.as_bytes();
        let start = self.offset;
        let quoted = bytes.get(start) == Some(&b'"');
        let mut end = start + usize::from(quoted);
        while let Some(&byte) = bytes.get(end) {
            match byte {
                b'\\' => end += 2,
                b'"' if quoted => {
                    end += 1;
                    break;
                }
                b'(' | b')' | b'{' | b'}' | b'[' | b']' if !quoted => break,
                _ if !quoted && byte.is_ascii_whitespace() => break,
                _ => end += 1,
            }
        }
        // A backslash may hide the first byte of a longer character, or be the last byte of all.
        end = end.min(bytes.len());
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        self.offset = end;
        &self.text[start..end]
    }

    fn skip_space(&mut self) {
        let rest = &self.text.as_bytes()[self.offset..];
        self.offset += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    }

    fn error(&self, problem: &'static str) -> TreeError {
        TreeError { problem, offset: self.offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tree_gives_its_nodes_their_words_and_lists() {
        let text = r#"({QUERY :commandType 1 :utilityStmt <> :rtable ({RANGETBLENTRY :alias {ALIAS :aliasname my\ old\
:colnames ("a b" "c\"")} :rtekind 0 :relid 16391 :selectedCols (b 8
9)}) :constvalue 4 [ 1 0 -7 ]})"#;
        let tree = Tree::read(text).expect("a tree");
        let tags: Vec<_> = tree.nodes().map(|node| node.tag()).collect();
        assert_eq!(tags, ["ALIAS", "RANGETBLENTRY", "QUERY"]);
        let entry = tree.nodes().nth(1).expect("an entry");
        assert_eq!(entry.number("relid"), Some(16391));
        assert_eq!(entry.words("selectedCols"), Some(vec!["b", "8", "9"]));
        assert_eq!(entry.child("alias"), Some(tree.nodes().next().expect("an alias").id()));
        let query = tree.nodes().nth(2).expect("a query");
        assert!(query.has("rtable") && !query.has("utilityStmt") && !query.has("no_such_field"));
    }

    #[test]
    fn words_come_in_order_without_the_fields_left_out() {
        let tree = Tree::read("({A :x 1 :y {B :x (2 3)} :z [ 4 ]})").expect("a tree");
        let mut words = Vec::new();
        tree.words_without(&["x"], |word| words.push(word));
        assert_eq!(words.join(" "), "( { A y { B } z ( 4 ) } )");
    }

    #[test]
    fn what_is_no_tree_is_an_error_with_its_place() {
        for (text, offset) in [("({QUERY :a 1)", 12), ("({QUERY :a 1}", 13), (")", 0), ("{ }", 2), ("{T 1}", 4), ("(]", 1)] {
            assert_eq!(Tree::read(text).expect_err(text).offset, offset, "{text}");
        }
    }

    #[test]
    fn no_nesting_overflows_the_stack() {
        let deep = 1_000_000;
        let text = format!("{}{}", "(".repeat(deep), ")".repeat(deep));
        assert_eq!(Tree::read(&text).expect("a tree").items.len(), deep);
        assert!(Tree::read(&"{A :b ".repeat(deep)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"[(){}\[\] :a"\\é<>\n0-9]{0,60}"#) {
            if let Ok(tree) = Tree::read(&text) {
                for node in tree.nodes() {
                    let _ = (node.atom("a"), node.words("a"), node.number("0"), node.child("a"));
                }
            }
        }
    }
}
