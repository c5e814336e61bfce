//! The `sync:` block: what is ours in the file.

use std::time::Duration;

use crate::config::{
    DriftPolicy, MaxRemovals, SyncOptions,
    fields::{Field, Reader},
    postgres::{MAX_SLOT_BYTES, is_slot_name},
    raw::Value,
};

/// A year: longer than anybody waits for an audit, and far from where clocks overflow.
const MAX_RECONCILE_EVERY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The smallest `max_wal`: four segments. A slot holds back the segment that is being written and what is behind the last checkpoint
/// anyhow, so less would let go of a slot that nobody lags behind.
const MIN_MAX_WAL: u64 = 64 << 20;

/// What one file says, and what it leaves to the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SyncBlock {
    /// [`Duration::ZERO`] for never.
    reconcile_every: Option<Duration>,
    count: Option<u64>,
    percent: Option<u8>,
    max_wal: Option<u64>,
    drift: Option<DriftPolicy>,
    pub(super) slot: Option<String>,
}

impl SyncBlock {
    /// Reads the block; `slots` is whether the file's source has replication slots.
    pub(super) fn read(reader: &mut Reader<'_>, block: Field, slots: bool) -> Self {
        let known: &[&str] = if slots {
            &["reconcile_every", "max_removals", "max_wal", "drift", "slot"]
        } else {
            &["reconcile_every", "max_removals", "drift"]
        };
        let Some(mut fields) = reader.fields(block, known) else { return Self::default() };
        let reconcile_every = fields.take("reconcile_every").and_then(|field| reconcile_every(reader, &field));
        let drift = fields.take("drift").and_then(|field| drift(reader, &field));
        let slot = fields.take("slot").and_then(|field| slot(reader, &field));
        let max_wal = fields.take("max_wal").and_then(|field| max_wal(reader, &field));
        let limits = fields.take("max_removals").and_then(|field| reader.fields(field, &["count", "percent"]));
        let Some(mut limits) = limits else { return Self { reconcile_every, max_wal, drift, slot, ..Self::default() } };
        let count = limits.take("count").and_then(|field| reader.integer(&field, u64::MAX));
        let percent = limits.take("percent").and_then(|field| reader.integer(&field, 100));
        Self { reconcile_every, count, percent: percent.and_then(|percent| u8::try_from(percent).ok()), max_wal, drift, slot }
    }

    /// The shortest interval and the smallest limits that any file gives; the default for what no file gives.
    pub(super) fn merge(blocks: &[Self]) -> SyncOptions {
        let SyncOptions { reconcile_every, max_removals, max_wal, drift } = SyncOptions::default();
        let given: Vec<Duration> = blocks.iter().filter_map(|block| block.reconcile_every).collect();
        let shortest = given.iter().copied().filter(|every| !every.is_zero()).min();
        SyncOptions {
            reconcile_every: if given.is_empty() { reconcile_every } else { shortest },
            max_removals: MaxRemovals {
                count: blocks.iter().filter_map(|block| block.count).min().unwrap_or(max_removals.count),
                percent: blocks.iter().filter_map(|block| block.percent).min().unwrap_or(max_removals.percent),
            },
            max_wal: blocks.iter().filter_map(|block| block.max_wal).min().or(max_wal),
            // One file that wants nothing written is enough.
            drift: blocks.iter().filter_map(|block| block.drift).max().unwrap_or(drift),
        }
    }
}

fn reconcile_every(reader: &mut Reader<'_>, field: &Field) -> Option<Duration> {
    let duration = match &field.node.value {
        Value::Number(number) if number.as_u64() == Some(0) => Some(Duration::ZERO),
        Value::Text(_) => duration(&reader.text(field)?),
        Value::Null | Value::Boolean(_) | Value::Number(_) | Value::List(_) | Value::Map(_) | Value::Tagged => None,
    };
    if duration.is_none() {
        let hint = "Write a number with d, h, m or s, as in 6h or 30m, at most 365d; 0 turns the audit off.";
        reader.problem(field.node.spot, "\"reconcile_every\" is no duration", hint);
    }
    duration
}

/// `90s`, `30m`, `6h`, `1d` or `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| digits)?;
    number.checked_mul(seconds).map(Duration::from_secs).filter(|duration| *duration <= MAX_RECONCILE_EVERY)
}

fn max_wal(reader: &mut Reader<'_>, field: &Field) -> Option<u64> {
    let size = match &field.node.value {
        Value::Text(_) => size(&reader.text(field)?),
        Value::Null | Value::Boolean(_) | Value::Number(_) | Value::List(_) | Value::Map(_) | Value::Tagged => None,
    };
    if size.is_none() {
        let hint = "Write a number with MB, GB or TB, as in 10GB, at least 64MB; leave it out for no limit.";
        reader.problem(field.node.spot, "\"max_wal\" is no size", hint);
    }
    size
}

/// `500MB`, `10GB` or `1TB`, as PostgreSQL's own settings: powers of 1024.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(2)?)?;
    let shift = match unit {
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| digits)?;
    number.checked_mul(1 << shift).filter(|size| *size >= MIN_MAX_WAL)
}

fn drift(reader: &mut Reader<'_>, field: &Field) -> Option<DriftPolicy> {
    match &*reader.text(field)? {
        "repair" => Some(DriftPolicy::Repair),
        "report" => Some(DriftPolicy::Report),
        _ => {
            let hint = "Write repair, or report to have drift told and nothing written.";
            reader.problem(field.node.spot, "\"drift\" is neither \"repair\" nor \"report\"", hint);
            None
        }
    }
}

fn slot(reader: &mut Reader<'_>, field: &Field) -> Option<String> {
    let name = reader.text(field)?;
    if is_slot_name(&name) {
        return Some(name);
    }
    let hint = format!("Use a-z, 0-9 and \"_\", at most {MAX_SLOT_BYTES} characters: it names a replication slot and a publication.");
    reader.problem(field.node.spot, "\"slot\" is no name for a replication slot", hint);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, want) in [
            ("0", Some(0)),
            ("0h", Some(0)),
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("6h", Some(21_600)),
            ("365d", Some(31_536_000)),
            ("366d", None),
            ("18446744073709551615d", None),
            ("6", None),
            ("h", None),
            ("+6h", None),
            ("6 h", None),
            ("1.5h", None),
            ("6é", None),
            ("", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        for (text, want) in [
            ("64MB", Some(64 << 20)),
            ("10GB", Some(10 << 30)),
            ("1TB", Some(1 << 40)),
            ("63MB", None),
            ("0GB", None),
            ("18446744073709551615TB", None),
            ("10", None),
            ("GB", None),
            ("10 GB", None),
            ("10gb", None),
            ("1.5GB", None),
            ("+1GB", None),
            ("1€B", None),
            ("", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }

    #[test]
    fn the_strictest_file_counts_and_silence_is_no_vote() {
        let every = |seconds: Option<u64>| SyncBlock { reconcile_every: seconds.map(Duration::from_secs), ..SyncBlock::default() };
        for (blocks, want) in [
            (vec![], Some(21_600)),
            (vec![None, None], Some(21_600)),
            (vec![Some(43_200), None], Some(43_200)),
            (vec![Some(0), None], None),
            (vec![Some(0), Some(60), Some(90)], Some(60)),
        ] {
            let blocks: Vec<_> = blocks.into_iter().map(every).collect();
            assert_eq!(SyncBlock::merge(&blocks).reconcile_every, want.map(Duration::from_secs));
        }
        let limits = |count, percent| SyncBlock { count, percent, ..SyncBlock::default() };
        let merged = SyncBlock::merge(&[limits(Some(5000), Some(0)), limits(Some(4000), None)]);
        assert_eq!(merged.max_removals, MaxRemovals { count: 4000, percent: 0 });
        assert_eq!(merged.max_wal, None);
        let wal = |max_wal| SyncBlock { max_wal, ..SyncBlock::default() };
        assert_eq!(SyncBlock::merge(&[wal(Some(1 << 40)), wal(None), wal(Some(1 << 30))]).max_wal, Some(1 << 30));
    }
}
