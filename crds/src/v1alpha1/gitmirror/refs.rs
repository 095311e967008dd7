//! Which refs are mirrored.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::patterns::REF;

/// Patterns over full ref names, where `*` stands for any run of characters, slashes included.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Refs {
    /// Refs to mirror. Defaults to all of them, `refs/*`.
    #[serde(default = "default_include")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 6, max = 256), regex(pattern = REF))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub include: Vec<String>,
    /// Refs to leave out although `include` selects them. Defaults to the review refs of GitHub (`refs/pull/*`) and
    /// Gerrit (`refs/changes/*`).
    #[serde(default = "default_exclude")]
    #[schemars(length(max = 64), inner(length(min = 6, max = 256), regex(pattern = REF)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
}

fn default_include() -> Vec<String> {
    vec!["refs/*".into()]
}

fn default_exclude() -> Vec<String> {
    vec!["refs/pull/*".into(), "refs/changes/*".into()]
}

impl Default for Refs {
    fn default() -> Self {
        Self { include: default_include(), exclude: default_exclude() }
    }
}

impl Refs {
    /// Whether the ref of this full name is mirrored; HEAD always is.
    pub fn selects(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
        name == "HEAD" || (any(&self.include) && !any(&self.exclude))
    }
}

/// Matches in linear time: the first place where a part occurs is always good enough, as only `*` can follow it.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == name };
    let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix));
    let after = middle.split('*').try_fold(inner, |name, part| {
        let name = name?;
        Some(name.find(part).and_then(|at| name.get(at + part.len()..)))
    });
    after.flatten().is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn review_refs_are_left_out_by_default() {
        let refs = Refs::default();
        for name in ["HEAD", "refs/heads/main", "refs/tags/v1", "refs/notes/x", "refs/pullover"] {
            assert!(refs.selects(name), "{name}");
        }
        for name in ["refs/pull/1/head", "refs/changes/01/1/1", "main", "FETCH_HEAD"] {
            assert!(!refs.selects(name), "{name}");
        }
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name, expected) in [
            ("refs/heads/main", "refs/heads/main", true),
            ("refs/heads/main", "refs/heads/main2", false),
            ("refs/heads/*", "refs/heads/", true),
            ("refs/heads/*", "refs/heads/a/b", true),
            ("refs/*/main", "refs/heads/main", true),
            ("refs/*/main", "refs/main", false),
            ("refs/heads/*-*-x", "refs/heads/a-b-x", true),
            ("refs/heads/*-*-x", "refs/heads/a-x", false),
            ("refs/a*a", "refs/a", false),
            ("refs/**x", "refs/yx", true),
            ("refs/*b*", "refs/abc", true),
            ("refs/*b*b*", "refs/abc", false),
            ("*ü*", "refs/heads/für", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_against_a_long_name_take_no_time() {
        let refs = Refs { include: vec![format!("refs/{}b", "a*".repeat(120)); 64], exclude: vec![] };
        assert!(!refs.selects(&format!("refs/{}", "a".repeat(100_000))));
    }

    /// The textbook definition.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', pattern @ ..], name) => (0..=name.len()).any(|at| naive(pattern, &name[at..])),
            ([p, pattern @ ..], [n, name @ ..]) => p == n && naive(pattern, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
