//! The answer to `ls-refs`.

use anyhow::{Context, Result, bail, ensure};
use sha1::{Digest as _, Sha1};

use super::pktline::{self, Header};

/// One line of an answer to `ls-refs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// The object it names.
    pub oid: String,
    /// Its full name.
    pub name: String,
    /// The ref that this one stands for, where it is symbolic.
    pub target: Option<String>,
}

/// A whole answer to `ls-refs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefSet {
    /// The lines, in the server's order.
    pub refs: Vec<Ref>,
    /// SHA-1 over the sorted `oid name` lines: equal for equal sets, whatever attributes came with them.
    pub digest: String,
}

impl RefSet {
    /// The commit that HEAD stands for.
    pub fn head(&self) -> Option<&str> {
        self.refs.iter().find(|line| line.name == "HEAD").map(|line| line.oid.as_str())
    }

    /// Each object that a branch or a tag names, once: what a full clone wants.
    pub fn wants(&self) -> Vec<String> {
        let named = |line: &&Ref| line.name.starts_with("refs/heads/") || line.name.starts_with("refs/tags/");
        let mut wants: Vec<_> = self.refs.iter().filter(named).map(|line| line.oid.clone()).collect();
        wants.sort_unstable();
        wants.dedup();
        wants
    }
}

/// Reads an answer.
pub(super) fn parse(mut body: &[u8]) -> Result<RefSet> {
    let mut refs = Vec::new();
    loop {
        let (header, data, rest) = pktline::split(body)?;
        body = rest;
        match header {
            Header::Data(_) => refs.push(parse_line(data)?),
            Header::Flush => break,
            other => bail!("{other:?} in an answer to ls-refs"),
        }
    }
    ensure!(body.is_empty(), "{} bytes after the end of the answer", body.len());
    let mut lines: Vec<String> = refs.iter().map(|Ref { oid, name, .. }| format!("{oid} {name}\n")).collect();
    lines.sort_unstable();
    let digest = super::hex(&Sha1::digest(lines.concat()));
    Ok(RefSet { refs, digest })
}

fn parse_line(line: &[u8]) -> Result<Ref> {
    let line = std::str::from_utf8(line).context("a ref's name is not UTF-8")?.trim_end();
    if let Some(reason) = line.strip_prefix("ERR ") {
        bail!("the server says: {reason}");
    }
    let mut words = line.split(' ');
    let (Some(oid), Some(name)) = (words.next(), words.next()) else { bail!("not a ref: {line:?}") };
    ensure!(oid.len() >= 40 && oid.bytes().all(|byte| byte.is_ascii_hexdigit()), "not an object id: {oid:?}");
    let target = words.find_map(|word| word.strip_prefix("symref-target:")).map(ToOwned::to_owned);
    Ok(Ref { oid: oid.to_owned(), name: name.to_owned(), target })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn body(lines: &[String]) -> Vec<u8> {
        let mut body = Vec::new();
        lines.iter().for_each(|line| pktline::line(&mut body, line));
        pktline::flush(&mut body);
        body
    }

    #[test]
    fn the_digest_is_about_the_set_alone() {
        let head = format!("{A} HEAD symref-target:refs/heads/main\n");
        let main = format!("{A} refs/heads/main\n");
        let tag = format!("{B} refs/tags/v1 peeled:{A}\n");
        let one = parse(&body(&[head, main.clone(), tag])).unwrap();
        let other = parse(&body(&[format!("{B} refs/tags/v1\n"), main, format!("{A} HEAD\n")])).unwrap();
        assert_eq!(one.digest, other.digest);
        assert_eq!(one.head(), Some(A));
        assert_eq!(one.refs[0].target.as_deref(), Some("refs/heads/main"));
        assert_eq!(one.wants(), [A, B]);
    }

    #[test]
    fn an_answer_that_is_cut_or_an_error_is_no_ref_set() {
        let whole = body(&[format!("{A} refs/heads/main\n")]);
        assert!(parse(&whole[..whole.len() - 4]).is_err());
        assert!(parse(&[&whole[..], b"0000"].concat()).is_err());
        assert!(
            parse(&body(&["ERR upstream is gone\n".to_owned()])).unwrap_err().to_string().contains("gone")
        );
    }
}
