//! What is wrong with a mirror on this agent, as its conditions and its entry in status say it.

use tarn_crds::{
    summarize::{Finding, Note, Wrong},
    v1alpha1::OnUpstreamRefusal,
};

use super::{Trouble, View};

/// What is wrong with a mirror on this agent, the worst first.
pub fn findings(view: &View, snapshot: Option<&Trouble>, policy: OnUpstreamRefusal) -> Vec<Finding> {
    let finding = |wrong, trouble: &Trouble| Finding {
        wrong,
        note: Note::new(trouble.reason, trouble.message.clone()),
    };
    // Without a look nobody can say that what is served is current.
    let stale = view.look_trouble.as_ref().filter(|_| view.stored.is_some());
    let withheld = view.withheld(policy).map(|trouble| finding(Wrong::Withheld, &trouble)).into_iter();
    let findings = withheld.chain(view.damage.as_ref().map(|trouble| finding(Wrong::Damaged, trouble)));
    let findings = findings.chain(stale.map(|trouble| finding(Wrong::Stale, trouble)));
    let findings = findings.chain(view.trouble().map(|trouble| finding(Wrong::FetchFailed, trouble)));
    let restore = view.restore_trouble.as_ref().map(|trouble| finding(Wrong::RestoreFailed, trouble));
    let store = view.store_trouble.as_ref().or(snapshot).map(|trouble| finding(Wrong::StoreFailed, trouble));
    findings.chain(restore).chain(store).collect()
}
