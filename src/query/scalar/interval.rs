//! interval constants.

/// An interval: its parts do not convert into each other, since months and days have no fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Months, years included.
    pub months: i32,
    /// Days.
    pub days: i32,
    /// Microseconds, hours included.
    pub micros: i64,
}

/// Reads the datum of an interval constant.
pub fn interval_constant(bytes: &[u8]) -> Option<Interval> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    let (micros, rest) = bytes.split_first_chunk()?;
    let (days, months) = rest.split_first_chunk()?;
    Some(Interval {
        months: i32::from_le_bytes(months.try_into().ok()?),
        days: i32::from_le_bytes(*days),
        micros: i64::from_le_bytes(*micros),
    })
}

impl Interval {
    /// The text in style `postgres`.
    pub(super) fn text(self) -> String {
        if self == (Self { months: i32::MAX, days: i32::MAX, micros: i64::MAX }) {
            return "infinity".to_owned();
        }
        if self == (Self { months: i32::MIN, days: i32::MIN, micros: i64::MIN }) {
            return "-infinity".to_owned();
        }
        let mut text = String::new();
        // A positive part behind a negative one gets its sign.
        let mut negative = false;
        for (value, unit) in [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")] {
            if value != 0 {
                let (space, plus) = (if text.is_empty() { "" } else { " " }, if negative && value > 0 { "+" } else { "" });
                text += &format!("{space}{plus}{value} {unit}{}", if value == 1 { "" } else { "s" });
                negative = value < 0;
            }
        }
        if self.micros != 0 || text.is_empty() {
            let sign = match (self.micros < 0, negative) {
                (true, _) => "-",
                (false, true) => "+",
                (false, false) => "",
            };
            let space = if text.is_empty() { "" } else { " " };
            text += &format!("{space}{sign}{}", clock(self.micros.unsigned_abs()));
        }
        text
    }
}

/// `HH:MM:SS` and what a second has more, without zeros at its end.
pub(super) fn clock(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros == 0 { text } else { format!("{text}.{micros:06}").trim_end_matches('0').to_owned() }
}
