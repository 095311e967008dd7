//! Whether a mirror may be shown: whether the upstream lets this agent have it, under the present declaration (P1, P8).
//!
//! An upstream that is silent says nothing about that. One that refuses does: after [`LOOKS`] looks over [`GRACE`]
//! nothing is shown any more, until a look succeeds. Who has never been let in has no such grace: content that somebody
//! else fetched, with other credentials, is shown to nobody before a look of the present declaration has succeeded.
//!
//! What is known is noted in the mirror's directory, before anybody can be shown what lies there, so a restart changes
//! nothing. Pure but for [`load`] and [`save`].

use std::{io, path::Path, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tarn_crds::v1alpha1::OnUpstreamRefusal;

use crate::{
    files::{read_bounded, replace},
    upstream::Provenance,
};

/// How many looks in a row are refused before nothing is shown: one or two may be a forge's own mistake, such as a server
/// behind its balancer that lags.
pub const LOOKS: u32 = 3;

/// How long looks have been refused by then, as long as a Secret that is gone is bridged (see [`super::missing`]): within
/// minutes a Secret is rotated, or a repository moved.
pub const GRACE: Duration = Duration::from_secs(600);

/// How long the upstream is not asked again for a request that would be refused: forges lock out who asks too often.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Where it is noted, in the mirror's directory.
const FILE: &str = "tarn-entitlement.json";

/// The most that is read of it.
const MAX_BYTES: u64 = 64 * 1024;

/// What is noted of a mirror on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// What was fetched with.
    pub provenance: Provenance,
    /// A look with that has succeeded, and none under another declaration was tried since.
    pub confirmed: bool,
    /// The refusals since the last look that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusals: Option<Refusals>,
}

/// Looks that the upstream refused, in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusals {
    /// When the first of them was.
    pub since: Timestamp,
    /// How many; not counted beyond [`LOOKS`].
    pub looks: u32,
    /// They have been so many, over so long, that nothing is shown any more.
    pub settled: bool,
    /// What the upstream said last, in one line.
    pub said: String,
}

/// What is known of one mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// What the present declaration fetches with.
    declared: Provenance,
    /// What the content on the disk was fetched with; none where nothing is there.
    content: Option<Provenance>,
    /// A look under the present declaration has succeeded, now or in an earlier process.
    confirmed: bool,
    refusals: Option<Refusals>,
    /// When the upstream last refused, in this process.
    refused_at: Option<Timestamp>,
    /// A look under the present declaration has ended in this process, however.
    heard: bool,
}

/// Whether something may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Shown,
    /// It may, unless the look that comes first is refused: nobody has heard from the upstream yet.
    AskFirst,
    /// Not before a look under the present declaration has succeeded.
    Unproven,
    /// The upstream refuses.
    Refused,
}

impl Entitlement {
    /// Of a mirror whose declaration fetches as `declared`, with nothing on the disk.
    pub fn new(declared: Provenance) -> Self {
        let (content, refusals, refused_at) = (None, None, None);
        Self { declared, content, confirmed: false, refusals, refused_at, heard: false }
    }

    /// With what all that is here was fetched, and what is made of it.
    pub fn provenance(&self) -> Provenance {
        if self.confirmed { self.declared.clone() } else { self.content.clone().unwrap_or_default() }
    }

    /// The refusals since the last look that succeeded.
    pub fn refusals(&self) -> Option<&Refusals> {
        self.refusals.as_ref()
    }

    /// Whether the upstream refused so lately that it is not asked again yet.
    pub fn is_just_refused(&self, now: Timestamp) -> bool {
        self.refused_at
            .is_some_and(|at| Duration::try_from(now.duration_since(at)).is_ok_and(|age| age < ASK_AGAIN))
    }

    /// Whether the content on the disk may be shown; where there is none, what others have.
    pub fn verdict(&self, policy: OnUpstreamRefusal) -> Verdict {
        self.judge(self.content.as_ref(), policy)
    }

    /// Whether content may be shown that lies elsewhere than in the mirror, and was fetched with `provenance`.
    pub fn verdict_on(&self, provenance: &Provenance, policy: OnUpstreamRefusal) -> Verdict {
        self.judge(Some(provenance), policy)
    }

    fn judge(&self, content: Option<&Provenance>, policy: OnUpstreamRefusal) -> Verdict {
        if let (Some(refusals), OnUpstreamRefusal::Fail) = (&self.refusals, policy)
            && (refusals.settled || !self.confirmed)
        {
            return Verdict::Refused;
        }
        match content {
            _ if self.confirmed => Verdict::Shown,
            Some(content) if !content.is_open_to(&self.declared) => Verdict::Unproven,
            Some(_) if !self.heard => Verdict::AskFirst,
            _ => Verdict::Shown,
        }
    }

    /// The declaration fetches as `declared` now; `credentials` says that what it fetches with is the same as before.
    pub fn declare(&mut self, declared: Provenance, credentials: Credentials) {
        let same = self.declared == declared && credentials == Credentials::Same;
        if same {
            return;
        }
        self.content =
            self.content.take().map(|content| if self.confirmed { self.declared.clone() } else { content });
        // What was refused stays refused: only a look that succeeds says otherwise.
        (self.declared, self.confirmed, self.heard, self.refused_at) = (declared, false, false, None);
    }

    /// A look has succeeded.
    pub fn confirm(&mut self) {
        (self.confirmed, self.heard) = (true, true);
        (self.refusals, self.refused_at) = (None, None);
    }

    /// The upstream has refused a look at `now`, and `said` why.
    pub fn refuse(&mut self, now: Timestamp, said: String) {
        (self.heard, self.refused_at) = (true, Some(now));
        let fresh = || Refusals { since: now, looks: 0, settled: false, said: String::new() };
        let refusals = self.refusals.get_or_insert_with(fresh);
        refusals.looks = (refusals.looks + 1).min(LOOKS);
        refusals.said = said;
        let long = Duration::try_from(now.duration_since(refusals.since)).is_ok_and(|age| age >= GRACE);
        refusals.settled |= long && refusals.looks >= LOOKS;
    }

    /// A look has failed, and nobody knows what the upstream thinks.
    pub fn miss(&mut self) {
        self.heard = true;
    }

    /// Content that was fetched with `provenance` has come to the disk, beside what is there.
    pub fn place(&mut self, provenance: Provenance) {
        self.content = Some(match self.content.take() {
            Some(content) => content.mixed_with(provenance),
            None => provenance,
        });
    }

    /// The content has left the disk.
    pub fn leave(&mut self) {
        self.content = None;
    }

    /// Takes up what an earlier process noted.
    pub fn resume(&mut self, note: Note) {
        self.confirmed |= note.confirmed && note.provenance == self.declared;
        self.content = Some(note.provenance);
        self.refusals = self.refusals.take().or(note.refusals);
    }

    /// What is to be noted beside the content; nothing where there is none.
    pub fn note(&self) -> Option<Note> {
        self.content.as_ref()?;
        Some(Note {
            provenance: self.provenance(),
            confirmed: self.confirmed,
            refusals: self.refusals.clone(),
        })
    }
}

/// Whether a changed declaration has the credentials of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// It has.
    Same,
    /// It has not.
    Other,
}

/// What is noted in the mirror at `dir`; of one that nobody noted anything in, that nothing is known.
pub fn load(dir: &Path) -> Note {
    let path = dir.join(FILE);
    match read_bounded(&path, MAX_BYTES) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell how the mirror on the disk was fetched; the upstream is asked first");
            Note::default()
        }),
        Err(error) => {
            tracing::info!(%error, "nobody noted how the mirror on the disk was fetched; the upstream is asked first");
            Note::default()
        }
    }
}

/// Notes it in the mirror at `dir`.
///
/// # Errors
/// The disk.
pub fn save(dir: &Path, note: &Note) -> io::Result<()> {
    replace(&dir.join(FILE), &serde_json::to_vec(note).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    const FAIL: OnUpstreamRefusal = OnUpstreamRefusal::Fail;

    fn secret(name: &str) -> Provenance {
        Provenance::of("ci", Some(name))
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH.saturating_add(minutes.minutes()).unwrap()
    }

    /// A mirror with content of its own declaration, which has succeeded.
    fn confirmed() -> Entitlement {
        let mut known = Entitlement::new(secret("a"));
        known.confirm();
        known.place(secret("a"));
        known
    }

    #[test]
    fn a_refusal_counts_after_three_looks_and_ten_minutes_and_a_success_ends_it() {
        let mut known = confirmed();
        for minute in [0, 1, 9] {
            known.refuse(at(minute), "no".into());
            assert_eq!(known.verdict(FAIL), Verdict::Shown, "minute {minute}");
        }
        known.refuse(at(10), "no".into());
        assert_eq!(known.verdict(FAIL), Verdict::Refused);
        assert_eq!(known.verdict(OnUpstreamRefusal::ServeStale), Verdict::Shown);
        known.miss();
        assert_eq!(known.verdict(FAIL), Verdict::Refused, "an outage forgives nothing");
        known.confirm();
        assert_eq!(known.verdict(FAIL), Verdict::Shown);
        // Two looks are not enough, however long ago the first was.
        known.refuse(at(100), "no".into());
        known.refuse(at(900), "no".into());
        assert_eq!(known.verdict(FAIL), Verdict::Shown);
        known.refuse(at(901), "no".into());
        assert_eq!(known.verdict(FAIL), Verdict::Refused);
    }

    #[test]
    fn an_outage_is_no_refusal_however_long_it_lasts() {
        let mut known = confirmed();
        (0..1000).for_each(|_| known.miss());
        assert_eq!(known.verdict(FAIL), Verdict::Shown);
    }

    #[test]
    fn a_refusal_outlives_the_process_and_a_changed_declaration() {
        let mut known = confirmed();
        [0, 5, 11].into_iter().for_each(|minute| known.refuse(at(minute), "no".into()));
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &known.note().unwrap()).unwrap();
        let mut next = Entitlement::new(secret("a"));
        next.resume(load(dir.path()));
        assert_eq!(next.verdict(FAIL), Verdict::Refused);
        next.declare(secret("a"), Credentials::Other);
        assert_eq!(next.verdict(FAIL), Verdict::Refused);
        next.confirm();
        assert_eq!(next.verdict(FAIL), Verdict::Shown);
    }

    #[test]
    fn what_others_fetched_is_shown_once_a_look_has_succeeded() {
        for other in [Provenance::Unknown, secret("b"), Provenance::of("other", Some("a"))] {
            for declared in [Provenance::Public, secret("a")] {
                let mut known = Entitlement::new(declared.clone());
                known.place(other.clone());
                assert_eq!(known.verdict(FAIL), Verdict::Unproven, "{other:?} {declared:?}");
                assert_eq!(known.verdict(OnUpstreamRefusal::ServeStale), Verdict::Unproven);
                known.miss();
                assert_eq!(known.verdict(FAIL), Verdict::Unproven);
                known.refuse(at(0), "no".into());
                assert_eq!(known.verdict(FAIL), Verdict::Refused);
                known.confirm();
                assert_eq!(known.verdict(FAIL), Verdict::Shown);
                assert_eq!(known.note().unwrap().provenance, declared);
            }
        }
    }

    #[test]
    fn restored_content_of_the_same_declaration_is_shown_unless_the_first_look_is_refused() {
        for (content, declared) in [
            (Provenance::Public, Provenance::Public),
            (Provenance::Public, secret("a")),
            (secret("a"), secret("a")),
        ] {
            let mut known = Entitlement::new(declared);
            known.place(content);
            assert_eq!(known.verdict(FAIL), Verdict::AskFirst);
            let mut refused = known.clone();
            refused.refuse(at(0), "no".into());
            assert_eq!(refused.verdict(FAIL), Verdict::Refused);
            assert_eq!(refused.verdict(OnUpstreamRefusal::ServeStale), Verdict::Shown);
            known.miss();
            assert_eq!(known.verdict(FAIL), Verdict::Shown);
        }
    }

    #[test]
    fn a_secret_that_is_taken_away_or_changed_has_to_succeed_anew() {
        let mut known = confirmed();
        known.declare(Provenance::Public, Credentials::Other);
        known.miss();
        assert_eq!(known.verdict(FAIL), Verdict::Unproven);
        // The same Secret with other content, while the upstream is away: it is still the same declaration.
        let mut known = confirmed();
        known.declare(secret("a"), Credentials::Other);
        known.miss();
        assert_eq!(known.verdict(FAIL), Verdict::Shown);
        known.refuse(at(0), "no".into());
        assert_eq!(known.verdict(FAIL), Verdict::Refused, "it has never succeeded, so it has no grace");
        let mut known = confirmed();
        known.declare(secret("a"), Credentials::Same);
        known.refuse(at(0), "no".into());
        assert_eq!(known.verdict(FAIL), Verdict::Shown);
    }

    #[test]
    fn notes_that_make_no_sense_say_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), Note::default());
        for text in ["", "{}", "{\"provenance\":\"open\"}", "junk"] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(load(dir.path()).provenance, Provenance::Unknown, "{text}");
        }
    }

    #[test]
    fn who_has_just_been_refused_is_not_asked_for_at_once() {
        let mut known = confirmed();
        assert!(!known.is_just_refused(at(0)));
        known.refuse(at(0), "no".into());
        assert!(known.is_just_refused(at(0)));
        assert!(!known.is_just_refused(at(1)));
    }
}
