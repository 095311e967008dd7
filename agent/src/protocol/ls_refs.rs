//! The `ls-refs` command of protocol v2 (gitprotocol-v2(5)), both sides of it. Pure.

use bstr::{BStr, BString, ByteSlice};

use super::pktline::{FLUSH, Packet, PacketError, Packets, write};
use crate::git::{Head, ObjectFormat, Oid, Ref, RefSet};

/// Git ignores the prefixes once there are this many (TOO_MANY_PREFIXES of its ls-refs.c) and sends all.
const MAX_PREFIXES: usize = 65536;

/// What a client asks of `ls-refs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LsRefs {
    /// Show what annotated tags point at.
    pub peel: bool,
    /// Show which branch `HEAD` names.
    pub symrefs: bool,
    /// Show `HEAD` even where its branch does not exist.
    pub unborn: bool,
    /// Only refs that start with one of these; all where empty.
    pub prefixes: Vec<BString>,
}

/// Why an `ls-refs` exchange makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LsRefsError {
    /// Broken framing.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The other side says it cannot.
    #[error("the upstream answers: {0}")]
    Remote(String),
    /// A line that is no ref.
    #[error("line {line} of the ref list is not a ref")]
    Syntax {
        /// Counted from 1.
        line: usize,
    },
    /// The list ends without its flush packet.
    #[error("the ref list is cut short")]
    Truncated,
}

impl LsRefs {
    /// The request for everything a mirror keeps: all refs, peeled, `HEAD` even if unborn.
    pub fn everything() -> Self {
        Self { peel: true, symrefs: true, unborn: true, prefixes: Vec::new() }
    }

    /// Reads the arguments of a request; unknown ones are refused by name, as git does.
    ///
    /// # Errors
    /// The first unknown argument.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BString> {
        let mut request = Self::default();
        let mut too_many = false;
        for argument in arguments {
            match argument {
                b"peel" => request.peel = true,
                b"symrefs" => request.symrefs = true,
                b"unborn" => request.unborn = true,
                other => match other.strip_prefix(b"ref-prefix ") {
                    Some(_) if request.prefixes.len() >= MAX_PREFIXES => too_many = true,
                    Some(prefix) => request.prefixes.push(prefix.into()),
                    None => return Err(other.into()),
                },
            }
        }
        if too_many {
            request.prefixes.clear();
        }
        // In one order, so that equal requests are seen to be; without those that others include.
        request.prefixes.sort_unstable();
        request.prefixes.dedup_by(|next, before| next.starts_with(before));
        Ok(request)
    }

    /// The request as bytes to send.
    pub fn to_request(&self, format: ObjectFormat, agent: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, &[b"command=ls-refs\n"]);
        write(&mut out, &[b"agent=", agent.as_bytes(), b"\n"]);
        write(&mut out, &[b"object-format=", format.name().as_bytes(), b"\n"]);
        out.extend_from_slice(b"0001");
        for (wanted, word) in [(self.peel, "peel\n"), (self.symrefs, "symrefs\n"), (self.unborn, "unborn\n")]
        {
            if wanted {
                write(&mut out, &[word.as_bytes()]);
            }
        }
        for prefix in &self.prefixes {
            write(&mut out, &[b"ref-prefix ", prefix, b"\n"]);
        }
        out.extend_from_slice(FLUSH);
        out
    }

    /// How much work the answer is: as many steps for each as for a ref.
    pub fn cost(&self, refs: &RefSet) -> usize {
        self.prefixes.len().saturating_add(refs.refs().len())
    }

    /// The answer to this request from `refs`.
    pub fn respond(&self, refs: &RefSet) -> Vec<u8> {
        let mut out = Vec::with_capacity(if self.prefixes.is_empty() { refs.refs().len() * 72 } else { 256 });
        if self.wants(b"HEAD".as_bstr()) {
            self.respond_head(refs, &mut out);
        }
        for r in self.selected(refs) {
            let oid = r.oid.to_hex();
            match r.peeled.filter(|_| self.peel) {
                Some(peeled) => {
                    let peeled = peeled.to_hex();
                    write(&mut out, &[oid.as_bytes(), b" ", &r.name, b" peeled:", peeled.as_bytes(), b"\n"]);
                }
                None => write(&mut out, &[oid.as_bytes(), b" ", &r.name, b"\n"]),
            }
        }
        out.extend_from_slice(FLUSH);
        out
    }

    fn respond_head(&self, refs: &RefSet, out: &mut Vec<u8>) {
        let target = match refs.head() {
            Head::Symbolic(name) if self.symrefs => Some(name),
            _ => None,
        };
        match (refs.head_oid(), target) {
            (Some(oid), Some(target)) => {
                write(out, &[oid.to_hex().as_bytes(), b" HEAD symref-target:", target, b"\n"]);
            }
            (Some(oid), None) => write(out, &[oid.to_hex().as_bytes(), b" HEAD\n"]),
            (None, Some(target)) if self.unborn => {
                write(out, &[b"unborn HEAD symref-target:", target, b"\n"]);
            }
            (None, _) => {}
        }
    }

    fn wants(&self, name: &BStr) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The refs this request selects, in their order: each prefix a run of the sorted refs, found by halving.
    fn selected<'a>(&'a self, refs: &'a RefSet) -> impl Iterator<Item = &'a Ref> + 'a {
        let mut prefixes: Vec<&BStr> = self.prefixes.iter().map(|prefix| prefix.as_bstr()).collect();
        prefixes.sort_unstable();
        prefixes.dedup_by(|next, before| next.starts_with(before));
        let all = self.prefixes.is_empty().then(|| refs.refs());
        all.into_iter().chain(prefixes.into_iter().map(|prefix| run(refs.refs(), prefix))).flatten()
    }
}

/// The refs whose names start with `prefix`.
fn run<'a>(refs: &'a [Ref], prefix: &BStr) -> &'a [Ref] {
    let (_, rest) = refs.split_at(refs.partition_point(|r| r.name.as_bstr() < prefix));
    let (run, _) = rest.split_at(rest.partition_point(|r| r.name.starts_with(prefix)));
    run
}

/// Reads the upstream's answer to [`LsRefs::everything`].
///
/// # Errors
/// Anything but a whole list of refs, its flush packet included.
pub fn parse_response(body: &[u8], format: ObjectFormat) -> Result<RefSet, LsRefsError> {
    let (mut refs, mut head, mut head_oid) = (Vec::new(), Head::Missing, None);
    for (at, packet) in Packets::new(body).enumerate() {
        let packet = packet?;
        let Some(line) = packet.line() else {
            return if packet == Packet::Flush {
                Ok(whole(format, head, head_oid, refs))
            } else {
                Err(LsRefsError::Truncated)
            };
        };
        if let Some(message) = line.strip_prefix(b"ERR ") {
            return Err(LsRefsError::Remote(message.to_str_lossy().into_owned()));
        }
        let syntax = || LsRefsError::Syntax { line: at + 1 };
        let mut words = line.split_str(" ");
        let value = words.next().ok_or_else(syntax)?;
        let name = words.next().ok_or_else(syntax)?;
        let (mut target, mut peeled) = (None, None);
        for attribute in words {
            if let Some(symref) = attribute.strip_prefix(b"symref-target:") {
                target = Some(symref);
            } else if let Some(oid) = attribute.strip_prefix(b"peeled:") {
                peeled = Some(Oid::from_hex(oid).ok_or_else(syntax)?);
            }
        }
        match (name, target) {
            (b"HEAD", Some(target)) => {
                (head, head_oid) = (Head::Symbolic(target.into()), Oid::from_hex(value));
            }
            (b"HEAD", None) => head = Head::Detached(Oid::from_hex(value).ok_or_else(syntax)?),
            _ => refs.push(Ref { name: name.into(), oid: Oid::from_hex(value).ok_or_else(syntax)?, peeled }),
        }
    }
    Err(LsRefsError::Truncated)
}

/// The branch that `HEAD` names belongs to the answer even where the prefixes asked for leave it out.
fn whole(format: ObjectFormat, head: Head, head_oid: Option<Oid>, mut refs: Vec<Ref>) -> RefSet {
    if let (Head::Symbolic(name), Some(oid)) = (&head, head_oid) {
        refs.push(Ref { name: name.clone(), oid, peeled: None });
    }
    RefSet::new(format, head, refs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn oid(digit: char) -> Oid {
        Oid::from_hex(digit.to_string().repeat(40).as_bytes()).unwrap()
    }

    fn sample() -> RefSet {
        let refs =
            [("refs/heads/a", '1', None), ("refs/heads/b", '2', None), ("refs/tags/v1", '3', Some(oid('1')))];
        let refs = refs.map(|(name, digit, peeled)| Ref { name: name.into(), oid: oid(digit), peeled });
        RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/heads/a".into()), refs.into())
    }

    fn lines(answer: &[u8]) -> Vec<String> {
        Packets::new(answer).filter_map(|p| Some(p.unwrap().line()?.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn a_whole_answer_is_read_back() {
        let refs = sample();
        let answer = LsRefs::everything().respond(&refs);
        assert_eq!(parse_response(&answer, ObjectFormat::Sha1).unwrap(), refs);
    }

    #[test]
    fn an_answer_with_head_alone_still_tells_where_it_leads() {
        let asked = LsRefs { prefixes: vec!["HEAD".into()], ..LsRefs::everything() };
        let read = parse_response(&asked.respond(&sample()), ObjectFormat::Sha1).unwrap();
        assert_eq!(read.head_oid(), Some(oid('1')));
    }

    #[test]
    fn prefixes_select() {
        let ask = |prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(|p| BString::from(*p)).collect();
            lines(&LsRefs { prefixes, ..LsRefs::default() }.respond(&sample())).len()
        };
        assert_eq!(ask(&[]), 4);
        assert_eq!(ask(&["refs/heads/"]), 2);
        assert_eq!(ask(&["refs/heads/b", "HEAD"]), 2);
        assert_eq!(ask(&["refs/heads/b", "refs/tags/"]), 2);
        assert_eq!(ask(&["refs/x"]), 0);
    }

    #[test]
    fn unborn_and_detached_heads_show_as_git_shows_them() {
        let unborn = RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/heads/new".into()), vec![]);
        let everything = LsRefs::everything();
        assert_eq!(lines(&everything.respond(&unborn)), ["unborn HEAD symref-target:refs/heads/new"]);
        assert!(lines(&LsRefs { unborn: false, ..everything.clone() }.respond(&unborn)).is_empty());
        let detached = RefSet::new(ObjectFormat::Sha1, Head::Detached(oid('7')), vec![]);
        assert_eq!(lines(&everything.respond(&detached)), [format!("{} HEAD", oid('7'))]);
    }

    #[test]
    fn unknown_arguments_are_named() {
        let arguments: [&[u8]; 2] = [b"peel", b"colour blue"];
        assert_eq!(LsRefs::parse(arguments), Err("colour blue".into()));
    }

    #[test]
    fn a_cut_or_refused_answer_is_an_error() {
        let answer = LsRefs::everything().respond(&sample());
        let cut = answer.get(..answer.len() - 4).unwrap();
        assert_eq!(parse_response(cut, ObjectFormat::Sha1), Err(LsRefsError::Truncated));
        let refused = super::super::pktline::error("go away");
        assert_eq!(parse_response(&refused, ObjectFormat::Sha1), Err(LsRefsError::Remote("go away".into())));
    }

    proptest! {
        #[test]
        fn prefixes_select_what_a_comparison_of_each_ref_with_each_prefix_does(
            names in prop::collection::vec("refs/[a-c]{1,2}(/[a-c]{1,3})?", 0..40),
            prefixes in prop::collection::vec("(refs/?)?[a-c]{0,2}(/[a-c]{0,2})?|HEAD|HE", 0..12),
        ) {
            let refs = names.iter().map(|name| Ref { name: name.as_str().into(), oid: oid('1'), peeled: None });
            let refs = RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/a".into()), refs.collect());
            let starts = |name: &str| prefixes.is_empty() || prefixes.iter().any(|p| name.starts_with(p.as_str()));
            let naive: Vec<_> = refs.refs().iter().filter(|r| starts(r.name.to_str().unwrap())).collect();
            let asked = LsRefs { prefixes: prefixes.iter().map(|p| p.as_str().into()).collect(), ..LsRefs::default() };
            prop_assert_eq!(asked.selected(&refs).collect::<Vec<_>>(), naive);
            let lines: Vec<_> = prefixes.iter().map(|p| format!("ref-prefix {p}")).collect();
            let parsed = LsRefs::parse(lines.iter().map(|line| line.as_bytes())).unwrap();
            prop_assert_eq!(parsed.respond(&refs), asked.respond(&refs));
        }

        #[test]
        fn any_answer_is_read_without_panic(bytes: Vec<u8>) {
            let _ = parse_response(&bytes, ObjectFormat::Sha1);
        }
    }
}
