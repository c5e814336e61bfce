//! Who asks, as far as a browser tells: no web page may use a factsync on this machine through the browser of who runs it.
//!
//! On loopback the embedded store may have the public development key, which everybody knows. Two things keep a page from using it:
//!
//! - A page of another origin cannot send the key: `Authorization` makes the browser ask first (`OPTIONS`), and no answer of ours
//!   carries a CORS header. Nothing that changes something does without the key.
//! - A page whose own name is made to resolve to 127.0.0.1 (DNS rebinding) is of the *same* origin and may send what it likes; but its
//!   name is in `Host`, where a page cannot put another. So on loopback only names that no stranger owns are answered: addresses,
//!   `localhost` and below, and what ends in `.internal`, which is nobody's (containers reach their host as `host.docker.internal`).
//!   An `Origin` has to be such a name too.
//!
//! Who listens on another address has a key of their own (`cli/target.rs`), and names of their own.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use crate::server::problem;

const NAMES: &str = "it listens on loopback and answers to localhost, addresses and names below .internal. Have a proxy in front of it \
                     send \"Host: localhost\", or --listen on another address";

/// `router`, for visitors of this machine only if it listens on loopback.
pub(super) fn guard(router: Router, listens: SocketAddr) -> Router {
    if listens.ip().is_loopback() { router.layer(middleware::from_fn(only_local)) } else { router }
}

async fn only_local(request: Request, next: Next) -> Response {
    match stranger(request.uri(), request.headers()) {
        None => next.run(request).await,
        Some(Stranger::Host) => {
            problem(StatusCode::MISDIRECTED_REQUEST, &format!("this factsync is not known by the name in the Host header: {NAMES}"))
        }
        Some(Stranger::Origin) => {
            problem(StatusCode::FORBIDDEN, "this request is made by a web page of another site, and no such page may use this factsync")
        }
    }
    .into_response()
}

/// What gives a visitor away.
#[derive(Debug, PartialEq, Eq)]
enum Stranger {
    /// The name by which we were called.
    Host,
    /// The page that called.
    Origin,
}

fn stranger(uri: &Uri, headers: &HeaderMap) -> Option<Stranger> {
    // What sends neither is no browser. A second header of the kind is ignored by none of its readers in the same way, so all count.
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok().and_then(|text| text.parse::<Authority>().ok()));
    let asked = uri.authority().map(|authority| Some(authority.clone()));
    if !hosts.chain(asked).all(|host| host.is_some_and(|host| is_local(host.host()))) {
        return Some(Stranger::Host);
    }
    let is_ours = |origin: &str| origin.parse::<Uri>().is_ok_and(|origin| origin.host().is_some_and(is_local));
    let all = |name: HeaderName| headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(is_ours));
    (!all(header::ORIGIN)).then_some(Stranger::Origin)
}

/// Whether no stranger can make `host` resolve to us.
fn is_local(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address || host == "localhost" || host.ends_with(".localhost") || host.ends_with(".internal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(uri: &str, named: &[(HeaderName, &str)]) -> Option<Stranger> {
        let mut headers = HeaderMap::new();
        for (name, value) in named {
            headers.append(name.clone(), value.parse().expect("a header"));
        }
        stranger(&uri.parse().expect("a URI"), &headers)
    }

    #[test]
    fn names_that_no_stranger_owns_are_answered() {
        for host in
            ["localhost", "LocalHost:7878", "127.0.0.1:7878", "[::1]:7878", "10.1.2.3", "app.localhost", "host.docker.internal:7878"]
        {
            assert_eq!(judged("/", &[(header::HOST, host)]), None, "{host}");
        }
        assert_eq!(judged("/", &[]), None, "no browser");
        assert_eq!(judged("/", &[(header::HOST, "localhost:1"), (header::ORIGIN, "http://localhost:5173")]), None);
    }

    #[test]
    fn a_name_that_may_have_been_rebound_is_not() {
        for host in [
            "evil.example:7878",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xlocalhost",
            "internal",
            "evilinternal",
            "",
            "a b",
            "localhost@evil.example",
            "localhost:1, evil.example",
        ] {
            assert_eq!(judged("/", &[(header::HOST, host)]), Some(Stranger::Host), "{host}");
        }
        assert_eq!(judged("/", &[(header::HOST, "localhost"), (header::HOST, "evil.example")]), Some(Stranger::Host));
        assert_eq!(judged("http://evil.example/", &[(header::HOST, "localhost")]), Some(Stranger::Host));
    }

    #[test]
    fn a_page_of_another_origin_is_not_served() {
        for origin in ["https://evil.example", "null", "", "http://localhost.evil.example", "file://"] {
            let judged = judged("/", &[(header::HOST, "localhost"), (header::ORIGIN, origin)]);
            assert_eq!(judged, Some(Stranger::Origin), "{origin}");
        }
    }
}
