//! The place of every YAML value, as a tree in the shape of the document.

use std::{collections::BTreeMap, rc::Rc};

use saphyr_parser::{Event, Marker, Parser};

use crate::config::place::Spot;

/// How deep values may nest; serde_yaml's own limit, which has refused deeper files before.
const MAX_DEPTH: usize = 128;

/// Where a value begins, with the values in it; a mapping's keys and values alternate.
pub(super) struct Spots {
    pub(super) spot: Spot,
    children: Vec<Rc<Spots>>,
}

impl Spots {
    /// The first document's places, as far as they can be told, and where a second document begins.
    pub(super) fn read(text: &str) -> (Option<Rc<Self>>, Option<Spot>) {
        let lines = line_lengths(text.chars());
        let mut builder = Builder::default();
        let mut documents = 0;
        for event in Parser::new_from_str(text).map_while(Result::ok) {
            let spot = clamp(&lines, event.1.start);
            if matches!(event.0, Event::DocumentStart(_)) {
                documents += 1;
                if documents == 2 {
                    return (builder.finish(), Some(spot));
                }
            }
            if builder.open.len() > MAX_DEPTH {
                break;
            }
            builder.add(&event.0, spot);
        }
        (builder.finish(), None)
    }

    pub(super) fn child(&self, index: usize) -> Option<&Self> {
        self.children.get(index).map(AsRef::as_ref)
    }
}

#[derive(Default)]
struct Builder {
    /// The containers around the current event, each with the id of its anchor.
    open: Vec<(Spots, usize)>,
    anchors: BTreeMap<usize, Rc<Spots>>,
    root: Option<Rc<Spots>>,
}

impl Builder {
    fn add(&mut self, event: &Event<'_>, spot: Spot) {
        match event {
            Event::Scalar(_, _, anchor, _) => self.close(Spots { spot, children: Vec::new() }, *anchor),
            Event::Alias(anchor) => {
                let children = self.anchors.get(anchor).map(|target| target.children.clone()).unwrap_or_default();
                self.close(Spots { spot, children }, 0);
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                self.open.push((Spots { spot, children: Vec::new() }, *anchor));
            }
            Event::SequenceEnd | Event::MappingEnd => self.close_innermost(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
        }
    }

    fn close_innermost(&mut self) {
        if let Some((container, anchor)) = self.open.pop() {
            self.close(container, anchor);
        }
    }

    fn close(&mut self, spots: Spots, anchor: usize) {
        let spots = Rc::new(spots);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&spots));
        }
        match self.open.last_mut() {
            Some((container, _)) => container.children.push(spots),
            None => self.root = self.root.take().or(Some(spots)),
        }
    }

    fn finish(mut self) -> Option<Rc<Spots>> {
        while !self.open.is_empty() {
            self.close_innermost();
        }
        self.root
    }
}

impl Spot {
    /// The place of a byte offset.
    pub(super) fn of_byte(text: &str, offset: usize) -> Self {
        let lines = line_lengths(text.char_indices().take_while(|(at, _)| *at < offset).map(|(_, c)| c));
        Self { line: lines.len(), column: lines.last().map_or(1, |length| length + 1) }
    }
}

/// The characters of each line; there is at least one line.
fn line_lengths(text: impl Iterator<Item = char>) -> Vec<usize> {
    let mut lengths = vec![0];
    let mut previous = '\0';
    for c in text {
        match c {
            '\n' if previous == '\r' => {}
            '\n' | '\r' => lengths.push(0),
            _ => *lengths.last_mut().expect("there is at least one line") += 1,
        }
        previous = c;
    }
    lengths
}

/// Keeps a parser's place inside the file, whatever the parser says.
fn clamp(lines: &[usize], marker: Marker) -> Spot {
    let line = marker.line().clamp(1, lines.len());
    let column = (marker.col() + 1).min(lines[line - 1] + 1);
    Spot { line, column }
}
