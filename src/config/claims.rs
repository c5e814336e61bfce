//! Who claims which facts: no two signatures of one run may claim the same one.

use std::collections::HashMap;

use crate::{
    config::{Place, Problem},
    fact::FactType,
};

/// A signature and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) fact_type: FactType,
    pub(super) place: Place,
}

/// A problem for each claim that overlaps an earlier one.
///
/// Facts of different predicates, arities or types never meet, so only claims that agree in all of them are compared.
pub(super) fn overlaps(claims: &[Claim]) -> Vec<Problem> {
    let mut alike: HashMap<_, Vec<&Claim>> = HashMap::new();
    let mut problems = Vec::new();
    for claim in claims {
        let types: Vec<_> = claim.fact_type.args.iter().map(|arg| arg.type_name()).collect();
        let earlier = alike.entry((&claim.fact_type.predicate, types)).or_default();
        problems.extend(overlap(claim, earlier));
        earlier.push(claim);
    }
    problems
}

fn overlap(claim: &Claim, earlier: &[&Claim]) -> Option<Problem> {
    let mut others = earlier.iter().filter_map(|other| Some((other, claim.fact_type.overlap(&other.fact_type)?)));
    let (other, fact) = others.next()?;
    let more = match others.count() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let Claim { fact_type, place } = claim;
    Some(if *fact_type == other.fact_type {
        let hint = format!("It is first at {}; keep one of them.", other.place);
        Problem::new(place.clone(), format!("the fact type \"{fact_type}\" is there twice"), hint)
    } else {
        let message = format!("\"{fact_type}\" overlaps \"{}\" at {}{more}", other.fact_type, other.place);
        Problem::new(place.clone(), message, format!("Both would claim {fact}; change them so that no fact fits two."))
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_claim_is_held_against_all_earlier_ones() {
        let texts = [
            "f(User:_, a)",
            "f(User:_, b)",
            "f(User:_)",
            "f(Team:_, String:_)",
            "g(User:_, String:_)",
            "f(User:_, String:_)",
            "f(User:_, b)",
        ];
        let claim = |(number, text): (usize, &&str)| Claim {
            fact_type: text.parse().expect(text),
            place: Place { file: PathBuf::from("x"), line: number + 1, column: 1 },
        };
        let problems = overlaps(&texts.iter().enumerate().map(claim).collect::<Vec<_>>());
        let messages: Vec<_> = problems.iter().map(|problem| format!("{} {}", problem.place.line, problem.message)).collect();
        assert_eq!(
            messages,
            [
                "6 \"f(User:_, String:_)\" overlaps \"f(User:_, String:a)\" at x:1:1 and 1 more",
                "7 the fact type \"f(User:_, String:b)\" is there twice",
            ]
        );
    }
}
