//! Access `Upstream`: whoever the upstream shows what the mirror has, with credentials of their own.
//!
//! A mirror shows all its refs to all its callers. An upstream that shows each caller other refs, as Gerrit does, cannot
//! be shared so: a caller who lacks some of the mirror's refs there is turned away here.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bstr::{BString, ByteSlice};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use rand::seq::IndexedRandom;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    AccessRequest, Guard, Refusal,
    answers::Key,
    caller::{Caller, Kind},
    credential::Credential,
    throttle::Attempt,
};
use crate::{
    git::{Head, RefSet},
    mirror::Mirror,
    upstream::{Looker, admission::Admission},
};

/// So many refs are compared by name; of more, all in their namespaces.
const BY_NAME: usize = 100;

/// Of more refs than this, [`BY_NAME`] are compared, others each time: a list of all takes 150 kB, for each caller and
/// minute.
const MOST_COMPARED: usize = 2_000;

/// How many times the patience of a look all questions for one caller may take.
const MOST: u32 = 4;

/// What an upstream makes of a caller.
enum Judged {
    Admitted,
    /// With this status.
    Refused(u16),
    /// It shows the caller fewer refs than the mirror has.
    Fewer,
}

impl Guard {
    pub(super) async fn by_upstream(&self, request: AccessRequest<'_>) -> Result<Caller, Refusal> {
        let AccessRequest { mirror, settings, headers, address } = request;
        let credential = Credential::of(headers)?;
        let given = self.delegated(&settings.url, headers).map_err(|refusal| match refusal {
            Refusal::Denied(text) => Refusal::Unauthenticated(text),
            other => other,
        })?;
        let delegated: HeaderMap = given.iter().map(|value| (header::AUTHORIZATION, value.clone())).collect();
        let presented = given.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        let key = self.presented(settings, presented);
        let most = settings.look_timeout * MOST;
        let ask = async {
            let away = |reason: String| Refusal::Away(format!("the upstream cannot judge: {reason}"));
            let upstream = mirror.upstream().ok_or_else(|| away("it is not known yet".into()))?;
            let attempt = self.attempt(mirror, &delegated, address)?;
            let _place = self.throttle.place(mirror.id().host(), settings.look_timeout).await?;
            let judged = timeout(most, judge(mirror, &upstream, given.as_ref(), settings.look_timeout)).await;
            let judged = judged.map_err(|_| away(format!("no answer within {} s", most.as_secs_f32())))?;
            match judged.map_err(away)? {
                Judged::Admitted => {
                    attempt.ended(StatusCode::OK);
                    Ok(())
                }
                Judged::Refused(status) => {
                    attempt.ended(StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN));
                    Err(Refusal::Upstream(status))
                }
                Judged::Fewer => {
                    tracing::info!(repo = %mirror.id(), "the upstream shows a caller fewer refs than the mirror has");
                    Err(Refusal::Denied(
                        "the upstream shows these credentials fewer branches or tags than the mirror has, so the \
                         mirror is not shared with them: clone from the upstream, or have spec.access set to \
                         another kind than Upstream"
                            .into(),
                    ))
                }
            }
        };
        match (self.tried.get(key, ask).await, &credential) {
            // Git asks without credentials before it asks with them: who was let in a moment ago must get that far.
            (Err(Refusal::Away(text)), Credential::None) => return Err(Refusal::Unauthenticated(text)),
            (said, _) => said?,
        }
        Ok(match credential {
            Credential::None => Caller::anonymous(),
            // Its user may be a token, as some forges have it: a name nobody can use tells callers apart.
            Credential::Bearer(_) | Credential::Basic { .. } => Caller::new(Kind::Upstream, label(&key)),
        })
    }

    /// Begins to try a caller's credentials, as the mirror's upstream gets them, for somebody at `address`; how that ends
    /// is told to the attempt.
    ///
    /// # Errors
    /// The credentials make no sense, or too many have been refused.
    pub fn attempt(
        &self,
        mirror: &Mirror,
        headers: &HeaderMap,
        address: Option<IpAddr>,
    ) -> Result<Attempt<'_>, Refusal> {
        let credential = Credential::of(headers)?;
        let presented = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        let host = mirror.id().host();
        let key = self.hashes.key("tried", &[host.as_bytes(), presented]);
        let user = |name: &str| self.hashes.key("user", &[host.as_bytes(), name.as_bytes()]);
        self.throttle.attempt(&credential, key, user, address)
    }

    /// Waits for a place among the questions that callers' credentials are at the mirror's upstream host.
    ///
    /// # Errors
    /// None becomes free in time.
    pub async fn place(&self, mirror: &Mirror) -> Result<OwnedSemaphorePermit, Refusal> {
        self.throttle.place(mirror.id().host(), mirror.settings().look_timeout).await
    }
}

/// Compares what the upstream shows to a caller with what the mirror has.
async fn judge(
    mirror: &Mirror,
    upstream: &Looker,
    given: Option<&HeaderValue>,
    patience: Duration,
) -> Result<Judged, String> {
    let view = mirror.view();
    let seen = view.seen.map(|(refs, _)| refs);
    let known = seen.or_else(|| view.stored.map(|stored| stored.refs.clone()));
    let prefixes = known.as_deref().map_or_else(|| vec![BString::from("refs/heads/")], prefixes);
    let first = match upstream.shows(given, &prefixes, patience).await.map_err(|error| error.to_string())? {
        Admission::Shown(refs) => refs,
        Admission::Refused(status) => return Ok(Judged::Refused(status)),
    };
    if known.is_some_and(|known| lacks(&known, &prefixes, &[&first]).is_none()) {
        return Ok(Judged::Admitted);
    }
    // A branch may just have been deleted, or nothing is known of the mirror yet: both are asked again, and only what the
    // mirror is shown between two questions for the caller, and the caller in neither, is hidden from the caller.
    let (now, _) = mirror.look(&[]).await.map_err(|error| error.to_string())?;
    let prefixes = if lacks(&now, &prefixes, &[&first]).is_some() { prefixes } else { self::prefixes(&now) };
    match upstream.shows(given, &prefixes, patience).await.map_err(|error| error.to_string())? {
        Admission::Shown(second) => match lacks(&now, &prefixes, &[&first, &second]) {
            None => Ok(Judged::Admitted),
            Some(_) => Ok(Judged::Fewer),
        },
        Admission::Refused(status) => Ok(Judged::Refused(status)),
    }
}

/// The prefixes of refs that are compared: names, or namespaces such as `refs/heads/`.
fn prefixes(refs: &RefSet) -> Vec<BString> {
    let all = refs.refs();
    if all.len() <= BY_NAME {
        return all.iter().map(|known| known.name.clone()).collect();
    }
    if all.len() <= MOST_COMPARED {
        let spaces: BTreeSet<&[u8]> = all.iter().map(|known| namespace(&known.name)).collect();
        return spaces.into_iter().map(BString::from).collect();
    }
    let mut some: Vec<BString> =
        all.choose_multiple(&mut rand::rng(), BY_NAME).map(|known| known.name.clone()).collect();
    if let Head::Symbolic(branch) = refs.head() {
        some.push(branch.clone());
    }
    some
}

/// What a ref's name begins with, up to the second slash.
fn namespace(name: &[u8]) -> &[u8] {
    let second = name.find_iter("/").nth(1);
    second.and_then(|at| name.get(..=at)).unwrap_or(name)
}

/// One of the mirror's refs below `prefixes` that is in none of the lists that a caller was shown.
fn lacks<'a>(mirror: &'a RefSet, prefixes: &[BString], shown: &[&RefSet]) -> Option<&'a BString> {
    let hidden = |name: &BString| shown.iter().all(|refs| refs.get(name.as_ref()).is_none());
    let below = |prefix: &BString| prefix.ends_with(b"/");
    let names = prefixes.iter().filter(|prefix| !below(prefix)).filter_map(|name| mirror.get(name.as_ref()));
    let spaces: Vec<&BString> = prefixes.iter().filter(|prefix| below(prefix)).collect();
    let in_spaces =
        mirror.refs().iter().filter(|known| spaces.iter().any(|space| known.name.starts_with_str(space)));
    names.chain(in_spaces).map(|known| &known.name).find(|name| hidden(name))
}

/// A name for a credential whose owner is not known; it is of use within this process only.
pub(super) fn label(key: &Key) -> String {
    let hex = key.to_hex();
    format!("credential-{}", hex.get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{ObjectFormat, Oid, Ref};

    fn refs(names: impl IntoIterator<Item = String>) -> RefSet {
        let oid = Oid::from_hex(&[b'1'; 40]).unwrap();
        let refs = names.into_iter().map(|name| Ref { name: name.into(), oid, peeled: None }).collect();
        RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/heads/main".into()), refs)
    }

    fn branches(count: usize) -> RefSet {
        refs((0..count).map(|number| format!("refs/heads/{number:05}")).chain(["refs/heads/main".into()]))
    }

    #[test]
    fn few_refs_are_asked_for_by_name_more_by_namespace_and_many_by_sample() {
        assert_eq!(prefixes(&branches(2)), ["refs/heads/00000", "refs/heads/00001", "refs/heads/main"]);
        let mixed = refs((0..200).map(|number| format!("refs/{}/{number}", ["heads", "tags"][number % 2])));
        assert_eq!(prefixes(&mixed), ["refs/heads/", "refs/tags/"]);
        let many = branches(5_000);
        let sample = prefixes(&many);
        assert_eq!(sample.len(), BY_NAME + 1);
        assert_eq!(sample.last().unwrap(), "refs/heads/main");
        assert_ne!(sample, prefixes(&many), "others each time");
    }

    #[test]
    fn a_caller_who_lacks_a_ref_of_the_mirror_is_found() {
        for count in [5, 500, 5_000] {
            let mirror = branches(count);
            let asked = prefixes(&mirror);
            assert_eq!(lacks(&mirror, &asked, &[&mirror]), None);
            let more =
                refs(mirror.refs().iter().map(|known| known.name.to_string()).chain(["refs/x/y".into()]));
            assert_eq!(lacks(&mirror, &asked, &[&more]), None, "more is no harm");
            let one = refs(["refs/heads/00000".into()]);
            assert!(lacks(&mirror, &asked, &[&one]).is_some(), "{count}");
            assert_eq!(lacks(&mirror, &asked, &[&one, &mirror]), None);
            assert!(lacks(&mirror, &asked, &[&refs([])]).is_some());
        }
    }
}
