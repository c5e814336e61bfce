//! The local store.

use crate::error::Disposition;

/// Why the local store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {}

impl StoreError {
    /// Who acts next.
    pub fn disposition(&self) -> Disposition {
        match *self {}
    }
}
