//! The order of a join's lookups.

use crate::{
    query::{EqualPair, Expr, Plan},
    view::{
        arrangement::Nulls,
        join::{Join, Step, Term},
        lower::{Built, Lowering, NodeId},
    },
};

/// Columns that equal each other: (input, column), in order.
type Class = Vec<(usize, usize)>;

/// Lowers a join.
pub(in crate::view) fn lower(
    lowering: &mut Lowering<'_>,
    inputs: &[Plan],
    on: &[EqualPair],
    filter: Option<&Expr>,
) -> Result<Built, String> {
    let nodes = inputs.iter().map(|input| lowering.node(input)).collect::<Result<Vec<_>, _>>()?;
    let classes = classes(on);
    let widths: Vec<usize> = nodes.iter().map(|node| lowering.width(*node)).collect();
    let same = (0..nodes.len()).map(|input| same(&classes, input)).collect();
    let terms: Vec<Term> = (0..nodes.len()).map(|driver| term(lowering, &nodes, &classes, driver)).collect();
    let first = terms.iter().flat_map(|term| &term.steps).find(|step| step.input == 0).map(|step| step.arrangement.clone());
    let first = first.ok_or("a join of one input")?;
    Ok(Built { operator: Box::new(Join { widths, terms, same, first, filter: filter.cloned() }), inputs: nodes })
}

/// The transitive closure of the equalities.
fn classes(on: &[EqualPair]) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    for pair in on {
        let mut merged = vec![pair.left, pair.right];
        classes.retain_mut(|class| {
            let joined = class.contains(&pair.left) || class.contains(&pair.right);
            if joined {
                merged.append(class);
            }
            !joined
        });
        merged.sort_unstable();
        merged.dedup();
        classes.push(merged);
    }
    classes.sort_unstable();
    classes
}

/// Pairs of columns of one input that equal each other.
fn same(classes: &[Class], input: usize) -> Vec<(usize, usize)> {
    let columns = |class: &Class| class.iter().filter(|place| place.0 == input).map(|place| place.1).collect::<Vec<_>>();
    classes.iter().map(columns).flat_map(|columns| columns.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()).collect()
}

/// One column of `input` for each class that `bound` inputs are in, with the place that binds it.
fn binds(classes: &[Class], bound: &[usize], input: usize) -> Vec<(usize, (usize, usize))> {
    let mut binds: Vec<_> = classes
        .iter()
        .filter_map(|class| {
            let column = class.iter().find(|place| place.0 == input)?.1;
            let operand = class.iter().find(|place| bound.contains(&place.0))?;
            Some((column, *operand))
        })
        .collect();
    binds.sort_unstable();
    binds
}

fn term(lowering: &mut Lowering<'_>, nodes: &[NodeId], classes: &[Class], driver: usize) -> Term {
    let mut bound = vec![driver];
    let mut steps = Vec::new();
    while bound.len() < nodes.len() {
        let open = (0..nodes.len()).filter(|input| !bound.contains(input));
        // The most bound one; of equals the first, so that the layout depends on the plan alone.
        let next = open.rev().max_by_key(|input| binds(classes, &bound, *input).len()).expect("an input is left");
        let (key, operands): (Vec<usize>, Vec<(usize, usize)>) = binds(classes, &bound, next).into_iter().unzip();
        steps.push(Step { input: next, arrangement: lowering.arrange(nodes[next], &key, Nulls::Skip), operands });
        bound.push(next);
    }
    Term { driver, steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(left: (usize, usize), right: (usize, usize)) -> EqualPair {
        EqualPair { left, right }
    }

    #[test]
    fn equality_is_closed_transitively() {
        let on = [pair((0, 1), (1, 0)), pair((2, 2), (3, 0)), pair((1, 0), (2, 2)), pair((0, 0), (3, 1))];
        assert_eq!(classes(&on), [vec![(0, 0), (3, 1)], vec![(0, 1), (1, 0), (2, 2), (3, 0)]]);
        assert_eq!(binds(&classes(&on), &[0], 3), [(0, (0, 1)), (1, (0, 0))]);
    }

    #[test]
    fn columns_of_one_input_that_equal_each_other_are_compared() {
        let on = [pair((0, 1), (1, 0)), pair((0, 2), (1, 0))];
        assert_eq!(same(&classes(&on), 0), [(1, 2)]);
        assert_eq!(same(&classes(&on), 1), []);
    }
}
