//! Where facts live: Oso Cloud over HTTP ([`oso`]) or the embedded store ([`embedded`]).
//!
//! Both are a [`FactStore`]; everything that writes facts packs changes into a [`Batch`] with [`batch::Packer`] and calls
//! [`FactStore::apply`], most through [`retry`].

pub mod batch;
pub mod embedded;
pub mod oso;
pub mod quota;
pub mod retry;

use std::{io, time::Duration};

use futures_util::future::BoxFuture;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    data::Row,
    error::Disposition,
    fact::{Fact, FactType},
    target::quota::WriteQuota,
};

/// What happens to a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It stops being true. Smaller than [`Op::Insert`]: deletes go first.
    Delete,
    /// It becomes true.
    Insert,
}

/// A fact that begins or ceases to be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactChange {
    /// Which of the two.
    pub op: Op,
    /// The concrete fact.
    pub fact: Fact,
}

/// Changes that are applied together, in order, or not at all.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Sent as `X-Request-ID`, the same on every repetition.
    pub request_id: Uuid,
    /// At most what [`FactStore::limits`] allows.
    pub changes: Vec<FactChange>,
}

/// What one batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Changes.
    pub entries: usize,
    /// Bytes of the request body that [`batch::body`] makes of them.
    pub bytes: usize,
}

/// The store's own consistency token (`OsoOffset`), opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Offset(pub String);

/// Why the fact store did not take something.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No answer: refused, reset, timed out, name not found. Whether a batch was applied is unknown.
    #[error("could not reach the fact store at \"{url}\"")]
    Unreachable {
        /// Scheme, host and port.
        url: String,
        /// Whether there was a connection: then the request may have arrived.
        connected: bool,
        /// What the transport says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 429, 408 or 5xx.
    #[error("the fact store answered {status}: {message}")]
    Busy {
        /// The status.
        status: u16,
        /// Its `message`, cut to a line.
        message: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// 401 or 403.
    #[error(
        "the fact store refused the key with {status}: {message}. Set OSO_AUTH, or the file that OSO_AUTH_FILE names, to a read-write key \
         of this environment"
    )]
    Key {
        /// The status.
        status: u16,
        /// Its `message`, cut to a line.
        message: String,
    },
    /// 413: the batch is too large for it.
    #[error("the fact store answered 413: {message}")]
    TooLarge {
        /// Its `message`, cut to a line.
        message: String,
    },
    /// Any other 4xx but 404 and 405: something in the batch is not acceptable.
    #[error("the fact store refused the request with {status}: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// Its `message`, cut to a line.
        message: String,
    },
    /// A 2xx whose body is not what the API promises, a redirect, 404 or 405: the address leads elsewhere, or a proxy answers.
    #[error("the fact store at \"{url}\" answered something that is not Oso's facts API: {problem}")]
    Garbage {
        /// Scheme, host and port.
        url: String,
        /// What was wrong.
        problem: String,
    },
    /// The address or the key cannot be used at all; nothing was sent.
    #[error("could not set up the fact store: {problem}")]
    Setup {
        /// What is wrong with which.
        problem: String,
    },
    /// The embedded store's file.
    #[error("could not {action} the embedded fact store")]
    Embedded {
        /// `open`, `read` or `write`.
        action: &'static str,
        /// What SQLite or the file system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The receiver of a listing failed, for want of disk space for instance.
    #[error("could not keep the listed facts")]
    Receiver(#[source] io::Error),
}

impl TargetError {
    /// Whether the batch was certainly not applied: then it need not be repeated, and something else may go in its place.
    pub fn left_no_trace(&self) -> bool {
        match self {
            Self::Unreachable { connected, .. } => !connected,
            // The quota's refusal; any other status may be a proxy's word for "I gave up waiting".
            Self::Busy { status, .. } => *status == 429,
            Self::Key { .. } | Self::TooLarge { .. } | Self::Refused { .. } | Self::Setup { .. } => true,
            Self::Garbage { .. } | Self::Embedded { .. } | Self::Receiver(_) => false,
        }
    }

    /// Who acts next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } | Self::Garbage { .. } => Disposition::Retry,
            Self::Key { .. }
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::Setup { .. }
            | Self::Embedded { .. }
            | Self::Receiver(_) => Disposition::Operator,
        }
    }
}

/// A fact store.
///
/// Facts are a set: inserting what is there and deleting what is not are no errors and change nothing, so a batch may be
/// applied any number of times in a row.
pub trait FactStore: Send + Sync {
    /// What a batch may hold.
    fn limits(&self) -> BatchLimits;

    /// What may be written in a minute. Whoever calls [`FactStore::apply`] spends it first, for each attempt: how long that takes decides
    /// what is sent, so nothing that has been chosen may wait in here.
    fn quota(&self) -> &WriteQuota {
        WriteQuota::open()
    }

    /// Applies `batch` in order and atomically. `Ok` means durable, and gives the token that reads must present to see
    /// it. One attempt: the caller repeats it with the same `request_id` after a [`Disposition::Retry`] error, also when the
    /// batch may have been applied and only the answer was lost. Dropping the future leaves it unknown whether
    /// the batch was applied.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>>;

    /// Calls `each` with the row ([`FactType::row`]) of every stored fact of exactly `fact_type`, in any order, without ever
    /// holding all of them in memory. One attempt; on an error `each` may have seen a part.
    fn list<'a>(
        &'a self,
        fact_type: &'a FactType,
        each: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>>;

    /// Whether it answers and takes the key, without writing.
    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>>;
}
