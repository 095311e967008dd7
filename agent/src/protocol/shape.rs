//! What a request for objects asks for, told by refs instead of objects: what such clients will ask for once the refs
//! have moved. Pure.
//!
//! A clone wants the tips of some refs and has nothing. Some clients always begin with the same state, of a snapshot or an
//! image, say, and want the tip of one ref. What others have, who follow a repository, is not foreseen: their answers are
//! small, and made in milliseconds.

use bstr::{BString, ByteSlice};

use super::fetch::Fetch;
use crate::git::{Head, Oid, Ref, RefSet};

/// So many commits does git name in its first round (`INITIAL_FLUSH` in fetch-pack.c).
const FIRST_HAVES: usize = 16;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    wants: Wants,
    has: Has,
    /// All else: the request without objects.
    rest: Fetch,
}

/// Which objects are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Wants {
    /// One ref's.
    Of(BString),
    /// All branches' and tags'.
    BranchesAndTags,
    /// All branches'.
    Branches,
    /// All refs'.
    All,
}

/// What the client has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Has {
    Nothing,
    /// Always this.
    This {
        haves: Vec<Oid>,
        shallow: Vec<Oid>,
    },
}

impl Shape {
    /// The shape of a request to a repository with the refs `now`. `None` for one that names other objects than these refs
    /// lead to, or goes on with a fetch.
    pub fn of(request: &Fetch, now: &RefSet) -> Option<Self> {
        let rest = request.about(vec![], vec![], vec![]);
        if request.haves.is_empty() && request.shallow.is_empty() {
            let sets = [Wants::BranchesAndTags, Wants::Branches, Wants::All];
            let set = sets.into_iter().find(|set| set.fits(&request.wants, now));
            let one = || sole(request, now);
            // A part of the history is asked of one branch; with all its history, of all branches.
            let wants = if request.is_shallow() { one().or(set) } else { set.or_else(one) };
            return Some(Self { wants: wants?, has: Has::Nothing, rest });
        }
        if request.haves.len() > FIRST_HAVES || request.shallow.len() > FIRST_HAVES {
            // A further round of the same fetch, or a client with a history of its own.
            return None;
        }
        let has = Has::This { haves: request.haves.clone(), shallow: request.shallow.clone() };
        sole(request, now).map(|wants| Self { wants, has, rest })
    }

    /// Whether `request` says the same, but for its objects.
    pub fn says(&self, request: &Fetch) -> bool {
        self.rest == request.about(vec![], vec![], vec![])
    }

    /// How often it must have been asked for to be expected again: a client that is behind in some way of its own comes once.
    pub fn expected_after(&self) -> u32 {
        if matches!(self.has, Has::This { .. }) { 2 } else { 1 }
    }

    /// What clients of this shape ask for at the refs `now`. `None` if there is nothing to ask for.
    pub fn foresee(&self, now: &RefSet) -> Option<Fetch> {
        let wants = self.wants.oids(now);
        let (haves, shallow) = match &self.has {
            Has::Nothing => (vec![], vec![]),
            Has::This { haves, shallow } => (haves.clone(), shallow.clone()),
        };
        (!wants.is_empty()).then(|| self.rest.about(wants, haves, shallow))
    }
}

impl Wants {
    /// The refs that are meant.
    fn refs<'a>(&'a self, now: &'a RefSet) -> Box<dyn Iterator<Item = &'a Ref> + 'a> {
        let all = now.refs().iter();
        match self {
            Self::Of(name) => Box::new(now.get(name.as_bstr()).into_iter()),
            Self::BranchesAndTags => Box::new(all.filter(|r| is_branch(r) || is_tag(r))),
            Self::Branches => Box::new(all.filter(|r| is_branch(r))),
            Self::All => Box::new(all),
        }
    }

    /// Whether these are the objects that are wanted; what is not says so early, for there may be very many refs.
    fn fits(&self, wants: &[Oid], now: &RefSet) -> bool {
        self.refs(now).all(|r| wants.binary_search(&r.oid).is_ok()) && self.oids(now) == wants
    }

    /// The objects that are wanted; sorted, each once.
    fn oids(&self, now: &RefSet) -> Vec<Oid> {
        let mut oids: Vec<Oid> = self.refs(now).map(|r| r.oid).collect();
        match (self, now.head()) {
            (Self::Of(_), _) => {}
            (_, Head::Detached(oid)) => oids.push(*oid),
            _ => {}
        }
        oids.sort_unstable();
        oids.dedup();
        oids
    }
}

/// The one ref whose tip is all that is wanted: of several `HEAD`'s, else a branch.
fn sole(request: &Fetch, now: &RefSet) -> Option<Wants> {
    let [oid] = request.wants[..] else { return None };
    let at_head = |r: &&Ref| matches!(now.head(), Head::Symbolic(name) if *name == r.name);
    let there = || now.refs().iter().filter(|r| r.oid == oid);
    let found = there().find(at_head).or_else(|| there().find(|r| is_branch(r))).or_else(|| there().next());
    found.map(|r| Wants::Of(r.name.clone()))
}

fn is_branch(r: &Ref) -> bool {
    r.name.starts_with(b"refs/heads/")
}

fn is_tag(r: &Ref) -> bool {
    r.name.starts_with(b"refs/tags/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::ObjectFormat;

    fn oid(digit: char) -> Oid {
        Oid::from_hex(digit.to_string().repeat(40).as_bytes()).unwrap()
    }

    /// Refs, each as `name=digit`; the first branch is `HEAD`'s.
    fn refs(list: &[&str]) -> RefSet {
        let parse = |text: &&str| {
            let (name, digit) = text.split_once('=').unwrap();
            let (name, oid) = (format!("refs/{name}").into(), oid(digit.chars().next().unwrap()));
            Ref { name, oid, peeled: None }
        };
        let refs: Vec<Ref> = list.iter().map(parse).collect();
        let head = refs.iter().find(|r| is_branch(r)).map(|r| Head::Symbolic(r.name.clone()));
        RefSet::new(ObjectFormat::Sha1, head.unwrap_or(Head::Missing), refs)
    }

    fn request(lines: &[&str]) -> Fetch {
        let spelt = |line: &&str| match line.split_once(' ') {
            Some((word @ ("want" | "have" | "shallow"), digit)) => {
                format!("{word} {}", oid(digit.chars().next().unwrap()))
            }
            _ => (*line).to_owned(),
        };
        let lines: Vec<String> = lines.iter().map(spelt).collect();
        Fetch::parse(lines.iter().map(|line| line.as_bytes())).unwrap()
    }

    #[test]
    fn clones_want_the_new_tips_of_the_same_refs() {
        let before = refs(&["heads/main=1", "heads/dev=2", "tags/v1=3"]);
        let now = refs(&["heads/main=4", "heads/dev=2", "tags/v1=3", "tags/v2=5"]);
        for (asked, foreseen) in [
            (
                &["want 1", "want 2", "want 3", "ofs-delta", "done"][..],
                &["want 2", "want 3", "want 4", "want 5", "ofs-delta", "done"][..],
            ),
            (&["want 1", "want 2", "done"], &["want 4", "want 2", "done"]),
            (&["want 1", "deepen 1", "done"], &["want 4", "deepen 1", "done"]),
            (&["want 2", "filter blob:none", "done"], &["want 2", "filter blob:none", "done"]),
        ] {
            let shape = Shape::of(&request(asked), &before).unwrap();
            assert_eq!(shape.foresee(&now), Some(request(foreseen)), "{asked:?}");
        }
    }

    #[test]
    fn clients_that_begin_with_the_same_state_have_the_same_each_time() {
        let [second, third] = ["2", "3"].map(|digit| refs(&[&format!("heads/main={digit}")]));
        for has in [&["have 8", "have 9"][..], &["have 1", "shallow 1", "deepen 1"]] {
            let lines = |want| [&[want], has].concat();
            let shape = Shape::of(&request(&lines("want 2")), &second).unwrap();
            assert_eq!(shape.expected_after(), 2, "anybody may be so far behind once");
            assert_eq!(shape.foresee(&third), Some(request(&lines("want 3"))));
        }
    }

    #[test]
    fn other_requests_have_no_shape() {
        let now = refs(&["heads/main=4", "heads/dev=2"]);
        for asked in [
            &["want 9", "done"][..],
            &["want 4", "want 9", "done"],
            &["want 9", "have 1"],
            &["want 2", "want 4", "have 8"],
        ] {
            assert_eq!(Shape::of(&request(asked), &now), None, "{asked:?}");
        }
    }
}
