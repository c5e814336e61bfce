//! What an answer means, and how much of one is read.

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{LOCATION, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::target::TargetError;

/// The most that is read of an answer that is not a listing. The API's are a line; an error page is told apart long before.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The most characters of a server's message that are repeated.
const MAX_MESSAGE_CHARS: usize = 200;

/// Every answer but a listing.
#[derive(Deserialize)]
struct Answer {
    message: String,
}

/// Whether a success is the API's own, `{"message": …}`; if it is not, why.
pub(super) async fn confirm(response: Response) -> Result<(), Unconfirmed> {
    let (bytes, end) = read(response).await;
    match (end, serde_json::from_slice::<Answer>(&bytes)) {
        (End::Whole, Ok(_)) => Ok(()),
        (End::Whole, Err(_)) => Err(Unconfirmed::Foreign("a write was answered with a body other than {\"message\": …}".to_owned())),
        (End::TooLong, _) => Err(Unconfirmed::Foreign(format!("a write was answered with {MAX_ANSWER_BYTES} bytes or more"))),
        (End::Cut(error), _) => Err(Unconfirmed::Cut(error)),
    }
}

/// Why a success does not count.
pub(super) enum Unconfirmed {
    /// The body did not arrive.
    Cut(reqwest::Error),
    /// It is no answer of the API.
    Foreign(String),
}

/// The error that an answer other than a success stands for.
pub(super) async fn refusal(response: Response, place: &str, key: &SecretString) -> TargetError {
    let status = response.status();
    let location = header(&response, LOCATION.as_str());
    let retry_after = header(&response, RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    // The status says what happened, also if the body breaks off.
    let message = message(&read(response).await.0, key);
    let foreign = |problem: String| TargetError::Garbage { url: place.to_owned(), problem: one_line(&problem, key) };
    let code = status.as_u16();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => TargetError::Key { status: code, message },
        StatusCode::PAYLOAD_TOO_LARGE => TargetError::TooLarge { message },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => TargetError::Busy { status: code, message, retry_after },
        // No such place: an address without the API, not a batch with a wrong fact in it.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => foreign(format!("{code}: {message}")),
        _ if status.is_server_error() => TargetError::Busy { status: code, message, retry_after },
        _ if status.is_client_error() => TargetError::Refused { status: code, message },
        _ if status.is_redirection() => {
            foreign(format!("{code}, a redirect, which is not followed, to \"{}\"", location.unwrap_or_default()))
        }
        _ => foreign(format!("{code}: {message}")),
    }
}

/// How a body ended.
enum End {
    /// As it should.
    Whole,
    /// It did not; the rest is dropped, and its connection.
    TooLong,
    /// It broke off.
    Cut(reqwest::Error),
}

/// Reads a body up to [`MAX_ANSWER_BYTES`].
async fn read(mut response: Response) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_ANSWER_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER_BYTES - bytes.len())]),
            Ok(None) => return (bytes, End::Whole),
            Err(error) => return (bytes, End::Cut(error)),
        }
    }
    (bytes, End::TooLong)
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The API's `message`, or the body's text if it is another kind of answer.
fn message(body: &[u8], key: &SecretString) -> String {
    let text = match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => answer.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let line = one_line(&text, key);
    if line.is_empty() { "no message".to_owned() } else { line }
}

/// Text of the server that can stand in an error: without the key, should it repeat that, and on one line.
fn one_line(text: &str, key: &SecretString) -> String {
    let text = text.replace(key.expose_secret(), "[key]").replace(|c: char| c.is_control(), " ");
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_MESSAGE_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Disposition;

    async fn refused(status: u16, headers: &[(&str, &str)], body: &str) -> TargetError {
        let mut response = axum::http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = Response::from(response.body(body.to_owned()).expect("a response"));
        refusal(response, "http://h", &SecretString::from("e_1_2_key")).await
    }

    #[tokio::test]
    async fn every_status_says_who_acts() {
        use Disposition::{Operator, Retry};
        for (status, want) in [
            (400, Operator),
            (401, Operator),
            (403, Operator),
            (404, Retry),
            (405, Retry),
            (408, Retry),
            (409, Operator),
            (413, Operator),
            (422, Operator),
            (429, Retry),
            (500, Retry),
            (501, Retry),
            (503, Retry),
            (599, Retry),
            (302, Retry),
            (304, Retry),
            (999, Retry),
        ] {
            let error = refused(status, &[], r#"{"message":"why"}"#).await;
            assert_eq!(error.disposition(), want, "{error}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
        }
    }

    #[tokio::test]
    async fn retry_after_is_seconds_or_nothing() {
        for (text, want) in [("7", Some(7)), (" 0 ", Some(0)), ("-1", None), ("1.5", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)] {
            for status in [429, 503] {
                let TargetError::Busy { retry_after, .. } = refused(status, &[("Retry-After", text)], "").await else {
                    panic!("{status} is busy")
                };
                assert_eq!(retry_after, want.map(Duration::from_secs), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn a_message_is_one_short_line_without_the_key() {
        let long = "é".repeat(500);
        for (body, want) in [
            (r#"{"message":"a\nb"}"#, "a b"),
            ("<html>\r\n <b>Bad\u{1b}[31m</b>", "<html> <b>Bad [31m</b>"),
            ("", "no message"),
            (r#"{"message":""}"#, "no message"),
            ("Bearer e_1_2_key is bad", "Bearer [key] is bad"),
            (&long, &format!("{}…", "é".repeat(200))),
        ] {
            assert_eq!(refused(400, &[], body).await.to_string(), format!("the fact store refused the request with 400: {want}"));
        }
    }
}
