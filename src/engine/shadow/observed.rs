//! A fact store that can be looked at and not be written to.
//!
//! The type is the proof: the field is private to this file, in which nothing calls [`FactStore::apply`].

use std::{io, sync::Arc};

use crate::{
    data::Row,
    fact::{Argument, Fact, FactType},
    target::{FactStore, TargetError},
};

/// The fact store, for those who only read.
#[derive(Clone)]
pub(in crate::engine) struct Observed(Arc<dyn FactStore>);

impl Observed {
    pub(in crate::engine) fn new(store: Arc<dyn FactStore>) -> Self {
        Self(store)
    }

    /// [`FactStore::list`].
    pub(in crate::engine) async fn list(
        &self,
        fact_type: &FactType,
        each: &mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> Result<(), TargetError> {
        self.0.list(fact_type, each).await
    }

    /// [`FactStore::probe`].
    pub(super) async fn probe(&self) -> Result<(), TargetError> {
        self.0.probe().await
    }

    /// Whether it holds `fact`.
    pub(super) async fn holds(&self, fact: Fact) -> Result<bool, TargetError> {
        // The facts of this type are this one.
        let fact_type = FactType { predicate: fact.predicate, args: fact.args.into_iter().map(Argument::Constant).collect() };
        let mut held = false;
        let mut each = |_| {
            held = true;
            Ok(())
        };
        self.0.list(&fact_type, &mut each).await?;
        Ok(held)
    }
}
