//! Rows, extents and positions: what a source yields before anybody has heard of facts.
//!
//! ```text
//! source ──rows──> ExtentBuilder ──sorted, distinct──> Extent ──view──> fact rows
//! ```
//!
//! A [`Row`] is one result row of one of the user's queries, as text. An [`Extent`] is a whole result: sorted, without
//! duplicates and on disk once it is large, so that comparing ten million wanted facts with ten million stored ones is
//! one merge in bounded memory. A [`Position`] says which state of the source a result belongs to.

mod cells;
mod change;
mod extent;
mod packed;
mod position;
mod row;

pub use cells::{Cells, cell_ends};
pub use change::{Change, ChangeBatch, Commit, Image, ImageWriter};
pub use extent::{Extent, ExtentBuilder, Sought};
pub use packed::{pack, unpack};
pub use position::{ClusterTime, Lsn, Position, ResumeToken};
pub(crate) use row::push_cell;
pub use row::{Part, Row};
