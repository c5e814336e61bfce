//! Who may use the API: whoever presents the key.

use axum::http::{HeaderMap, header};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// The public key of Oso's local development server. It is no secret: accept it on loopback only.
pub const DEVELOPMENT_KEY: &str = "e_0123456789_12345_osotesttoken01xiIn";

/// The key that requests must present as `Authorization: Bearer KEY`.
#[derive(Debug, Clone)]
pub struct Access {
    key: SecretString,
}

impl Access {
    /// Admits whoever presents `key`; nobody if it is empty.
    pub fn new(key: SecretString) -> Self {
        Self { key }
    }

    /// Whether the request with these headers may go on. Takes as long for a key that is nearly right as for one that is not.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let presented = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some((scheme, presented)) = presented.split_at_checked("Bearer ".len()) else { return false };
        let key = self.key.expose_secret().as_bytes();
        scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty() && bool::from(presented.trim_ascii().ct_eq(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens() {
        let access = Access::new("secret".into());
        let admits = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header value"));
            access.admits(&headers)
        };
        assert!(admits("Bearer secret"));
        assert!(admits("bearer secret "), "the scheme's case and outer space do not matter");
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer Secret", "Bearer ", "Bearer", "secret", "Basic secret", "Bearer: secret"] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_key_admits_nobody_and_debug_hides_the_key() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer ".parse().expect("a header value"));
        assert!(!Access::new("".into()).admits(&headers));
        assert!(!format!("{:?}", Access::new("secret".into())).contains("secret\""));
    }
}
