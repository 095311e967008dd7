//! Who sent a request, as far as it is known.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The longest name that is kept; Kubernetes has none longer than a few hundred bytes.
const MAX_NAME: usize = 512;

/// Who sent a request that was let in. It stands in the request's extensions, for those who account for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who knows the caller.
    pub kind: Kind,
    /// The name it is known by, without control characters; empty where nobody asked. Never a credential.
    pub name: String,
}

/// Who knows a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody: anyone may ask.
    Anonymous,
    /// The file of tokens.
    Token,
    /// The cluster.
    Kubernetes,
    /// The upstream; the name stands for the credential.
    Upstream,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Anonymous, Self::Token, Self::Kubernetes, Self::Upstream];

    /// The kind in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Token => "token",
            Self::Kubernetes => "kubernetes",
            Self::Upstream => "upstream",
        }
    }
}

impl Caller {
    /// Somebody of whom nothing is known.
    pub const fn anonymous() -> Self {
        Self { kind: Kind::Anonymous, name: String::new() }
    }

    /// Somebody of this name.
    pub fn new(kind: Kind, name: impl AsRef<str>) -> Self {
        let mut name = name.as_ref().replace(|c: char| c.is_control(), " ");
        name.truncate(name.floor_char_boundary(MAX_NAME));
        Self { kind, name }
    }

    /// As one word for a header.
    pub fn encode(&self) -> String {
        format!("{};{}", self.kind.as_str(), utf8_percent_encode(&self.name, NON_ALPHANUMERIC))
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(word: &str) -> Option<Self> {
        let (kind, name) = word.split_once(';')?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        Some(Self::new(kind, percent_decode_str(name).decode_utf8().ok()?))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Anonymous => f.write_str(self.kind.as_str()),
            kind => write!(f, "{}:{}", kind.as_str(), self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_survives_a_header_and_forges_none() {
        for name in ["", "system:serviceaccount:ci:job", "a b;c\r\nX: y", "é"] {
            let caller = Caller::new(Kind::Kubernetes, name);
            let word = caller.encode();
            assert!(word.bytes().all(|byte| byte.is_ascii_graphic()), "{word}");
            assert_eq!(Caller::decode(&word), Some(caller));
        }
        for wrong in ["", "root", "nobody;x", "token;%ff"] {
            assert_eq!(Caller::decode(wrong), None, "{wrong}");
        }
        assert_eq!(Caller::new(Kind::Token, "é".repeat(600)).name.len(), MAX_NAME);
    }
}
