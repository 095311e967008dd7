//! What is built for each sample is as reviewed. `TARN_UPDATE_GOLDEN=1` writes it anew.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Serialize;
use tarn_crds::v1alpha1::GitCache;
use tarn_operator::gitcache::{
    build::{Resources, build},
    validate::validate,
};

fn yaml(object: &impl Serialize) -> String {
    // Through a value: keys in order.
    serde_yaml_ng::to_string(&serde_json::to_value(object).unwrap()).unwrap()
}

#[test]
fn built_objects_are_as_reviewed() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let update = std::env::var_os("TARN_UPDATE_GOLDEN").is_some();
    let mut samples = 0;
    for sample in fs::read_dir(here.join("samples")).unwrap() {
        let path = sample.unwrap().path();
        let cache: GitCache = serde_yaml_ng::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let secrets: BTreeSet<String> = ["github".to_owned(), "gitlab".to_owned()].into();
        let secrets = if cache.spec.store.is_some() { secrets } else { BTreeSet::new() };
        let valid = validate(&cache, secrets, "tarn:of-the-operator").unwrap().unwrap();
        let Resources {
            service_account,
            role,
            role_binding,
            service,
            pods_service,
            pdb,
            network_policy,
            stateful_set,
            ..
        } = build(&valid);
        let all = [
            yaml(&service_account),
            yaml(&role),
            yaml(&role_binding),
            yaml(&service),
            yaml(&pods_service),
            yaml(&pdb),
            yaml(&network_policy),
            yaml(&stateful_set),
        ];
        let built = all.join("---\n");
        let golden = here.join("golden").join(path.file_name().unwrap());
        if update {
            fs::write(&golden, &built).unwrap();
        }
        let reviewed = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(built, reviewed, "{golden:?}: review, then run with TARN_UPDATE_GOLDEN=1");
        samples += 1;
    }
    assert_eq!(samples, 4);
}

#[test]
fn a_cache_without_a_prefix_has_one_of_its_own() {
    for (prefix, expected) in [
        ("", "s3://mirrors/ci/tarn"),
        ("prefix: team/a", "s3://mirrors/team/a"),
        // The bucket itself, as caches without a prefix had it once.
        ("prefix: ''", "s3://mirrors"),
    ] {
        let cache = format!(
            "apiVersion: tarn.dev/v1alpha1\nkind: GitCache\nmetadata: {{name: tarn, namespace: ci, uid: u}}\n\
             spec:\n  image: i\n  store:\n    s3:\n      bucket: mirrors\n      {prefix}\n"
        );
        let cache: GitCache = serde_yaml_ng::from_str(&cache).unwrap();
        let valid = validate(&cache, BTreeSet::new(), "tarn:of-the-operator").unwrap().unwrap();
        let built = yaml(&build(&valid).stateful_set);
        assert!(built.contains(&format!("value: {expected}\n")), "{prefix}: {built}");
    }
}
