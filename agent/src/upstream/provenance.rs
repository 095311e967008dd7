//! With what content was fetched: what took credentials is not shown to those who never had them (P8).
//!
//! It names the declared Secret, never holds or digests what is in it, so it may be written into the store.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Provenance {
    /// Nobody noted it: it counts as fetched with credentials of another declaration.
    #[default]
    Unknown,
    /// Without credentials.
    Public,
    /// With the Secret of this namespace and name.
    Secret(String),
}

impl Provenance {
    /// What a declaration in `namespace` fetches with that names this Secret, or none.
    pub fn of(namespace: &str, secret: Option<&str>) -> Self {
        secret.map_or(Self::Public, |secret| Self::Secret(format!("{namespace}/{secret}")))
    }

    /// Whether such content may be shown under a declaration that fetches as `declared`, before the upstream has been
    /// asked under that declaration.
    pub fn is_open_to(&self, declared: &Self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Public => true,
            Self::Secret(_) => self == declared,
        }
    }

    /// What content is that is partly of this and partly of the other.
    pub fn mixed_with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Public, one) | (one, Self::Public) => one,
            (one, other) if one == other => one,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_credentials_is_open_to_the_same_declaration_alone() {
        let (public, ours) = (Provenance::of("ci", None), Provenance::of("ci", Some("a")));
        let others =
            [Provenance::of("ci", Some("b")), Provenance::of("other", Some("a")), Provenance::Unknown];
        assert!(public.is_open_to(&public) && public.is_open_to(&ours) && ours.is_open_to(&ours));
        assert!(!ours.is_open_to(&public));
        for other in others {
            assert!(!other.is_open_to(&ours) && !other.is_open_to(&public), "{other:?}");
            assert_eq!(other.clone().mixed_with(ours.clone()), Provenance::Unknown);
            assert_eq!(public.clone().mixed_with(other.clone()), other);
        }
        assert!(!Provenance::Unknown.is_open_to(&Provenance::Unknown));
    }

    #[test]
    fn it_is_written_by_name() {
        for (provenance, text) in [
            (Provenance::Unknown, r#""unknown""#),
            (Provenance::Public, r#""public""#),
            (Provenance::of("ci", Some("a")), r#"{"secret":"ci/a"}"#),
        ] {
            assert_eq!(serde_json::to_string(&provenance).unwrap(), text);
            assert_eq!(serde_json::from_str::<Provenance>(text).unwrap(), provenance);
        }
    }
}
