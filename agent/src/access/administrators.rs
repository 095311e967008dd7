//! Who may use the admin port from elsewhere than the agent's own machine or pod: callers whose token is in the file of
//! `--admin-tokens`, and in a cluster those whom a Role lets `get` (read) or `create` (order) the subresource `admin` of the
//! GitCache. A token that clones opens nothing here, unless it has that right as well.

use std::sync::Arc;

use http::HeaderMap;

use super::{
    Refusal,
    answers::Hashes,
    caller::{Caller, Kind},
    credential::Credential,
    reviews::Reviews,
    tokens::Tokens,
};

/// What somebody wants of the admin port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To know which mirrors there are, and how they are.
    Read,
    /// To have something done.
    Order,
}

impl Use {
    /// The verb that a Role grants for it.
    const fn verb(self) -> &'static str {
        match self {
            Self::Read => "get",
            Self::Order => "create",
        }
    }
}

/// Judges who uses the admin port from elsewhere.
pub struct Administrators {
    tokens: Option<Arc<Tokens>>,
    cluster: Option<(Reviews, String)>,
    hashes: Hashes,
}

impl Administrators {
    /// Judges by a file of tokens, and by the rights to a GitCache; without either, nobody is let in.
    pub fn new(tokens: Option<Arc<Tokens>>, cluster: Option<(Reviews, String)>) -> Self {
        Self { tokens, cluster, hashes: Hashes::new() }
    }

    /// Lets the sender of a request in, or says why not.
    ///
    /// # Errors
    /// The sender has no right to it, or nobody can tell.
    pub async fn admit(&self, wanted: Use, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let credential = Credential::of(headers)?;
        let Some(token) = credential.token() else {
            return Err(Refusal::Unauthenticated(format!(
                "ask from the agent's own machine or pod{}",
                self.means()
            )));
        };
        if let Some(name) = self.tokens.as_ref().and_then(|tokens| tokens.find(token.expose())) {
            return Ok(Caller::new(Kind::Token, name));
        }
        let Some((reviews, cache)) = &self.cluster else {
            return Err(Refusal::Unauthenticated("the agent does not know this token".into()));
        };
        let user = reviews.user(&self.hashes, token).await?;
        reviews.may_administer(&self.hashes, &user, wanted.verb(), cache).await?;
        Ok(Caller::new(Kind::Kubernetes, user.name.clone()))
    }

    /// How to ask from elsewhere.
    fn means(&self) -> String {
        match (&self.cluster, &self.tokens) {
            (Some((reviews, _)), _) => {
                let audiences = reviews.audiences().join(" or ");
                format!(", or give a Kubernetes token for the audience {audiences}")
            }
            (None, Some(_)) => ", or give a token of --admin-tokens".into(),
            (None, None) => ", or start it with --admin-tokens".into(),
        }
    }
}
