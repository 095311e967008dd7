//! Which part of a file a request gets: preconditions and ranges as in RFC 9110. Pure.

use std::ops::Range;

use http::{HeaderMap, HeaderName, Method, header};
use jiff::{Timestamp, fmt::rfc2822};

/// Ranges in one request; who asks for more, or for ones that overlap, gets the whole (RFC 9110, 14.2).
const MAX_RANGES: usize = 16;

/// What identifies the present content.
#[derive(Clone, Copy, Debug)]
pub struct Validators<'a> {
    /// The strong entity tag, with its quotes.
    pub etag: &'a str,
    /// When it was made.
    pub modified: Timestamp,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200: all of it.
    Whole,
    /// 206: these bytes; several make a multipart body.
    Parts(Vec<Range<u64>>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416: no byte of what was asked for is there.
    Unsatisfiable,
}

/// What `method` with these headers gets of a content of `length` bytes: preconditions in the order of RFC 9110,
/// section 13.2.2, then the range.
pub fn select(method: &Method, headers: &HeaderMap, now: Validators<'_>, length: u64) -> Selection {
    let matches = |name| named(headers, name).map(|list| lists(&list, now.etag));
    let date = |name: HeaderName| named(headers, name).and_then(|text| parse_date(&text));
    let if_match = matches(header::IF_MATCH);
    let fails = if_match
        .map(|matched| !matched)
        .or_else(|| date(header::IF_UNMODIFIED_SINCE).map(|since| seconds(now.modified) > seconds(since)));
    if fails == Some(true) {
        return Selection::PreconditionFailed;
    }
    // Weak comparison: our tags are strong, so a client's weak one names the same content.
    let none_match = named(headers, header::IF_NONE_MATCH)
        .map(|list| lists(&list.replace("W/\"", "\""), now.etag))
        .or_else(|| date(header::IF_MODIFIED_SINCE).map(|since| seconds(now.modified) <= seconds(since)));
    if none_match == Some(true) {
        return Selection::NotModified;
    }
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some(range) = range.filter(|_| method == Method::GET) else { return Selection::Whole };
    // A date is no strong validator for content made within the same second, and clients have the tag.
    let current = named(headers, header::IF_RANGE).is_none_or(|tag| tag.trim() == now.etag);
    if current { ranges(range, length) } else { Selection::Whole }
}

/// A header's values in one text; a client may send a list in several lines.
fn named(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Whether a list of entity tags has `etag`, or is `*`.
fn lists(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|item| item == "*" || item == etag)
}

fn seconds(time: Timestamp) -> i64 {
    time.as_second()
}

fn parse_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// A time as HTTP writes it.
pub fn date(time: Timestamp) -> String {
    rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}

/// A `Range` header's meaning. One that makes no sense is no range (RFC 9110, 14.2).
fn ranges(text: &str, length: u64) -> Selection {
    let Some(specs) = text.trim().strip_prefix("bytes=") else { return Selection::Whole };
    let (mut parts, mut count) = (Vec::new(), 0);
    for spec in specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        count += 1;
        let Some((first, last)) = spec.split_once('-') else { return Selection::Whole };
        let number = |text: &str| -> Option<Option<u64>> {
            match text {
                "" => Some(None),
                // More digits than a number holds are more bytes than there are.
                _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Some(Some(text.parse().unwrap_or(u64::MAX)))
                }
                _ => None,
            }
        };
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Selection::Whole };
        let part = match (first, last) {
            (None, None) => return Selection::Whole,
            (Some(first), Some(last)) if first > last => return Selection::Whole,
            (None, Some(suffix)) => length.saturating_sub(suffix)..length,
            (Some(first), None) => first..length,
            (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        };
        if part.start < part.end {
            parts.push(part);
        }
    }
    let overlaps = parts.iter().zip(parts.iter().skip(1)).any(|(one, next)| next.start < one.end);
    match parts.len() {
        _ if count == 0 || count > MAX_RANGES || overlaps => Selection::Whole,
        0 => Selection::Unsatisfiable,
        _ => Selection::Parts(parts),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"abc\"";

    fn selected(method: &Method, headers: &[(&str, &str)]) -> Selection {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let modified = Timestamp::from_second(784_111_777).unwrap();
        select(method, &headers.collect(), Validators { etag: TAG, modified }, 1000)
    }

    fn got(headers: &[(&str, &str)]) -> Selection {
        selected(&Method::GET, headers)
    }

    fn one(range: Range<u64>) -> Selection {
        Selection::Parts(vec![range])
    }

    #[test]
    fn preconditions_come_before_ranges() {
        let range = ("range", "bytes=0-9");
        assert_eq!(got(&[("if-match", "\"old\""), range]), Selection::PreconditionFailed);
        assert_eq!(got(&[("if-match", "\"old\", \"abc\""), range]), one(0..10));
        assert_eq!(got(&[("if-match", "*")]), Selection::Whole);
        assert_eq!(got(&[("if-match", "W/\"abc\"")]), Selection::PreconditionFailed);
        assert_eq!(got(&[("if-none-match", "W/\"abc\""), range]), Selection::NotModified);
        assert_eq!(got(&[("if-none-match", "\"x\""), range]), one(0..10));
        let (then, before) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT");
        assert_eq!(got(&[("if-modified-since", then)]), Selection::NotModified);
        assert_eq!(got(&[("if-modified-since", before)]), Selection::Whole);
        assert_eq!(got(&[("if-unmodified-since", before)]), Selection::PreconditionFailed);
        assert_eq!(got(&[("if-unmodified-since", then)]), Selection::Whole);
        assert_eq!(got(&[("if-modified-since", then), ("if-none-match", "\"x\"")]), Selection::Whole);
        assert_eq!(got(&[("if-modified-since", "yesterday")]), Selection::Whole);
    }

    #[test]
    fn a_range_holds_only_for_the_content_it_was_meant_for() {
        let range = ("range", "bytes=0-9");
        assert_eq!(got(&[("if-range", TAG), range]), one(0..10));
        assert_eq!(got(&[("if-range", "\"old\""), range]), Selection::Whole);
        assert_eq!(got(&[("if-range", "Sun, 06 Nov 1994 08:49:37 GMT"), range]), Selection::Whole);
        assert_eq!(selected(&Method::HEAD, &[range]), Selection::Whole);
    }

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let range = |text| got(&[("range", text)]);
        assert_eq!(range("bytes=0-0"), one(0..1));
        assert_eq!(range("bytes=990-"), one(990..1000));
        assert_eq!(range("bytes=990-5000"), one(990..1000));
        assert_eq!(range("bytes=-10"), one(990..1000));
        assert_eq!(range("bytes=-5000"), one(0..1000));
        assert_eq!(range("bytes=0-1, 5-6"), Selection::Parts(vec![0..2, 5..7]));
        assert_eq!(range("bytes=0-1, 5000-"), one(0..2));
        assert_eq!(range("bytes=1000-"), Selection::Unsatisfiable);
        assert_eq!(range("bytes=-0"), Selection::Unsatisfiable);
        assert_eq!(range("bytes=99999999999999999999-"), Selection::Unsatisfiable);
        for whole in
            ["bytes=5-4", "bytes=-", "bytes=a-b", "bytes=", "lines=1-2", "bytes=0-5,3-9", "bytes=+1-2"]
        {
            assert_eq!(range(whole), Selection::Whole, "{whole}");
        }
        let many = format!("bytes={}", (0..17).map(|at| format!("{at}-{at},")).collect::<String>());
        assert_eq!(range(&many), Selection::Whole);
    }

    #[test]
    fn dates_are_written_as_http_wants_them() {
        assert_eq!(date(Timestamp::from_second(784_111_777).unwrap()), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    proptest! {
        #[test]
        fn whatever_is_asked_lies_within_the_content(text in "bytes=[0-9,\\- ]{0,30}", length in 0_u64..2000) {
            if let Selection::Parts(parts) = ranges(&text, length) {
                for part in parts {
                    prop_assert!(part.start < part.end && part.end <= length);
                }
            }
        }
    }
}
