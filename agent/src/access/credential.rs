//! What a request proves itself with: one `Authorization` header, or none. Pure.

use std::fmt;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{HeaderMap, header};
use serde::Deserialize;

use super::Refusal;
use crate::upstream::Secret;

/// The longest header that is read: tokens of clusters with many claims take 4 KiB.
const MAX_HEADER: usize = 16 * 1024;

/// What a request proves itself with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    None,
    /// A token.
    Bearer(Secret),
    /// A user and a password, as git sends what it was given.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bearer(_) => "Bearer(***)",
            Self::Basic { .. } => "Basic(***)",
        })
    }
}

impl Credential {
    /// Reads it from a request's headers.
    ///
    /// # Errors
    /// There are two, or one that is none.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let malformed = |text: &str| Refusal::Malformed(text.into());
        let mut all = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = all.next() else { return Ok(Self::None) };
        // Of two, whoever reads the other one would see another caller.
        if all.next().is_some() {
            return Err(malformed("more than one Authorization header"));
        }
        if value.len() > MAX_HEADER {
            return Err(malformed("the Authorization header is longer than 16 KiB"));
        }
        let text = value.to_str().map_err(|_| malformed("the Authorization header is not plain text"))?;
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(malformed("the Authorization header is empty"));
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Self::Bearer(Secret::new(rest)));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(malformed("the Authorization header is neither Basic nor Bearer"));
        }
        let decoded = BASE64_STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(|| malformed("the Basic credentials cannot be read"))?;
        let (user, password) =
            decoded.split_once(':').ok_or_else(|| malformed("the Basic credentials have no password"))?;
        Ok(Self::Basic { user: user.to_owned(), password: Secret::new(password) })
    }

    /// The token: git sends one as the password of any user.
    pub fn token(&self) -> Option<&Secret> {
        match self {
            Self::Bearer(token) => Some(token),
            Self::Basic { password, .. } => Some(password).filter(|password| !password.expose().is_empty()),
            Self::None => None,
        }
    }
}

impl Credential {
    /// Every text in it that somebody may have meant as a token: forges take one as the user, as the password, or as both.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Bearer(token) => vec![token.expose().to_owned()],
            Self::Basic { user, password } => {
                let users = [Some(user.as_str()), user.rsplit_once('@').map(|(user, _)| user)];
                let password = password.expose();
                let mut texts = vec![password.to_owned()];
                for user in users.into_iter().flatten() {
                    texts.extend([user.to_owned(), format!("{user}:{password}")]);
                }
                texts
            }
        }
    }
}

/// What a token says of itself. Nobody has verified it: it may only make Tarn more careful.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Whose it says it is.
    pub subject: String,
    /// Whom it says it is for.
    pub audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audience,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Claims {
    /// Reads them, if the token is a JWT.
    pub fn read(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
        let Payload { sub, aud } = serde_json::from_slice(&payload).ok()?;
        let audiences = match aud {
            Audience::One(one) => vec![one],
            Audience::Many(many) => many,
        };
        Some(Self { subject: sub, audiences })
    }

    /// Whether it says to be of a pod.
    pub fn is_service_account(&self) -> bool {
        self.subject.starts_with("system:serviceaccount:")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Result<Credential, Refusal> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Credential::of(&headers)
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        let token = |values: &[&str]| of(values).unwrap().token().map(|token| token.expose().to_owned());
        assert_eq!(token(&[]), None);
        assert_eq!(token(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(token(&["bearer  abc "]).as_deref(), Some("abc"));
        // tarn:a:c
        assert_eq!(token(&["Basic dGFybjphOmM="]).as_deref(), Some("a:c"));
        // tarn:
        assert_eq!(token(&["Basic dGFybjo="]), None);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let long = format!("Bearer {}", "a".repeat(MAX_HEADER));
        for wrong in [
            &["Bearer a", "Bearer b"][..],
            &["Bearer a", "Basic dGFybjphOmM="],
            &["Bearer"],
            &["Bearer "],
            &["Digest x"],
            &["Basic ***"],
            &["Basic dGFybg=="],
            &["Bearer canary\u{e9}"],
            &[&long],
        ] {
            let Err(Refusal::Malformed(text)) = of(wrong) else { panic!("{wrong:?}") };
            assert!(!text.contains("canary"), "{text}");
        }
        assert!(!format!("{:?}", of(&["Bearer canary"])).contains("canary"));
    }

    #[test]
    fn claims_are_read_from_tokens_only() {
        let token = |payload: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let pod = Claims::read(&token(r#"{"sub":"system:serviceaccount:ci:job","aud":["tarn"]}"#)).unwrap();
        assert!(pod.is_service_account() && pod.audiences == ["tarn"]);
        let other = Claims::read(&token(r#"{"sub":"ada","aud":"forge"}"#)).unwrap();
        assert!(!other.is_service_account() && other.audiences == ["forge"]);
        for none in ["ghp_abc", "a.b.c", "..", "", "e30.e30"] {
            assert_eq!(Claims::read(none), None, "{none}");
        }
    }
}
