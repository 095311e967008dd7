//! A duration as people write it: `90s`, `15m`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::patterns::DURATION;

/// Whole seconds, written as hours, minutes and seconds in that order.
///
/// Keeps the text it was read from: a default reads `15m` in the CRD, and applying a manifest never seems to change it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    text: Cow<'static, str>,
    seconds: u64,
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self::written("0s", 0);

    /// A literal and what it means; a test holds the two together.
    pub(super) const fn written(text: &'static str, seconds: u64) -> Self {
        Self { text: Cow::Borrowed(text), seconds }
    }

    /// The length of time.
    pub const fn get(&self) -> time::Duration {
        time::Duration::from_secs(self.seconds)
    }

    /// The text as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<time::Duration> for Duration {
    /// Rounds down to whole seconds.
    fn from(value: time::Duration) -> Self {
        let seconds = value.as_secs();
        Self { text: format!("{seconds}s").into(), seconds }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be hours, minutes and seconds such as 90s, 15m or 1h30m")]
pub struct DurationError;

/// Units in the order they must come in: letter, seconds, most digits. Bounded so that no sum overflows.
const UNITS: [(char, u64, usize); 3] = [('h', 3600, 4), ('m', 60, 6), ('s', 1, 8)];

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (mut rest, mut seconds) = (text, 0);
        for (unit, factor, most) in UNITS {
            let Some((digits, after)) = rest.split_once(unit) else { continue };
            if digits.len() > most || digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(DurationError);
            }
            let number: u64 = digits.parse().map_err(|_| DurationError)?;
            seconds += number * factor;
            rest = after;
        }
        if text.is_empty() || !rest.is_empty() {
            return Err(DurationError);
        }
        Ok(Self { text: text.to_owned().into(), seconds })
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.text.into_owned()
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 21,
            "pattern": DURATION,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_written() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("336h", 1_209_600), ("1h0m5s", 3605)]
        {
            let duration: Duration = text.parse().unwrap();
            assert_eq!((duration.get().as_secs(), duration.as_str()), (seconds, text));
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "5",
            "h",
            "m5",
            "-5s",
            "+5s",
            "5m1h",
            "1h1h",
            "1.5h",
            "5 m",
            "5ms",
            "99999999999999999999h",
            "10000h",
            "s",
        ] {
            assert_eq!(text.parse::<Duration>(), Err(DurationError), "{text}");
        }
    }

    #[test]
    fn a_computed_duration_reads_back() {
        let duration = Duration::from(time::Duration::from_millis(1500));
        assert_eq!(duration, "1s".parse().unwrap());
    }
}
