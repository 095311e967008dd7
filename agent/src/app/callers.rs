//! What callers of both ports are judged by.

use std::sync::Arc;

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
    metrics::{Metrics, TokenFile},
    supervisor::Tasks,
};

/// What callers are judged by.
pub(super) fn means(
    config: &config::Serve,
    scope: Option<&Scope>,
    admin_tokens: Option<Arc<Tokens>>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<Means, StartError> {
    let open = |path| Tokens::open(path, metrics.access.tokens.get_or_create_owned(&TokenFile::CALLERS));
    let tokens = config.access.tokens.as_deref().map(open).transpose()?;
    tasks.spawn_some("tokens", tokens.clone().map(Tokens::follow));
    let reviews = scope.map(|scope| reviews(config, scope));
    let judge = if reviews.is_some() { Judge::Cluster } else { Judge::Shared };
    let open =
        |path| OwnToken::open(path, judge, metrics.access.tokens.get_or_create_owned(&TokenFile::PEER));
    let own = config.access.peer_token.as_deref().map(open).transpose()?;
    tasks.spawn_some("peer-token", own.clone().map(OwnToken::follow));
    let peers = own.map(|own| Peers::new(own, reviews.as_ref()));
    let unbound = config.access.unbound().map_err(StartError::Flags)?;
    Ok(Means { tokens, admin_tokens, reviews, peers, unbound })
}

fn reviews(config: &config::Serve, scope: &Scope) -> Reviews {
    let audiences = config.access.audiences(&scope.namespace, &scope.cache);
    Reviews::new(scope.client.clone(), scope.namespace.clone(), audiences)
}

/// The file with the administrators' tokens, which both ports know.
pub(super) fn admin_tokens(
    config: &config::Serve,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<Option<Arc<Tokens>>, StartError> {
    let open =
        |path| Tokens::open(path, metrics.access.tokens.get_or_create_owned(&TokenFile::ADMINISTRATORS));
    let tokens = config.access.admin_tokens.as_deref().map(open).transpose();
    let tokens = tokens.map_err(StartError::AdminTokens)?;
    tasks.spawn_some("admin-tokens", tokens.clone().map(Tokens::follow));
    Ok(tokens)
}

/// Who may use the admin port from elsewhere.
pub(super) fn administrators(
    config: &config::Serve,
    scope: Option<&Scope>,
    tokens: Option<Arc<Tokens>>,
) -> Administrators {
    Administrators::new(tokens, scope.map(|scope| (reviews(config, scope), scope.cache.clone())))
}
