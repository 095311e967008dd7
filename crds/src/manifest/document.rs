//! Documents within a text. Split by lines before parsing, so that one with broken syntax cannot swallow the rest: at the
//! start of a line `---` and `...` are markers whatever surrounds them, even inside a block or a quoted scalar.

/// One document's text, and how many lines come before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    pub(super) text: &'a str,
    pub(super) lines_before: usize,
}

/// Splits a text at its markers; documents of nothing but comments and directives are left out.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 0, 0);
    let mut push = |from: usize, to: usize, lines_before: usize| {
        let text = text.get(from..to).unwrap_or_default();
        if text.lines().any(has_content) {
            chunks.push(Chunk { text, lines_before });
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            // Content may follow the marker on its line, so the marker stays with what it opens.
            push(start, offset, first_line);
            (start, first_line) = (offset, number);
        } else if is_marker(line, "...") {
            push(start, offset, first_line);
            (start, first_line) = (offset + line.len(), number + 1);
        }
        offset += line.len();
    }
    push(start, offset, first_line);
    chunks
}

fn is_marker(line: &str, marker: &str) -> bool {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn has_content(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}');
    let line = if is_marker(line, "---") { line.trim_start_matches('-') } else { line };
    let line = line.trim();
    !line.is_empty() && !line.starts_with(['#', '%'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(&str, usize)> {
        split(text).into_iter().map(|chunk| (chunk.text, chunk.lines_before)).collect()
    }

    #[test]
    fn documents_are_split_at_their_markers() {
        assert_eq!(texts("a: 1\n---\nb: 2\n"), [("a: 1\n", 0), ("---\nb: 2\n", 1)]);
        assert_eq!(
            texts("--- {a: 1}\n...\n# end\n---\n---\r\nb: 2"),
            [("--- {a: 1}\n", 0), ("---\r\nb: 2", 4)]
        );
        assert_eq!(texts("a: |\n  ---\n  x\n"), [("a: |\n  ---\n  x\n", 0)]);
    }

    #[test]
    fn comments_and_directives_are_no_documents() {
        assert_eq!(texts("# only\n---\n\n%YAML 1.2\n--- # nothing\n"), []);
        assert_eq!(texts(""), []);
    }
}
