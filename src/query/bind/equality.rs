//! Equalities that bytes decide: what may be a key.
//!
//! Only the default equality of a type is one, and only where equal values have equal texts or a canonical form that has. Integers of
//! different widths have one text, and so have the string types that compare as text.

use super::{
    Binder,
    relation::{Level, Refs, Relation, typed},
    unreadable,
};
use crate::query::{
    EqualPair, Expr, KeyClass,
    scalar::{
        self,
        oids::{INT2, INT4, INT8, NAME, TEXT, VARCHAR},
    },
    tree::Node,
};

impl<'a, 't> Binder<'_> {
    /// An equality between two inputs, if bytes decide it.
    pub(super) fn pair(&mut self, level: &Level<'a, 't>, node: Node<'a, 't>, atoms: &mut [Relation]) -> Result<Option<EqualPair>, String> {
        let Some((left, right)) = self.equality(node)? else { return Ok(None) };
        let side = |node: Node<'a, 't>| {
            let refs = Refs::of(node, level);
            let mut touched = (0..atoms.len()).filter(|&atom| !refs.local.is_disjoint(&atoms[atom].covers));
            touched.next().filter(|_| touched.next().is_none() && !refs.clock && !refs.subquery)
        };
        let (Some(one), Some(other)) = (side(left), side(right)) else { return Ok(None) };
        if one == other {
            return Ok(None);
        }
        let left = (one, self.key(level, &mut atoms[one], left, node)?);
        let right = (other, self.key(level, &mut atoms[other], right, node)?);
        let (left, right) = if left < right { (left, right) } else { (right, left) };
        Ok(Some(EqualPair { left, right }))
    }

    /// The sides of an equality whose outcome the bytes of both sides' keys decide.
    pub(super) fn equality(&mut self, node: Node<'a, 't>) -> Result<Option<(Node<'a, 't>, Node<'a, 't>)>, String> {
        let Some([left, right]) = node.nodes("args").and_then(|args| <[Node; 2]>::try_from(args).ok()) else { return Ok(None) };
        let operator = node.number("opno").and_then(|number| self.catalogue.operators.get(&number));
        if node.tag() != "OPEXPR" || !operator.is_some_and(|operator| operator.equality) {
            return Ok(None);
        }
        if self.key_class(typed(left)?.oid, typed(right)?.oid, node) == KeyClass::None {
            let of = self.catalogue.type_sql(typed(left)?.oid);
            let collation = node.number("inputcollid").and_then(|oid| self.catalogue.collations.get(&oid));
            let under = collation.map(|collation| format!(" under collation {}", collation.sql)).unwrap_or_default();
            self.unusable = Some(format!("it joins by an equality of {of}{under}, which only the database can decide"));
            return Ok(None);
        }
        Ok(Some((left, right)))
    }

    /// How the equality `node` between values of two types is decided.
    fn key_class(&self, left: u32, right: u32, node: Node<'_, '_>) -> KeyClass {
        let collation = node.number("inputcollid").unwrap_or(0);
        let (left, right) = (self.catalogue.base(left), self.catalogue.base(right));
        let both = |oids: &[u32]| oids.contains(&left) && oids.contains(&right);
        let comparable = left == right || both(&[INT2, INT4, INT8]) || both(&[TEXT, VARCHAR, NAME]);
        if comparable { self.catalogue.key_class(left, collation) } else { KeyClass::None }
    }

    /// The column that is the key of one side of the equality `of`.
    pub(super) fn key(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        node: Node<'a, 't>,
        of: Node<'a, 't>,
    ) -> Result<usize, String> {
        let expr = self.all(level, relation, &[node])?.remove(0);
        let expr = self.canonical(expr, node, of)?;
        Ok(relation.append(expr))
    }

    /// The form of a side of the equality `of` in which equal values have equal bytes.
    pub(super) fn canonical(&self, expr: Expr, node: Node<'a, 't>, of: Node<'a, 't>) -> Result<Expr, String> {
        let oid = typed(node)?.oid;
        match self.key_class(oid, oid, of) {
            KeyClass::Exact => Ok(expr),
            KeyClass::Canonical => match scalar::canonical(self.catalogue.base(oid)) {
                Some(function) => Ok(Expr::Call { function, args: vec![expr] }),
                None => Err(unreadable("a type")),
            },
            KeyClass::None => Err(unreadable("an equality")),
        }
    }
}
