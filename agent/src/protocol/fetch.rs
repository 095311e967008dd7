//! The `fetch` command of protocol v2 (gitprotocol-v2(5)): read, normalised, and named by a key. Pure.
//!
//! Two requests with one key want the same pack, whatever the order of their lines and whoever sends them.
//! What a pack holds depends on the objects named, never on where refs point, with three exceptions:
//! `deepen-not` names a ref, and `filter sparse:oid=` may (such a request has no key); `include-tag` adds annotated tags
//! (their digest becomes part of the key). Filters whose effect is the same, such as two limits above the largest blob,
//! have keys of their own: which blob is the largest is known only after all have been looked at.

use bstr::{BString, ByteSlice};
use sha2::{Digest, Sha256};

use super::pktline::{FLUSH, write};
use crate::git::{ObjectFormat, Oid, RefSet};

/// A `fetch` request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// Objects the client wants to have afterwards; sorted, each once.
    pub wants: Vec<Oid>,
    /// Objects the client says it has; sorted, each once.
    pub haves: Vec<Oid>,
    /// Commits whose parents the client lacks; sorted, each once.
    pub shallow: Vec<Oid>,
    /// How many commits deep.
    pub deepen: Option<u32>,
    /// Whether `deepen` counts from the client's boundary.
    pub deepen_relative: bool,
    /// Only commits younger than this.
    pub deepen_since: Option<BString>,
    /// Which objects to leave out.
    pub filter: Option<BString>,
    /// The client has said all; send the pack.
    pub done: bool,
    thin_pack: bool,
    no_progress: bool,
    include_tag: bool,
    ofs_delta: bool,
    wait_for_done: bool,
    /// Holds something whose answer is not a function of the rest: never shared.
    unusual: bool,
}

/// Names the answer to a request: SHA-256 over repository and normalised request.
pub type Key = [u8; 32];

/// A line that is not an argument of `fetch`, or not a well-formed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine(pub BString);

impl Fetch {
    /// Reads the arguments of a request. Ones this agent does not know make it unshareable, for git to
    /// judge.
    ///
    /// # Errors
    /// An object name or number that is none.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BadLine> {
        let mut request = Self::default();
        for line in arguments {
            let bad = || BadLine(line.into());
            let oid = |hex: &[u8]| Oid::from_hex(hex).ok_or_else(bad);
            match line.split_once_str(" ").unwrap_or((line, b"")) {
                (b"want", hex) => request.wants.push(oid(hex)?),
                (b"have", hex) => request.haves.push(oid(hex)?),
                (b"shallow", hex) => request.shallow.push(oid(hex)?),
                (b"deepen", number) if request.deepen.is_none() => {
                    request.deepen = Some(depth(number).ok_or_else(bad)?);
                }
                (b"deepen-since", time) => request.deepen_since = Some(time.into()),
                // A second filter is git's to refuse.
                (b"filter", _) if request.filter.is_some() => request.unusual = true,
                (b"filter", filter) => {
                    request.unusual |= names_objects(filter);
                    request.filter = Some(filter.into());
                }
                (b"deepen-relative", b"") => request.deepen_relative = true,
                (b"done", b"") => request.done = true,
                (b"thin-pack", b"") => request.thin_pack = true,
                (b"no-progress", b"") => request.no_progress = true,
                (b"include-tag", b"") => request.include_tag = true,
                (b"ofs-delta", b"") => request.ofs_delta = true,
                (b"wait-for-done", b"") => request.wait_for_done = true,
                // want-ref, deepen-not, sideband-all, packfile-uris, and what is not invented yet.
                _ => request.unusual = true,
            }
        }
        for oids in [&mut request.wants, &mut request.haves, &mut request.shallow] {
            oids.sort_unstable();
            oids.dedup();
        }
        Ok(request)
    }

    /// The same request for other objects, by clients that have others.
    pub fn about(&self, wants: Vec<Oid>, haves: Vec<Oid>, shallow: Vec<Oid>) -> Self {
        Self { wants, haves, shallow, ..self.clone() }
    }

    /// Whether a pack with all that the wanted objects reach answers it, deltas and all.
    pub fn wants_all(&self) -> bool {
        self.done
            && self.ofs_delta
            && !self.wait_for_done
            && !self.is_shallow()
            && !self.deepen_relative
            && self.haves.is_empty()
            && self.filter.is_none()
    }

    /// Whether the wanted commits without their history answer it, deltas and all.
    pub fn wants_tree(&self) -> bool {
        self.deepen == Some(1)
            && self.shallow.is_empty()
            && !self.include_tag
            && Self { deepen: None, ..self.clone() }.wants_all()
    }

    /// The wanted object, where there is but one.
    pub fn single(&self) -> Option<Oid> {
        match self.wants.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    /// Whether the answer begins with the pack: nothing about acknowledgments or boundaries comes before it.
    pub fn begins_with_pack(&self) -> bool {
        self.done && !self.unusual && !self.wait_for_done && !self.is_shallow()
    }

    /// Marks the request as one whose answer must not be shared.
    pub fn unusual(mut self) -> Self {
        self.unusual = true;
        self
    }

    /// Whether a part of the history is asked for.
    pub fn is_shallow(&self) -> bool {
        self.deepen.is_some() || self.deepen_since.is_some() || !self.shallow.is_empty()
    }

    /// Whether annotated tags of what is sent are to be sent too.
    pub fn includes_tags(&self) -> bool {
        self.include_tag
    }

    /// The request in its one normal form, where it has one: what cannot change the pack is left out.
    pub fn normalised(mut self, refs: &RefSet) -> Option<Self> {
        if self.unusual || self.wants.is_empty() {
            return None;
        }
        // A thin pack leaves out objects the client has: without haves there are none.
        if self.haves.is_empty() && self.shallow.is_empty() {
            self.thin_pack = false;
        }
        // At depth 1 only tags of the wants themselves can be added.
        if self.deepen == Some(1)
            && !annotated(refs).any(|(_, peeled)| self.wants.binary_search(&peeled).is_ok())
        {
            self.include_tag = false;
        }
        Some(self)
    }

    /// The key of a normalised request to the repository `id`.
    pub fn key(&self, id: &str, format: ObjectFormat, refs: &RefSet) -> Key {
        let mut hash = Sha256::new();
        hash.update(id.as_bytes());
        hash.update([0]);
        hash.update(self.to_request(format));
        if self.include_tag {
            for (tag, _) in annotated(refs) {
                hash.update(tag.to_hex().as_bytes());
            }
        }
        hash.finalize().into()
    }

    /// The request as bytes to send.
    pub fn to_request(&self, format: ObjectFormat) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, &[b"command=fetch\n"]);
        write(&mut out, &[b"object-format=", format.name().as_bytes(), b"\n"]);
        out.extend_from_slice(b"0001");
        for (set, word) in [
            (self.thin_pack, "thin-pack\n"),
            (self.no_progress, "no-progress\n"),
            (self.include_tag, "include-tag\n"),
            (self.ofs_delta, "ofs-delta\n"),
            (self.wait_for_done, "wait-for-done\n"),
        ] {
            if set {
                write(&mut out, &[word.as_bytes()]);
            }
        }
        let mut oids = |word: &str, oids: &[Oid]| {
            for oid in oids {
                write(&mut out, &[word.as_bytes(), b" ", oid.to_hex().as_bytes(), b"\n"]);
            }
        };
        oids("shallow", &self.shallow);
        oids("want", &self.wants);
        oids("have", &self.haves);
        if let Some(depth) = self.deepen {
            write(&mut out, &[b"deepen ", depth.to_string().as_bytes(), b"\n"]);
        }
        if self.deepen_relative {
            write(&mut out, &[b"deepen-relative\n"]);
        }
        if let Some(time) = &self.deepen_since {
            write(&mut out, &[b"deepen-since ", time, b"\n"]);
        }
        if let Some(filter) = &self.filter {
            write(&mut out, &[b"filter ", filter, b"\n"]);
        }
        if self.done {
            write(&mut out, &[b"done\n"]);
        }
        out.extend_from_slice(FLUSH);
        out
    }
}

/// Whether a filter names a blob with patterns, which the server looks up by its refs; alone or within `combine:`, where
/// parts may be percent-encoded.
fn names_objects(filter: &[u8]) -> bool {
    percent_encoding::percent_decode(filter).collect::<Vec<u8>>().contains_str("sparse:")
}

/// A depth as git clients write it: plain decimal, at most an `int`. Git itself would also read `010` as 8.
fn depth(number: &[u8]) -> Option<u32> {
    let depth: u32 = number.to_str().ok()?.parse().ok()?;
    let plain = depth.to_string().as_bytes() == number && depth <= i32::MAX.unsigned_abs();
    (plain && depth > 0).then_some(depth)
}

/// The annotated tags among `refs`, each with the object it finally points at.
pub fn annotated(refs: &RefSet) -> impl Iterator<Item = (Oid, Oid)> + '_ {
    refs.refs().iter().filter_map(|r| Some((r.oid, r.peeled?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::git::{Head, Ref};

    fn oid(digit: char) -> Oid {
        Oid::from_hex(digit.to_string().repeat(40).as_bytes()).unwrap()
    }

    fn refs(tags: &[(char, char)]) -> RefSet {
        let tags = tags.iter().map(|(tag, peeled)| Ref {
            name: format!("refs/tags/{tag}").into(),
            oid: oid(*tag),
            peeled: Some(oid(*peeled)),
        });
        RefSet::new(ObjectFormat::Sha1, Head::Missing, tags.collect())
    }

    fn key(lines: &[&str], refs: &RefSet) -> Option<Key> {
        let request = Fetch::parse(lines.iter().map(|line| line.as_bytes())).unwrap().normalised(refs)?;
        Some(request.key("h/r", ObjectFormat::Sha1, refs))
    }

    #[test]
    fn order_and_repetition_make_no_difference() {
        let (one, two) = (format!("want {}", oid('1')), format!("want {}", oid('2')));
        let none = refs(&[]);
        let plain = key(&["ofs-delta", &one, &two, "done"], &none);
        assert!(plain.is_some());
        assert_eq!(plain, key(&["thin-pack", &two, &one, &two, "ofs-delta", "done"], &none));
        assert_ne!(plain, key(&[&one, &two, "done"], &none), "without ofs-delta the pack is another");
        assert_ne!(plain, key(&["ofs-delta", &one, &two, "no-progress", "done"], &none));
    }

    #[test]
    fn a_thin_pack_matters_once_there_are_haves() {
        let (want, have) = (format!("want {}", oid('1')), format!("have {}", oid('2')));
        let none = refs(&[]);
        assert_ne!(key(&["thin-pack", &want, &have], &none), key(&[&want, &have], &none));
    }

    #[test]
    fn tags_matter_only_where_they_can_be_added() {
        let want = format!("want {}", oid('1'));
        let (elsewhere, here) = (refs(&[('a', '2')]), refs(&[('a', '1')]));
        let depth_1 = ["include-tag", &want, "deepen 1", "done"];
        assert_eq!(key(&depth_1, &elsewhere), key(&[&want, "deepen 1", "done"], &refs(&[])));
        assert_ne!(key(&depth_1, &here), key(&depth_1, &elsewhere));
        let full = ["include-tag", &want, "done"];
        assert_ne!(key(&full, &elsewhere), key(&full, &here.clone().filtered(|_| false)));
    }

    #[test]
    fn what_rests_on_more_than_objects_has_no_key() {
        let want = format!("want {}", oid('1'));
        for line in [
            "want-ref refs/heads/main",
            "deepen-not refs/heads/x",
            "sideband-all",
            "packfile-uris https",
            "filter sparse:oid=main:spec",
            "filter combine:blob:none+sparse%3Aoid=main:spec",
            "new",
        ] {
            assert_eq!(key(&[&want, line], &refs(&[])), None, "{line}");
        }
        assert_eq!(key(&["done"], &refs(&[])), None);
    }

    #[test]
    fn nonsense_is_named() {
        for line in
            ["want x", "have", "deepen 0", "deepen 010", "deepen 3000000000", "deepen many", "shallow 1"]
        {
            assert_eq!(Fetch::parse([line.as_bytes()]), Err(BadLine(line.into())));
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_is_read_back_as_itself(bits: [bool; 5], depth in prop::option::of(1u32..9), filter in prop::option::of("[a-r:=0-9]{1,12}")) {
            let request = Fetch {
                wants: vec![oid('1'), oid('2')],
                haves: if bits[0] { vec![oid('3')] } else { vec![] },
                shallow: if bits[1] { vec![oid('4')] } else { vec![] },
                deepen: depth,
                filter: filter.map(BString::from),
                done: bits[2],
                include_tag: bits[3],
                ofs_delta: bits[4],
                ..Fetch::default()
            };
            let body = request.to_request(ObjectFormat::Sha1);
            let lines: Vec<_> = super::super::pktline::Packets::new(&body).filter_map(|p| p.unwrap().line().map(<[u8]>::to_vec)).skip(2).collect();
            prop_assert_eq!(Fetch::parse(lines.iter().map(Vec::as_slice)).unwrap(), request);
        }
    }
}
