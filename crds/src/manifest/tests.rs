//! One test for each class of mistakes, and for what is read.

use super::*;
use crate::v1alpha1::{Access, Prewarm};

const MIRROR: &str =
    "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {name: m}\nspec:\n  url: https://h/a\n";

/// The errors of a text's only document, as `field: reason`.
fn errors(text: &str) -> Vec<String> {
    let mut results = read(text);
    assert_eq!(results.len(), 1, "{results:?}");
    let errors = results.remove(0).unwrap_err();
    errors.into_iter().map(|error| format!("{}: {}", error.field, error.reason)).collect()
}

fn mirror(text: &str) -> GitMirror {
    match read(text).remove(0) {
        Ok(Manifest::GitMirror(mirror)) => *mirror,
        other => panic!("{other:?}"),
    }
}

/// A GitMirror with these lines in its spec.
fn with(lines: &str) -> String {
    format!("{MIRROR}  {}\n", lines.replace('\n', "\n  "))
}

#[test]
fn a_mirror_is_read_with_its_defaults() {
    let mirror = mirror(MIRROR);
    assert_eq!(mirror.spec, crate::v1alpha1::GitMirrorSpec::for_url("https://h/a"));
    assert_eq!(mirror.status, None);
}

#[test]
fn everything_written_arrives() {
    let mirror = mirror(&with(
        "interval: 1h30m\nprewarm: Never\naccess: RBAC\nsuspend: true\nrefs: {include: [refs/heads/*]}",
    ));
    assert_eq!(mirror.spec.interval.as_str(), "1h30m");
    assert_eq!(
        (mirror.spec.prewarm, mirror.spec.access, mirror.spec.suspend),
        (Prewarm::Never, Some(Access::Rbac), true)
    );
    assert_eq!(mirror.spec.refs.include, ["refs/heads/*"]);
    assert_eq!(mirror.spec.refs.exclude, ["refs/pull/*", "refs/changes/*"]);
}

#[test]
fn null_means_absent() {
    let mirror = mirror(&with("interval: null\nsecretRef: ~\nsnapshot: {maxAge: null}\nfreshness:"));
    assert_eq!(mirror.spec, crate::v1alpha1::GitMirrorSpec::for_url("https://h/a"));
}

#[test]
fn the_status_in_a_file_is_ignored() {
    assert_eq!(mirror(&format!("{MIRROR}status: {{nonsense: [1]}}\n")).status, None);
}

#[test]
fn caches_and_secrets_are_read_too() {
    let text = "apiVersion: tarn.dev/v1alpha1\nkind: GitCache\nmetadata: {name: c}\nspec: {resources: {requests: {cpu: 2}}}\n---\n\
                apiVersion: v1\nkind: Secret\nmetadata: {name: s, labels: {tarn.dev/credentials: 'true'}}\ndata: {a: aGk=}\nstringData: {b: x}\n";
    let results = read(text);
    let [Ok(Manifest::GitCache(cache)), Ok(Manifest::Secret(secret))] = results.as_slice() else {
        panic!("{results:?}")
    };
    assert_eq!(cache.spec.replicas, 2);
    let data = secret.data.as_ref().unwrap();
    assert_eq!((data["a"].0.as_slice(), data["b"].0.as_slice()), (&b"hi"[..], &b"x"[..]));
    assert_eq!(secret.string_data, None);
}

#[test]
fn one_bad_document_does_not_hide_the_others() {
    let text = format!("{MIRROR}---\na: [\n---\n# nothing\n---\n{MIRROR}  interval: 1s\n---\n{MIRROR}");
    let results = read(&text);
    let said: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(manifest) => format!("{} {}", manifest.kind(), manifest.name()),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        })
        .collect();
    assert_eq!(said[0], "GitMirror m");
    assert!(said[1].starts_with("document 2: is not valid YAML, line 8: "), "{}", said[1]);
    assert_eq!(said[2], "document 3 (m): spec.interval: must be at least 10s");
    assert_eq!(said[3], "GitMirror m");
}

#[test]
fn an_empty_text_holds_nothing() {
    for text in ["", "\n# comment\n---\n", "---\n---\n", "null\n"] {
        assert_eq!(read(text), []);
    }
}

#[test]
fn broken_yaml_is_refused_with_its_line() {
    for (text, line) in [
        ("a: 1\nb: [1\nc: 2\n", 2),
        ("# x\n---\na: 'x\n", 3),
        ("a: 1\na: 2\n", 1),
        ("a: *nowhere\n", 1),
        ("\ta: 1", 1),
    ] {
        let error = errors(text).remove(0);
        assert!(error.starts_with(": is not valid YAML"), "{error}");
        if text.contains(['[', '\'', '*', '\t']) {
            assert!(error.contains(", line "), "{error} {line}");
        }
    }
}

#[test]
fn what_kind_it_is_must_be_clear() {
    for (text, expected) in [
        ("[1]", ": must be a mapping with apiVersion, kind and metadata"),
        ("hello", ": must be a mapping with apiVersion, kind and metadata"),
        ("a: 1", "kind: is required: GitMirror, GitCache or Secret"),
        ("kind: ConfigMap", "kind: is none that Tarn reads: GitMirror, GitCache and Secret"),
        ("kind: GitMirror", "apiVersion: must be tarn.dev/v1alpha1 for a GitMirror"),
        ("kind: GitMirror\napiVersion: tarn.dev/v1", "apiVersion: must be tarn.dev/v1alpha1 for a GitMirror"),
        ("kind: Secret\napiVersion: tarn.dev/v1alpha1", "apiVersion: must be v1 for a Secret"),
    ] {
        assert_eq!(errors(text), [expected]);
    }
}

#[test]
fn names_are_checked() {
    let base = "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nspec: {url: 'https://h/a'}\n";
    let name = "metadata.name: must be lower-case letters, digits, dashes and dots, at most 253, with a letter or digit at either end";
    let namespace = "metadata.namespace: must be lower-case letters, digits and dashes, at most 63, with a letter or digit at either end";
    for (metadata, expected) in [
        ("{}", "metadata.name: is required"),
        ("{generateName: a-}", "metadata.name: is required"),
        ("{name: 5}", "metadata.name: must be a string; put it in quotes"),
        ("{name: A}", name),
        ("{name: -a}", name),
        ("{name: a..b}", name),
        ("{name: ''}", name),
        ("{name: a, namespace: a.b}", namespace),
        ("{name: a, lables: {}}", "metadata.lables: unknown field; did you mean labels?"),
        ("{name: a, labels: {x: 1}}", "metadata.labels.x: must be a string; put it in quotes"),
        (
            "{name: a, annotations: {tarn.dev/x: 1}}",
            "metadata.annotations[tarn.dev/x]: must be a string; put it in quotes",
        ),
    ] {
        assert_eq!(errors(&format!("{base}metadata: {metadata}\n")), [expected]);
    }
    assert_eq!(errors(base), ["metadata: is required", "metadata.name: is required"]);
}

#[test]
fn unknown_fields_are_found_wherever_they_are() {
    for (text, expected) in [
        (with("intervall: 5m"), "spec.intervall: unknown field; did you mean interval?"),
        (with("snapshot: {maxage: 24h}"), "spec.snapshot.maxage: unknown field; did you mean maxAge?"),
        (with("secretRef: {name: x, namespace: y}"), "spec.secretRef.namespace: unknown field"),
        (format!("{MIRROR}sepc: {{}}\n"), "sepc: unknown field; did you mean spec?"),
        (with("'https://u:hunter2@h/a': x"), "spec.<unprintable>: unknown field"),
    ] {
        assert_eq!(errors(&text), [expected]);
    }
}

#[test]
fn the_schema_is_checked() {
    for (lines, expected) in [
        ("interval: 15", "spec.interval: must be a string; put it in quotes"),
        ("interval: 15x", "spec.interval: must be hours, minutes and seconds such as 90s, 15m or 1h30m"),
        ("interval: 1m1h", "spec.interval: must be hours, minutes and seconds such as 90s, 15m or 1h30m"),
        ("interval: ''", "spec.interval: must have at least 2 characters"),
        ("suspend: 'yes'", "spec.suspend: must be true or false"),
        ("prewarm: auto", "spec.prewarm: must be one of Always, Auto, Never"),
        ("access: rbac", "spec.access: must be one of Anonymous, Authenticated, RBAC, Upstream"),
        ("checkpoint: {keep: 0}", "spec.checkpoint.keep: must be at least 1"),
        ("checkpoint: {keep: 101}", "spec.checkpoint.keep: must be at most 100"),
        ("checkpoint: {keep: 1.5}", "spec.checkpoint.keep: must be a whole number"),
        ("checkpoint: {keep: 99999999999}", "spec.checkpoint.keep: is too large a number"),
        ("checkpoint: [1]", "spec.checkpoint: must be a mapping of fields"),
        ("secretRef: {}", "spec.secretRef.name: is required"),
        ("secretRef: {name: ''}", "spec.secretRef.name: must not be empty"),
        ("refs: {include: []}", "spec.refs.include: must not be empty"),
        ("refs: {include: refs/x}", "spec.refs.include: must be a list"),
        ("refs: {include: [heads/x]}", "spec.refs.include[0]: must start with refs/ and hold no space"),
        ("refs: {include: [refs/a, refs/a]}", "spec.refs.include: must not have the same entry twice"),
        ("refs: {exclude: [refs/a, 1]}", "spec.refs.exclude[1]: must be a string; put it in quotes"),
    ] {
        assert_eq!(errors(&with(lines)), [expected]);
    }
    assert_eq!(errors(&MIRROR.replace("  url: https://h/a", "  suspend: true")), ["spec.url: is required"]);
    assert_eq!(
        errors("apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {name: m}"),
        ["spec: is required"]
    );
}

#[test]
fn all_mistakes_of_a_document_are_reported_at_once() {
    assert_eq!(
        errors(&with("intervall: 5m\nsuspend: 1\nfreshness: {lookTimeout: 5}")),
        [
            "spec.freshness.lookTimeout: must be a string; put it in quotes",
            "spec.intervall: unknown field; did you mean interval?",
            "spec.suspend: must be true or false",
        ]
    );
    let many: String = (0..50).map(|n| format!("field{n}: 1\n")).collect();
    assert_eq!(errors(&with(&many)).len(), MAX_ERRORS);
}

#[test]
fn the_cel_rules_are_checked_with_defaults_in_place() {
    assert_eq!(
        errors(&with("interval: 5s\ntimeout: 1s")),
        ["spec.interval: must be at least 10s", "spec.timeout: must be at least 10s"]
    );
    assert_eq!(
        errors(&with("snapshot: {interval: 48h}")),
        ["spec.snapshot.maxAge: maxAge (24h) must not be shorter than interval (48h)"]
    );
    let long = "apiVersion: tarn.dev/v1alpha1\nkind: GitCache\nspec: {}\nmetadata: {name: ".to_owned()
        + &"a".repeat(53)
        + "}\n";
    assert!(errors(&long)[0].starts_with(": name must be at most 52 characters"), "{:?}", errors(&long));
}

#[test]
fn what_cel_cannot_see_in_a_url_is_checked_after_it() {
    let text = MIRROR.replace("https://h/a", "https://h/%ff");
    assert_eq!(errors(&text), ["spec.url: is not UTF-8 once percent-decoded"]);
}

#[test]
fn no_error_repeats_a_value() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n";
    for text in [
        MIRROR.replace("https://h/a", "https://u:hunter2@h/a"),
        MIRROR.replace("https://h/a", "hunter2"),
        MIRROR.replace("https://h/a", "https://h/hunter2/../a b?x"),
        MIRROR.replace("https://h/a", "[hunter2]"),
        MIRROR.replace("https://h/a", "{hunter2: x}"),
        MIRROR.replace("https://h/a", &format!("https://h/hunter2{}", "x".repeat(2000))),
        MIRROR.replace("https://h/a", "\"https://u:hunter2@h/a\n"),
        MIRROR.replace("https://h/a", "https://u:hunter2@h/a: x"),
        MIRROR.replace("https://h/a", "!hunter2 x"),
        MIRROR.replace("name: m", "name: HUNTER2 hunter2"),
        MIRROR.replace("GitMirror", "hunter2"),
        MIRROR.replace("tarn.dev/v1alpha1", "hunter2"),
        with("prewarm: hunter2"),
        with("interval: hunter2"),
        with("secretRef: hunter2"),
        format!("{secret}data: {{a: hunter2}}\n"),
        format!("{secret}data: hunter2\n"),
        format!("{secret}data: {{a: [hunter2]}}\n"),
        format!("{secret}stringData: {{a: {{b: hunter2}}}}\n"),
        "hunter2".to_owned(),
    ] {
        let results = read(&text);
        let errors: Vec<_> = results.into_iter().filter_map(Result::err).flatten().collect();
        assert!(!errors.is_empty(), "{text}");
        assert!(
            !format!("{errors:?}").to_lowercase().contains("hunter2") || text.contains("{hunter2:"),
            "{errors:?}"
        );
    }
}

#[test]
fn aliases_work_within_bounds() {
    let text = "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {name: m}\nspec:\n  url: https://h/a\n  interval: &day 24h\n  timeout: *day\n";
    assert_eq!(mirror(text).spec.timeout.as_str(), "24h");
}

#[test]
fn bombs_are_refused() {
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..10 {
        let of = n - 1;
        laughs += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{of}"); 10].join(","));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 2000].join(","));
    let deep = "[".repeat(100_000);
    for text in [laughs, long, deep] {
        let error = errors(&text).remove(0);
        assert!(error.starts_with(": is not valid YAML"), "{error}");
    }
    assert_eq!(errors(&" ".repeat(MAX_TEXT + 1)), [": is larger than 4 MiB"]);
    assert_eq!(errors(&"---\na\n".repeat(MAX_DOCUMENTS + 1)), [": holds more than 20000 documents"]);
}

#[test]
fn thousands_of_mirrors_are_read_in_seconds() {
    let text = format!("---\n{MIRROR}").repeat(5000);
    let started = std::time::Instant::now();
    assert!(read(&text).iter().all(Result::is_ok));
    // Unoptimised and on a busy machine; it is the order of magnitude that counts.
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn the_examples_are_valid() {
    let mut documents = 0;
    for directory in ["examples", "examples/kubernetes"] {
        let files = std::fs::read_dir(format!("{}/../{directory}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for path in files.map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            // A pod, a role or a policy of a user's, of which only the API server knows what it may hold.
            let name = path.file_name().unwrap().to_str().unwrap();
            if ["ci-job-", "network-policy-", "role-", "store-pod"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            for manifest in read(&std::fs::read_to_string(&path).unwrap()) {
                assert!(manifest.is_ok(), "{}: {manifest:?}", path.display());
                documents += 1;
            }
        }
    }
    assert!(documents >= 11);
}
