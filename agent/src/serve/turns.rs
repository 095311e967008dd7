//! The turns of children that make answers.

use std::{net::IpAddr, time::Duration};

use tarn_crds::repo::RepoId;
use tokio::time::timeout;

use super::{Serving, error::Failure};
use crate::{
    mirror::Mirror,
    queue::{Activity, Priority, Ticket},
};

/// How long a request waits for its turn to start a child.
const QUEUE_WAIT: Duration = Duration::from_secs(60);

impl Serving {
    /// Waits for the turn of a child that makes an answer for `client`; without one, ahead of who will ask. The turn lasts
    /// until the ticket is dropped.
    ///
    /// # Errors
    /// Too many wait, or it takes too long.
    pub(super) async fn turn(&self, client: Option<IpAddr>, mirror: &RepoId) -> Result<Ticket, Failure> {
        let priority = priority(client);
        self.wait_in_line(Activity::Pack(client), priority, mirror, QUEUE_WAIT).await
    }

    /// The same for what is made once for all who ask: clients who join later do not stand in line, so it never waits behind
    /// them as work in the background.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn shared_turn(
        &self,
        client: Option<IpAddr>,
        mirror: &RepoId,
    ) -> Result<Ticket, Failure> {
        self.wait_in_line(Activity::Pack(client), Priority::Awaited, mirror, QUEUE_WAIT).await
    }

    /// The same for an answer with all history, which may wait for others of its kind: whoever waits is sent signs of life.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn dear_turn(&self, client: Option<IpAddr>, mirror: &Mirror) -> Result<Ticket, Failure> {
        let patience = mirror.settings().timeout.max(QUEUE_WAIT);
        let priority = priority(client);
        self.wait_in_line(Activity::WholePack(client), priority, mirror.id(), patience).await
    }

    async fn wait_in_line(
        &self,
        activity: Activity,
        priority: Priority,
        mirror: &RepoId,
        patience: Duration,
    ) -> Result<Ticket, Failure> {
        let mut ticket = self.fleet.queue().admit(activity, mirror, priority).ok_or_else(Failure::busy)?;
        timeout(patience, ticket.called()).await.map_err(|_| Failure::busy())?;
        Ok(ticket)
    }
}

/// Nobody waits yet for what is made ahead.
fn priority(client: Option<IpAddr>) -> Priority {
    client.map_or(Priority::Background, |_| Priority::Awaited)
}
