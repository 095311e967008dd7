//! Whether the mirror may be shown, noted in its directory whenever that changes.

use std::sync::Arc;

use tarn_crds::repo::Scheme;

use super::site::Site;
use crate::{
    mirror::{
        LookAnswer, Services, Settings,
        entitlement::{self, Credentials, Entitlement, Note},
    },
    upstream::Provenance,
};

/// See the module.
pub(super) struct Entitled {
    site: Arc<Site>,
    /// Of the GitMirror and its Secret.
    namespace: String,
    known: Arc<Entitlement>,
    noted: Option<Note>,
}

impl Entitled {
    pub(super) fn new(site: Arc<Site>, services: &Services, settings: &Settings) -> Self {
        let namespace = services.namespace.clone();
        let declared = Provenance::of(&namespace, settings.secret.as_deref());
        Self { site, namespace, known: Arc::new(Entitlement::new(declared)), noted: None }
    }

    /// With what the mirror is fetched that `settings` declare.
    pub(super) fn declared(&self, settings: &Settings) -> Provenance {
        Provenance::of(&self.namespace, settings.secret.as_deref())
    }

    /// The declaration has changed.
    pub(super) fn configure(&mut self, former: &Settings, settings: &Settings) {
        let same = former.credentials == settings.credentials;
        let credentials = if same { Credentials::Same } else { Credentials::Other };
        let declared = self.declared(settings);
        self.change(|known| known.declare(declared, credentials));
    }

    pub(super) fn known(&self) -> &Arc<Entitlement> {
        &self.known
    }

    /// Takes up what an earlier process noted beside the mirror.
    pub(super) fn load(&mut self) {
        let note = entitlement::load(&self.site.dir);
        self.noted = Some(note.clone());
        self.change(|known| known.resume(note));
    }

    /// A look of the present declaration, at an upstream of this scheme, was answered so.
    pub(super) fn heard(&mut self, answer: &LookAnswer, scheme: Scheme) {
        let before = self.known.refusals().is_some_and(|refusals| refusals.settled);
        self.change(|known| match answer {
            Ok(_) => known.confirm(),
            // A directory of this machine refuses nothing; it is there, or it is not.
            Err(error) if error.kind().is_refusal() && scheme != Scheme::File => {
                known.refuse(jiff::Timestamp::now(), error.to_string());
            }
            Err(_) => known.miss(),
        });
        if let Some(refusals) = self.known.refusals().filter(|refusals| refusals.settled && !before) {
            tracing::warn!(since = %refusals.since, said = refusals.said, "the upstream refuses the mirror for good");
        }
    }

    /// Changes what is known. What is to be noted is on the disk when this returns, if the disk takes it.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Entitlement)) {
        let mut next = Entitlement::clone(&self.known);
        change(&mut next);
        if next != *self.known {
            self.known = Arc::new(next);
        }
        let note = self.known.note();
        if note == self.noted {
            return;
        }
        match note.as_ref().map_or(Ok(()), |note| entitlement::save(&self.site.dir, note)) {
            Ok(()) => self.noted = note,
            // The next change tries again; until then a restart asks the upstream, or knows of fewer refusals.
            Err(error) => tracing::warn!(%error, "cannot note how the mirror was fetched"),
        }
    }
}
