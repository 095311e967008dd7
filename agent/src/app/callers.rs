//! What callers of both ports are judged by.

use super::StartError;
use crate::{
    access::{
        Means,
        administrators::Administrators,
        peers::{Judge, OwnToken, Peers},
        reviews::Reviews,
        tokens::Tokens,
    },
    config,
    fleet::cluster::Scope,
    supervisor::Tasks,
};

/// What callers are judged by.
pub(super) fn means(
    config: &config::Serve,
    scope: Option<&Scope>,
    tasks: &mut Tasks,
) -> Result<Means, StartError> {
    let tokens = config.access.tokens.as_deref().map(Tokens::open).transpose()?;
    tasks.spawn_some("tokens", tokens.clone().map(Tokens::follow));
    let reviews = scope.map(|scope| reviews(config, scope));
    let judge = if reviews.is_some() { Judge::Cluster } else { Judge::Shared };
    let own = config.access.peer_token.as_deref().map(|path| OwnToken::open(path, judge)).transpose()?;
    tasks.spawn_some("peer-token", own.clone().map(OwnToken::follow));
    let peers = own.map(|own| Peers::new(own, reviews.as_ref()));
    let unbound = config.access.unbound().map_err(StartError::Flags)?;
    Ok(Means { tokens, reviews, peers, unbound })
}

fn reviews(config: &config::Serve, scope: &Scope) -> Reviews {
    let audiences = config.access.audiences(&scope.namespace, &scope.cache);
    Reviews::new(scope.client.clone(), scope.namespace.clone(), audiences)
}

/// Who may use the admin port from elsewhere.
pub(super) fn administrators(
    config: &config::Serve,
    scope: Option<&Scope>,
    tasks: &mut Tasks,
) -> Result<Administrators, StartError> {
    let tokens = config.access.admin_tokens.as_deref().map(Tokens::open).transpose();
    let tokens = tokens.map_err(StartError::AdminTokens)?;
    tasks.spawn_some("admin-tokens", tokens.clone().map(Tokens::follow));
    Ok(Administrators::new(tokens, scope.map(|scope| (reviews(config, scope), scope.cache.clone()))))
}
