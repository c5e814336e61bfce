//! Names out of the configuration, as messages quote them.

/// In quotes, as the rest of the program quotes.
pub(super) fn shown(name: &str) -> String {
    format!("\"{name}\"")
}
