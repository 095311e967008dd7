//! Answers to `ls-refs` that have been written already.
//!
//! A table of refs is one value, shared by all who read it until the next replaces it, and clients ask for
//! the same few things of it. So the bytes are kept with the table, and go when it does.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;

use crate::{git::RefSet, protocol::ls_refs::LsRefs};

/// How many answers are kept: a few shapes of request for each of the busiest mirrors.
const MAX_KEPT: usize = 64;

/// Longer answers are not kept: 64 of them are the bound on memory.
const MAX_LENGTH: usize = 512 * 1024;

/// The answers kept, the latest used first.
#[derive(Default)]
pub struct Rendered {
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    refs: Weak<RefSet>,
    request: LsRefs,
    answer: Bytes,
}

impl Rendered {
    /// The answer to `request` from `refs`.
    pub fn answer(&self, request: &LsRefs, refs: &Arc<RefSet>) -> Bytes {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept
            .iter()
            .position(|k| std::ptr::eq(k.refs.as_ptr(), Arc::as_ptr(refs)) && k.request == *request);
        if let Some(found) = found.and_then(|at| kept.remove(at)) {
            let answer = found.answer.clone();
            kept.push_front(found);
            return answer;
        }
        // Written outside the lock: others need not wait for a long list.
        drop(kept);
        let answer = Bytes::from(request.respond(refs));
        if answer.len() <= MAX_LENGTH {
            let new = Kept { refs: Arc::downgrade(refs), request: request.clone(), answer: answer.clone() };
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // A weak reference keeps its table's place in memory from being reused, so that equal
            // addresses mean the same table; those whose table is gone need not stay for that.
            kept.retain(|k| k.refs.strong_count() > 0);
            kept.push_front(new);
            kept.truncate(MAX_KEPT);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Head, ObjectFormat, Oid, Ref};

    fn table(digit: u8) -> Arc<RefSet> {
        let oid = Oid::from_hex(&[digit; 40]).unwrap();
        let main = Ref { name: "refs/heads/main".into(), oid, peeled: None };
        Arc::new(RefSet::new(ObjectFormat::Sha1, Head::Missing, vec![main]))
    }

    #[test]
    fn every_table_and_request_gets_its_own_answer() {
        let rendered = Rendered::default();
        let requests =
            [LsRefs::everything(), LsRefs { prefixes: vec!["refs/tags/".into()], ..LsRefs::default() }];
        for _ in 0..3 {
            for refs in [table(b'1'), table(b'2')] {
                for request in &requests {
                    assert_eq!(rendered.answer(request, &refs), request.respond(&refs));
                    assert_eq!(rendered.answer(request, &refs), request.respond(&refs));
                }
            }
        }
        assert!(rendered.kept.lock().unwrap().len() <= 4, "tables that are gone are forgotten");
    }
}
