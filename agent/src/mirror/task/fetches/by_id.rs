//! Fetching objects by id, whatever refs lead to them, with as few requests as tell the known from the unknown.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::{
    git::{GitError, Oid, stderr::FailureKind},
    mirror::fetch::FetchError,
};

/// The most requests that one fetch makes to find out which objects the upstream does not have.
const ATTEMPTS: usize = 16;

/// What a fetch by id has brought.
#[derive(Debug, Default, PartialEq)]
pub(in crate::mirror::task) struct Brought {
    /// Whether anything came.
    pub(super) some: bool,
    /// The upstream does not have them.
    pub(super) unknown: HashSet<Oid>,
    /// They were asked for together with unknown ones, once too often to try again.
    pub(super) untried: HashSet<Oid>,
}

/// Asks for `oids` by `fetch`, which gets what is left of `limit`. Where the upstream refuses, it is asked again for those
/// that it has not named; where it names none, for each half.
///
/// # Errors
/// The fetch fails for another reason than unknown objects.
pub(super) async fn fetch<F>(
    oids: HashSet<Oid>,
    limit: Duration,
    mut fetch: impl FnMut(HashSet<Oid>, Duration) -> F,
) -> Result<Brought, FetchError>
where
    F: Future<Output = Result<(), GitError>>,
{
    let (began, mut brought, mut groups) = (Instant::now(), Brought::default(), vec![oids]);
    for _ in 0..ATTEMPTS {
        let Some(mut group) = groups.pop() else { break };
        let error = match fetch(group.clone(), limit.saturating_sub(began.elapsed())).await {
            Ok(()) => {
                brought.some = true;
                continue;
            }
            Err(error) if error.kind() == FailureKind::NotOurRef => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let named = error.split(|c: char| !c.is_ascii_hexdigit()).find_map(|word| {
            let oid = Oid::from_hex(word.as_bytes())?;
            group.take(&oid)
        });
        if named.is_none() && group.len() > 1 {
            let half = group.len() / 2;
            groups.push(group.iter().take(half).copied().collect());
            group.retain(|oid| !groups.last().is_some_and(|other| other.contains(oid)));
            groups.push(group);
        } else {
            brought.unknown.extend(named);
            if named.is_none() {
                brought.unknown.extend(group);
            } else if !group.is_empty() {
                groups.push(group);
            }
        }
    }
    brought.untried = groups.into_iter().flatten().collect();
    Ok(brought)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn oids(numbers: impl IntoIterator<Item = usize>) -> HashSet<Oid> {
        numbers.into_iter().map(|n| Oid::from_hex(format!("{n:040x}").as_bytes()).unwrap()).collect()
    }

    /// Fetches `wanted` from an upstream that has `here`, and says which it lacks if `names`.
    async fn ask(wanted: &HashSet<Oid>, here: &HashSet<Oid>, names: bool) -> (Brought, usize) {
        let asked = Cell::new(0);
        let upstream = |group: HashSet<Oid>, _| {
            asked.set(asked.get() + 1);
            let lacking = group.difference(here).next().copied();
            let name = lacking.filter(|_| names).map_or_else(String::new, |oid| oid.to_hex());
            let refused = GitError::Failed {
                verb: "fetch".into(),
                kind: FailureKind::NotOurRef,
                message: format!("upload-pack: not our ref {name}"),
            };
            std::future::ready(if lacking.is_some() { Err(refused) } else { Ok(()) })
        };
        let brought = fetch(wanted.clone(), Duration::from_secs(60), upstream).await.unwrap();
        (brought, asked.get())
    }

    #[tokio::test]
    async fn what_the_upstream_has_comes_in_one_request_and_each_unknown_one_costs_another() {
        let (brought, asked) = ask(&oids(0..1000), &oids(0..1000), true).await;
        assert_eq!((brought.unknown.len(), brought.some, asked), (0, true, 1));
        let (brought, asked) = ask(&oids(0..1003), &oids(0..1000), true).await;
        assert_eq!((brought.unknown, brought.untried.len(), asked), (oids(1000..1003), 0, 4));
        let (brought, asked) = ask(&oids(0..64), &oids(1..64), false).await;
        assert_eq!((brought.unknown, brought.untried.len()), (oids(0..1), 0));
        assert!(asked <= 13, "{asked}");
    }

    #[tokio::test]
    async fn ten_thousand_unknown_ones_cost_a_few_requests() {
        for names in [true, false] {
            let (brought, asked) = ask(&oids(0..10_000), &HashSet::new(), names).await;
            assert_eq!(asked, ATTEMPTS);
            assert_eq!(brought.unknown.len() + brought.untried.len(), 10_000);
            assert!(!brought.some);
        }
    }
}
