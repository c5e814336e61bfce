//! Metamorphic relations: other ways to ask for the same facts.
//!
//! A mistake that PostgreSQL's own answer would not show cannot be made here, but one that depends on the shape of a plan shows as two
//! shapes that disagree.

use super::query::{Query, Select};

/// A relation between two queries: both have the same set of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// A condition is TRUE, FALSE or NULL for each row: three parts that make the whole.
    Partition,
    /// A conjunct that holds for every row.
    Redundant,
    /// The relations in another order.
    Commuted,
    /// One part of the result from each of two copies of the query.
    Split,
    /// Once as it is and once more.
    Twice,
}

impl Variant {
    pub(crate) const ALL: [Self; 5] = [Self::Partition, Self::Redundant, Self::Commuted, Self::Split, Self::Twice];

    /// The other query, if `query` is of a shape for it.
    pub(crate) fn of(self, query: &Query) -> Option<Query> {
        let select = query.select.as_ref()?;
        let also = |conjunct: String| {
            let mut other = select.clone();
            other.conditions.push(conjunct);
            other.sql()
        };
        let (probe, column) = (&select.probe, &select.column);
        let sql = match self {
            Self::Partition => {
                [also(probe.clone()), also(format!("NOT ({probe})")), also(format!("({probe}) IS NULL"))].join(" UNION ALL ")
            }
            Self::Redundant => also(format!("{column} IS NULL OR {column} IS NOT NULL")),
            Self::Commuted => commuted(select)?,
            Self::Split => [also(format!("({probe}) IS TRUE")), also(format!("({probe}) IS NOT TRUE"))].join(" UNION ALL "),
            Self::Twice => format!("({}) UNION ({})", select.sql(), select.sql()),
        };
        Some(Query { class: query.class, sql, arity: query.arity, select: None, told: None })
    }
}

/// `None` where there is one relation only, or one that looks at those before it.
fn commuted(select: &Select) -> Option<String> {
    let mut other = select.clone();
    other.relations.reverse();
    other.conditions.reverse();
    (other.relations.len() > 1).then(|| other.sql())
}
