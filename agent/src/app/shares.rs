//! What clients may take of the process's open files: limits of connections and requests.

use std::time::Duration;

use crate::{
    config,
    descriptors::{self, Raised, Shares},
    listen::ConnectionLimits,
    serve::limits::RequestLimits,
};

/// How long a connection to the admin port may be silent: probes ask at once.
const ADMIN_SILENCE: Duration = Duration::from_secs(5);

/// Raises the limit of open files, and says what of it clients may take.
pub(super) fn shares(flags: &config::LimitFlags) -> Shares {
    let limit = match descriptors::raise() {
        Ok(Raised { from, to }) => {
            if from < to {
                tracing::info!(from, to, "the limit of open files is raised");
            }
            to
        }
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            descriptors::limit()
        }
    };
    let shares = Shares::of(limit, flags.max_connections, flags.max_requests);
    if shares.connections < flags.max_connections || shares.requests < flags.max_requests {
        let (connections, requests) = (shares.connections, shares.requests);
        tracing::warn!(
            limit,
            connections,
            requests,
            "fewer connections and requests than --max-connections and --max-requests allow: the limit of open files is too low for more (ulimit -n)"
        );
    }
    shares
}

/// Limits of the git port's connections.
pub(super) fn connection_limits(flags: &config::LimitFlags, shares: Shares) -> ConnectionLimits {
    ConnectionLimits {
        total: shares.connections,
        per_client: part(flags.max_connections_per_client, shares.connections, flags.max_connections),
        silence: Duration::from_secs(flags.client_timeout.into()),
    }
}

/// A quarter of the connections at most for one address: it is full for all only if four are up to it at once.
pub(super) fn admin_limits(shares: Shares) -> ConnectionLimits {
    ConnectionLimits { total: shares.admin, per_client: shares.admin.div_ceil(4), silence: ADMIN_SILENCE }
}

/// Limits of requests to the git port.
pub(super) fn request_limits(flags: &config::LimitFlags, shares: Shares) -> RequestLimits {
    RequestLimits {
        total: shares.requests,
        per_client: part(flags.max_requests_per_client, shares.requests, flags.max_requests),
        rate: flags.max_rate,
        rate_per_client: flags.max_rate_per_client,
    }
}

/// The same part of what is `granted` as `own` is of what is `wanted`.
fn part(own: usize, granted: usize, wanted: usize) -> usize {
    if granted >= wanted { own } else { (own.min(wanted).saturating_mul(granted) / wanted.max(1)).max(1) }
}
