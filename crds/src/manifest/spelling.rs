//! Guesses what was meant by a misspelt name.

/// The known name closest to `written`, if it is close.
pub(super) fn closest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Letters in the wrong order count as two slips; two slips in a name of three letters make another name.
    let most = written.len().div_ceil(3).clamp(1, 3);
    // Bounds the work: no field is that long.
    let written = written.get(..64.min(written.len())).unwrap_or_default();
    known
        .map(|name| (distance(written, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance; case counts for nothing, as `cacheref` is a slip of the same kind.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<u8> = b.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().map(|byte| byte.to_ascii_lowercase()).enumerate() {
        let mut next = Vec::with_capacity(row.len());
        let mut left = i + 1;
        next.push(left);
        for (y, pair) in b.iter().zip(row.windows(2)) {
            let (diagonal, above) = match pair {
                [diagonal, above] => (*diagonal, *above),
                _ => continue,
            };
            left = (left + 1).min(above + 1).min(diagonal + usize::from(x != *y));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_field() {
        let known = ["interval", "url", "cacheRef", "timeout", "refs"];
        for (written, meant) in [
            ("intervall", Some("interval")),
            ("intreval", Some("interval")),
            ("URL", Some("url")),
            ("cacheref", Some("cacheRef")),
            ("ref", Some("refs")),
            ("branch", None),
            ("", None),
        ] {
            assert_eq!(closest(written, known.into_iter()), meant, "{written}");
        }
    }
}
