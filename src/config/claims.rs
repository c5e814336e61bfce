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
