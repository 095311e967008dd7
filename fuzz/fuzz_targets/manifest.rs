//! Manifests: any text is judged without a panic, errors are few and on one line, and a manifest that is
//! accepted is read back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tarn_crds::manifest::{MAX_DOCUMENTS, MAX_ERRORS, Manifest, read};

fuzz_target!(|text: &str| {
    let documents = read(text);
    assert!(documents.len() <= MAX_DOCUMENTS);
    for document in documents {
        match document {
            Ok(manifest) => read_back(&manifest),
            Err(errors) => {
                assert!((1..=MAX_ERRORS).contains(&errors.len()));
                let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
                assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{lines:?}");
            }
        }
    }
});

fn read_back(manifest: &Manifest) {
    let text = match manifest {
        Manifest::GitMirror(mirror) => serde_yaml_ng::to_string(mirror),
        Manifest::GitCache(cache) => serde_yaml_ng::to_string(cache),
        Manifest::Secret(secret) => serde_yaml_ng::to_string(secret),
    };
    let text = text.expect("what was read can be written");
    let again = read(&text);
    assert!(matches!(again.as_slice(), [Ok(again)] if again == manifest), "{manifest:?}\n{text}\n{again:?}");
}
