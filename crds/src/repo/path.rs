//! Paths: percent-decoded, checked segment by segment, and written in one canonical form.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{MAX_PATH, MAX_SEGMENT, RepoIdError};

/// Everything but the unreserved characters of RFC 3986.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Checks a percent-encoded path without its leading slash and returns its canonical form, without `.git`.
pub(super) fn canonical(path: &str) -> Result<String, RepoIdError> {
    if path.is_empty() {
        return Err(RepoIdError::NoPath);
    }
    // Bounds the work below; canonical segments are never shorter than a third of what was written.
    if path.len() > 3 * (MAX_PATH + ".git".len()) {
        return Err(RepoIdError::PathTooLong);
    }
    let mut canonical = String::with_capacity(path.len());
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let segment = decode(segment)?;
        let segment = match segment.strip_suffix(".git") {
            // `.git` alone is a directory inside a worktree, not a repository's name.
            Some(stem) if segments.peek().is_none() && !stem.is_empty() && !stem.ends_with(".git") => stem,
            Some(_) => return Err(RepoIdError::InnerGit),
            None => &segment,
        };
        let start = canonical.len();
        canonical.extend(utf8_percent_encode(check(segment)?, &ENCODED));
        if canonical.len() - start > MAX_SEGMENT {
            return Err(RepoIdError::SegmentTooLong);
        }
        if segments.peek().is_some() {
            canonical.push('/');
        }
    }
    if canonical.len() > MAX_PATH { Err(RepoIdError::PathTooLong) } else { Ok(canonical) }
}

/// The canonical form of a part of a segment.
pub(super) fn canonical_part(part: &str) -> Result<String, RepoIdError> {
    if !part.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RepoIdError::NotEncoded);
    }
    let decoded = decode(part)?;
    if decoded.chars().any(|c| c.is_control() || c == '\\') {
        return Err(RepoIdError::Control);
    }
    Ok(utf8_percent_encode(&decoded, &ENCODED).to_string())
}

/// Decodes one segment; what would change where a segment ends is refused even though it was encoded.
fn decode(segment: &str) -> Result<String, RepoIdError> {
    for (_, rest) in segment.match_indices('%').map(|(at, _)| segment.split_at(at)) {
        match rest.as_bytes() {
            [_, b'2', b'f' | b'F' | b'e' | b'E', ..] | [_, b'5', b'c' | b'C', ..] => {
                return Err(RepoIdError::EncodedSeparator);
            }
            [_, high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {}
            _ => return Err(RepoIdError::PercentEncoding),
        }
    }
    let decoded = percent_decode_str(segment).decode_utf8().map_err(|_| RepoIdError::NotUtf8)?;
    Ok(decoded.into_owned())
}

fn check(segment: &str) -> Result<&str, RepoIdError> {
    match segment {
        "" => Err(RepoIdError::EmptySegment),
        "." | ".." => Err(RepoIdError::DotSegment),
        _ if segment.chars().any(|c| c.is_control() || c == '\\') => Err(RepoIdError::Control),
        _ => Ok(segment),
    }
}
