//! Responses, with exactly the keys the SDKs expect: Python's crashes on one more or one less.

use axum::{
    Json,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use tracing::error;

use crate::target::{
    TargetError,
    embedded::{
        apply::{Policy, Refusal},
        limits::OverQuota,
        listing::ListingError,
        writer::WriteError,
    },
};

/// The consistency token.
const OFFSET: HeaderName = HeaderName::from_static("osooffset");

/// A change that is durable.
pub(super) fn done(status: StatusCode, offset: i64, message: &str) -> Response {
    with_offset(status, offset, &json!({ "message": message }))
}

/// A change that is durable, with a body of its own.
pub(super) fn with_offset(status: StatusCode, offset: i64, body: &impl Serialize) -> Response {
    (status, [(OFFSET, offset.to_string())], Json(body)).into_response()
}

/// `GET /policy`.
pub(super) fn policy(policy: Option<Policy>) -> Response {
    let policy = policy.map(|Policy { filename, src }| json!({ "filename": filename, "src": src }));
    Json(json!({ "policy": policy })).into_response()
}

/// `GET /policy_metadata`: policies are not evaluated, so there are no resources to tell of.
pub(super) fn policy_metadata() -> Response {
    Json(json!({ "metadata": { "resources": {} } })).into_response()
}

/// `GET /healthcheck`.
pub(super) fn healthy() -> Response {
    Json(json!({ "message": "ok" })).into_response()
}

/// An error: a status and `{"message"}`.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }

    /// 400: something in the request cannot be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 413: it is too much.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "message": self.message }))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Refused(Refusal::TooManyRemoved { .. } | Refusal::OverQuota(OverQuota::Never { .. })) => Self::too_large(message),
            WriteError::Refused(Refusal::OverQuota(OverQuota::Later { retry_after, .. })) => {
                Self { status: StatusCode::TOO_MANY_REQUESTS, message, retry_after: Some(retry_after) }
            }
            // The writer has logged the cause.
            WriteError::Stopped(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the fact store has stopped taking changes; see its log")
            }
        }
    }
}

impl From<ListingError> for Problem {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::TooMany { .. } => Self::invalid(error.to_string()),
            // The listing, or the writer, has logged the cause.
            ListingError::Failed(_) | ListingError::Behind(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the fact store could not be read; see its log")
            }
        }
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        error!(error = &error as &dyn std::error::Error, "the embedded fact store does not answer");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
