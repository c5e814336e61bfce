//! Who claims a fact: two signatures must never claim the same one.
//!
//! Each fact type's facts are replaced by what its query returns. If two of them could claim one fact, each would remove
//! what the other adds.

use crate::fact::{Argument, Fact, FactType, Value};

impl FactType {
    /// A fact that both would claim, or `None` if there is none.
    pub fn overlap(&self, other: &Self) -> Option<Fact> {
        if self.predicate != other.predicate || self.args.len() != other.args.len() {
            return None;
        }
        let args = self.args.iter().zip(&other.args).map(|(a, b)| common(a, b)).collect::<Option<_>>()?;
        Some(Fact { predicate: self.predicate.clone(), args })
    }
}

fn common(a: &Argument, b: &Argument) -> Option<Value> {
    if a.type_name() != b.type_name() {
        return None;
    }
    match (a, b) {
        (Argument::Constant(a), Argument::Constant(b)) => (a == b).then(|| a.clone()),
        (Argument::Constant(value), Argument::Variable { .. }) | (Argument::Variable { .. }, Argument::Constant(value)) => {
            Some(value.clone())
        }
        (Argument::Variable { type_name }, Argument::Variable { .. }) => Some(Value::new(type_name, example(type_name))),
    }
}

fn example(type_name: &str) -> &'static str {
    match type_name {
        "Boolean" => "true",
        "Integer" => "1",
        _ => "example",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_shown_by_a_fact_both_claim() {
        for (a, b, want) in [
            ("is_protected(Repository:_, Boolean:true)", "is_protected(Repository:_, Boolean:false)", None),
            (
                "is_protected(Repository:_, Boolean:_)",
                "is_protected(Repository:_, Boolean:false)",
                Some("is_protected(Repository:example, Boolean:false)"),
            ),
            ("f(User:_, Integer:_)", "f(User:_, Integer:_)", Some("f(User:example, Integer:1)")),
            ("f(User:_)", "f(Team:_)", None),
            ("f(User:_)", "f(User:_, String:_)", None),
            ("f(User:_)", "g(User:_)", None),
            ("f(parent)", "f(String:_)", Some("f(String:parent)")),
        ] {
            let (a, b): (FactType, FactType) = (a.parse().expect(a), b.parse().expect(b));
            assert_eq!(a.overlap(&b).map(|fact| fact.to_string()).as_deref(), want, "{a} and {b}");
            assert_eq!(a.overlap(&b), b.overlap(&a));
            if let Some(fact) = a.overlap(&b) {
                assert!(a.row(&fact).is_some() && b.row(&fact).is_some());
            }
        }
    }
}
