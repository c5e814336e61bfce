//! Signatures: `has_role(User:_, String:admin)`.
//!
//! The input's first two lines are signatures, the third has the cells of a row, tabs between them.

use factsync::{
    data::Row,
    fact::{Fact, FactType},
};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let (first, second, cells) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let (first, second) = (parse(first), parse(second));
    if let Some(first) = &first {
        let cells: Vec<Option<&str>> = cells.split('\t').map(|cell| Some(cell).filter(|cell| *cell != "\\N")).collect();
        let fact = row(first, &cells);
        if let (Some(second), Some(fact)) = (&second, &fact) {
            // A fact that both claim is an overlap.
            assert!(second.row(fact).is_none() || first.overlap(second).is_some(), "{fact} is of {first} and of {second}");
        }
    }
    if let (Some(first), Some(second)) = (first, second) {
        overlap(&first, &second);
    }
}

/// What is read is written so that it is read again.
fn parse(text: &str) -> Option<FactType> {
    let read = match text.parse::<FactType>() {
        Ok(read) => read,
        Err(error) => {
            assert!(error.to_string().len() < 1000, "an error of {} bytes", error.to_string().len());
            return None;
        }
    };
    let written = read.to_string();
    assert_eq!(written.parse::<FactType>().as_ref(), Ok(&read), "{written}");
    assert!((1..=5).contains(&read.args.len()) && read.variables() <= read.args.len(), "{written}");
    assert_eq!(read.pattern().args.iter().filter(|arg| arg.id.is_none()).count(), read.variables(), "{written}");
    let of_itself = read.overlap(&read).unwrap_or_else(|| panic!("{written} claims nothing"));
    assert!(read.pattern().matches(&of_itself), "{written} and {of_itself}");
    Some(read)
}

/// A row of the right width makes a fact that has this row, or none for a reason.
fn row(of: &FactType, cells: &[Option<&str>]) -> Option<Fact> {
    let row = Row::from_cells((0..of.variables()).map(|index| cells.get(index).copied().flatten()));
    let fact = match (of.fact(&row), of.admits(&row)) {
        (Ok(fact), Ok(())) => fact,
        (Err(a), Err(b)) => {
            assert_eq!(a, b, "{of}");
            return None;
        }
        (fact, admitted) => panic!("{of}: {fact:?}, but {admitted:?}"),
    };
    assert_eq!(of.row(&fact).as_ref(), Some(&row), "{of}");
    assert_eq!(of.stored_fact(&row), fact, "{of}");
    assert!(of.pattern().matches(&fact), "{of} and {fact}");
    let json = serde_json::to_string(&fact).expect("a fact is JSON");
    assert_eq!(serde_json::from_str::<Fact>(&json).as_ref().ok(), Some(&fact), "{json}");
    Some(fact)
}

/// Symmetric, and witnessed by a fact that both claim.
fn overlap(first: &FactType, second: &FactType) {
    let common = first.overlap(second);
    assert_eq!(common, second.overlap(first), "{first} and {second}");
    if let Some(fact) = common {
        for of in [first, second] {
            let row = of.row(&fact).unwrap_or_else(|| panic!("{fact} is not of {of}"));
            assert_eq!(of.fact(&row).as_ref(), Ok(&fact), "{of}");
        }
    } else if first == second {
        panic!("{first} does not overlap itself");
    }
}
