//! Several rows in one cell: what one document makes, kept with the document.

use crate::data::Row;

/// The rows as one text: a JSON array of arrays of texts and nulls.
pub fn pack(rows: &[Row]) -> String {
    let cells: Vec<Vec<Option<String>>> = rows.iter().map(Row::cells).collect();
    serde_json::to_string(&cells).expect("texts and nulls are JSON")
}

/// The rows of a text that [`pack`] has made of rows with `width` cells; `None` for any other.
pub fn unpack(text: &str, width: usize) -> Option<Vec<Row>> {
    let rows: Vec<Vec<Option<String>>> = serde_json::from_str(text).ok()?;
    let row = |cells: Vec<Option<String>>| (cells.len() == width).then(|| Row::from_cells(cells.iter().map(Option::as_deref)));
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            cells in prop::collection::vec(prop::collection::vec(prop::option::of("[\u{0}\"\\\\aé]{0,4}"), 2), 0..4),
        ) {
            let rows: Vec<Row> = cells.iter().map(|cells| Row::from_cells(cells.iter().map(Option::as_deref))).collect();
            let text = pack(&rows);
            prop_assert_eq!(unpack(&text, 2), Some(rows.clone()));
            prop_assert_eq!(unpack(&text, 3).is_some(), rows.is_empty());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "[", "{}", "[1]", "[[1]]"] {
            assert_eq!(unpack(text, 1), None, "{text}");
        }
    }
}
