//! LFS pointers and the JSON of the batch API: what is read can be asked for and told on, and names stay below their
//! directory.
#![no_main]

use std::path::Component;

use libfuzzer_sys::fuzz_target;
use tarn_agent::protocol::lfs::{
    Action, Batch, MAX_OBJECTS, NoCredentials, Object, Operation, answer, ask, parse_answer, parse_pointer,
};

fuzz_target!(|data: &[u8]| {
    if let Some(object) = parse_pointer(data) {
        assert_kept_below(object);
    }
    if let Ok(batch) = Batch::parse(data) {
        assert!(batch.objects.len() <= MAX_OBJECTS);
        batch.objects.iter().copied().for_each(assert_kept_below);
        let asked = Batch::parse(&ask(&batch.objects)).expect("what this agent asks for");
        assert_eq!(asked, Batch { operation: Operation::Download, objects: batch.objects.clone() });
        let told: Vec<_> = batch.objects.iter().map(|object| (*object, Ok("http://tarn/x".into()))).collect();
        for open in [None, Some(NoCredentials)] {
            let read = parse_answer(&answer(&told, open)).expect("what this agent answers");
            assert!(read.iter().map(|(oid, _)| *oid).eq(batch.objects.iter().map(|object| object.oid)));
            let as_told = |action: &Action| action.authenticated == open.is_some();
            assert!(read.iter().all(|(_, outcome)| outcome.as_ref().is_ok_and(as_told)));
        }
    }
    if let Ok(answered) = parse_answer(data) {
        for (_, outcome) in answered {
            let Ok(action) = outcome else { continue };
            // It may hold a token.
            assert_eq!(format!("{action:?}"), "Action(***)");
        }
    }
});

/// `aa/bb/` and the whole name.
fn assert_kept_below(object: Object) {
    let path = object.oid.path();
    assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    assert_eq!(path.components().count(), 3);
}
