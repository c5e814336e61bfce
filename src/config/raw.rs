//! The YAML as it is written: serde mirrors without behaviour.
