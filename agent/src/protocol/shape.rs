//! What a request for objects asks for, told by refs instead of objects: what such clients will ask for once the refs
//! have moved. Pure.
//!
//! A clone wants the tips of some refs and has nothing. A fetch wants tips that have moved. Some clients always begin with
//! the same state, of a snapshot or an image, say; others were up to date before the move: what those say they
//! have follows from the refs before it, for git walks from them, newest first, and says the first [`FIRST_HAVES`]
//! commits ([git's negotiator](https://git-scm.com/docs/git-config#Documentation/git-config.txt-fetchnegotiationAlgorithm),
//! `consecutive`).

use std::collections::HashSet;

use bstr::{BString, ByteSlice};

use super::fetch::Fetch;
use crate::git::{Head, Oid, Ref, RefSet};

/// So many commits does git name in its first round (`INITIAL_FLUSH` in fetch-pack.c).
pub const FIRST_HAVES: usize = 16;

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
    /// The tips of branches that have moved.
    Moved,
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
    /// All that the wanted refs led to, and the tags.
    Wanted,
    /// All that branches and tags led to.
    Everything,
}

/// What clients of some shape will ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// The request; where there is a walk, what it finds is still to be put into `haves`.
    pub request: Fetch,
    /// How the client finds out what to say that it has.
    pub walk: Option<Walk>,
}

/// The first commits of a walk from `tips`, newest first, that are no ancestors of any in `common`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Where it begins.
    pub tips: Vec<Oid>,
    /// Commits that both sides are known to have.
    pub common: Vec<Oid>,
}

impl Shape {
    /// The shape of a request to a repository with the refs `now`, and `before` their last move. `None` for one that
    /// names other objects than these refs lead to, or says that it has others.
    pub fn of(request: &Fetch, now: &RefSet, before: Option<&RefSet>) -> Option<Self> {
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
        let former = |name: &BString| before?.get(name.as_bstr()).map(|r| r.oid);
        let has = |oid: &Oid| request.haves.contains(oid);
        let moved = before.map(|_| Wants::Moved).filter(|moved| moved.oids(now, before) == request.wants);
        let wants = moved.or_else(|| sole(request, now))?;
        let follows = request.shallow.is_empty()
            && wants.refs(now, before).any(|r| former(&r.name).is_some_and(|oid| has(&oid)));
        let Some(before) = before.filter(|_| follows) else {
            let has = Has::This { haves: request.haves.clone(), shallow: request.shallow.clone() };
            return sole(request, now).map(|wants| Self { wants, has, rest });
        };
        let other = |r: &Ref| is_branch(r) && wants != Wants::Of(r.name.clone());
        let everything = wants == Wants::Moved || before.refs().iter().any(|r| has(&r.oid) && other(r));
        Some(Self { wants, has: if everything { Has::Everything } else { Has::Wanted }, rest })
    }

    /// Whether `request` says the same, but for its objects.
    pub fn says(&self, request: &Fetch) -> bool {
        self.rest == request.about(vec![], vec![], vec![])
    }

    /// How often it must have been asked for to be expected again: a client that is behind in some way of its own comes once.
    pub fn expected_after(&self) -> u32 {
        if matches!(self.has, Has::This { .. }) { 2 } else { 1 }
    }

    /// What clients of this shape ask for at the refs `now`, if those were `before` when they came last. `None` if there
    /// is nothing to ask for.
    pub fn foresee(&self, now: &RefSet, before: &RefSet) -> Option<Foreseen> {
        let wants = self.wants.oids(now, Some(before));
        let old: HashSet<Oid> = before.tips().collect();
        let nothing_new = || wants.iter().all(|oid| old.contains(oid));
        if wants.is_empty() || self.has != Has::Nothing && nothing_new() {
            return None;
        }
        let request = |has: Vec<Oid>, shallow| self.rest.about(wants.clone(), has, shallow);
        match &self.has {
            Has::Nothing => Some(Foreseen { request: request(vec![], vec![]), walk: None }),
            Has::This { haves, shallow } => {
                Some(Foreseen { request: request(haves.clone(), shallow.clone()), walk: None })
            }
            Has::Wanted | Has::Everything => {
                let kept = |r: &&Ref| match &self.has {
                    Has::Everything => is_branch(r) || is_tag(r),
                    _ => is_tag(r) || self.wants == Wants::Of(r.name.clone()),
                };
                let tips = before.refs().iter().filter(kept).map(peeled).collect();
                // What the upstream shows is known to be common: all, or, to those who ask for one branch, that and tags.
                let shown = |r: &&Ref| is_tag(r) || is_branch(r) && self.wants == Wants::Moved;
                let common = now.refs().iter().filter(shown).filter(|r| old.contains(&r.oid)).map(peeled);
                let walk = Walk { tips, common: common.collect() };
                Some(Foreseen { request: request(vec![], vec![]), walk: Some(walk) })
            }
        }
    }
}

impl Wants {
    /// The refs that are meant.
    fn refs<'a>(
        &'a self,
        now: &'a RefSet,
        before: Option<&'a RefSet>,
    ) -> Box<dyn Iterator<Item = &'a Ref> + 'a> {
        let all = now.refs().iter();
        match self {
            Self::Of(name) => Box::new(now.get(name.as_bstr()).into_iter()),
            Self::BranchesAndTags => Box::new(all.filter(|r| is_branch(r) || is_tag(r))),
            Self::Branches => Box::new(all.filter(|r| is_branch(r))),
            Self::All => Box::new(all),
            Self::Moved => {
                // Both are sorted by name.
                let mut former = before.map_or(&[][..], RefSet::refs).iter().peekable();
                Box::new(all.filter(move |r| {
                    while former.next_if(|old| old.name < r.name).is_some() {}
                    is_branch(r) && former.peek().is_none_or(|old| old.name != r.name || old.oid != r.oid)
                }))
            }
        }
    }

    /// Whether these are the objects that are wanted; what is not says so early, for there may be very many refs.
    fn fits(&self, wants: &[Oid], now: &RefSet) -> bool {
        self.refs(now, None).all(|r| wants.binary_search(&r.oid).is_ok()) && self.oids(now, None) == wants
    }

    /// The objects that are wanted; sorted, each once.
    fn oids(&self, now: &RefSet, before: Option<&RefSet>) -> Vec<Oid> {
        let mut oids: Vec<Oid> = self.refs(now, before).map(|r| r.oid).collect();
        match (self, now.head()) {
            (Self::Of(_) | Self::Moved, _) => {}
            (_, Head::Detached(oid)) => oids.push(*oid),
            _ => {}
        }
        if let (Self::Moved, Some(before)) = (self, before) {
            // A branch that was set to what another one held brings nothing new.
            let mut new: HashSet<Oid> = oids.drain(..).collect();
            for old in before.tips() {
                new.remove(&old);
            }
            oids.extend(new);
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

fn peeled(r: &Ref) -> Oid {
    r.peeled.unwrap_or(r.oid)
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
            let shape = Shape::of(&request(asked), &before, None).unwrap();
            let expected = Foreseen { request: request(foreseen), walk: None };
            assert_eq!(shape.foresee(&now, &before), Some(expected), "{asked:?}");
        }
    }

    #[test]
    fn a_fetch_wants_what_has_moved_and_has_what_was_there() {
        let [first, second, third] = [
            refs(&["heads/main=1", "heads/dev=2", "tags/v1=3"]),
            refs(&["heads/main=4", "heads/dev=2", "tags/v1=3"]),
            refs(&["heads/main=5", "heads/dev=6", "tags/v1=3"]),
        ];
        let asked = request(&["want 4", "have 1", "have 2", "have 3", "thin-pack"]);
        let shape = Shape::of(&asked, &second, Some(&first)).unwrap();
        let found = shape.foresee(&third, &second).unwrap();
        assert_eq!(found.request, request(&["want 5", "want 6", "thin-pack"]));
        let mut walk = found.walk.unwrap();
        walk.tips.sort_unstable();
        assert_eq!(walk, Walk { tips: vec![oid('2'), oid('3'), oid('4')], common: vec![oid('3')] });
        // Once nothing has moved there is nothing to fetch.
        assert_eq!(shape.foresee(&third, &third), None);
    }

    #[test]
    fn a_fetch_of_one_branch_has_that_or_all() {
        let before = refs(&["heads/main=1", "heads/dev=2"]);
        let now = refs(&["heads/main=4", "heads/dev=5"]);
        let alone = Shape::of(&request(&["want 4", "have 1"]), &now, Some(&before)).unwrap();
        let beside = Shape::of(&request(&["want 4", "have 1", "have 2"]), &now, Some(&before)).unwrap();
        let tips = |shape: &Shape| {
            let mut tips = shape.foresee(&now, &before).unwrap().walk.unwrap().tips;
            tips.sort_unstable();
            tips
        };
        assert_eq!(tips(&alone), [oid('1')]);
        assert_eq!(tips(&beside), [oid('1'), oid('2')]);
    }

    #[test]
    fn clients_that_begin_with_the_same_state_have_the_same_each_time() {
        let [first, second, third] = ["1", "2", "3"].map(|digit| refs(&[&format!("heads/main={digit}")]));
        for has in [&["have 8", "have 9"][..], &["have 1", "shallow 1", "deepen 1"]] {
            let lines = |want| [&[want], has].concat();
            let shape = Shape::of(&request(&lines("want 2")), &second, Some(&first)).unwrap();
            assert_eq!(shape.expected_after(), 2, "anybody may be so far behind once");
            let expected = request(&lines("want 3"));
            assert_eq!(shape.foresee(&third, &second), Some(Foreseen { request: expected, walk: None }));
        }
    }

    #[test]
    fn other_requests_have_no_shape() {
        let before = refs(&["heads/main=1", "heads/dev=2"]);
        let now = refs(&["heads/main=4", "heads/dev=2"]);
        for asked in [
            &["want 9", "done"][..],
            &["want 4", "want 9", "done"],
            &["want 9", "have 1"],
            &["want 2", "want 4", "have 8"],
        ] {
            assert_eq!(Shape::of(&request(asked), &now, Some(&before)), None, "{asked:?}");
        }
    }
}
