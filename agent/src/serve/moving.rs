//! Mirrors that belong to other agents now: they are served here until those have them, and leave then.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tarn_crds::repo::RepoId;
use tokio::time::sleep;

use super::{Serving, proxy::Ask};
use crate::{
    access::{Voucher, caller::Caller},
    backoff::interval_delay,
    peers::placement::Placement,
};

/// How often mirrors are looked for that belong elsewhere.
const EVERY: Duration = Duration::from_secs(5);

/// How long a mirror has to belong elsewhere before anything is done about it.
const SETTLED: Duration = Duration::from_secs(10);

/// Lets go of mirrors whose owners all answer for them, which asking them brings about. For ever.
pub async fn release(serving: Arc<Serving>, placement: Placement) {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("git-protocol"), HeaderValue::from_static("version=2"));
    let mut since: HashMap<RepoId, Instant> = HashMap::new();
    loop {
        sleep(interval_delay(EVERY, rand::random())).await;
        let foreign = |id: &RepoId| placement.is_known() && !placement.keeps(id);
        let all = serving.fleet.mirrors();
        since.retain(|id, _| foreign(id));
        for mirror in all.iter().filter(|mirror| mirror.bytes() > 0 && foreign(mirror.id())) {
            let id = mirror.id();
            let waits = since.entry(id.clone()).or_insert_with(Instant::now).elapsed() < SETTLED;
            let verb = "/info/refs?service=git-upload-pack";
            let voucher = serving.guard.vouch(mirror.settings().access, &Caller::anonymous());
            let ask = Ask { method: Method::GET, verb, headers: &headers, body: Bytes::new(), voucher };
            // Without a word for itself the others would refuse.
            let may_ask = !matches!(ask.voucher, Voucher::Impossible);
            if waits || !may_ask || !serving.proxy.all_warm(id, &placement.owners(id), &ask).await {
                continue;
            }
            match mirror.evict().await {
                Ok(bytes) => {
                    tracing::info!(repo = %id, bytes, "moved: those that keep it have it");
                    mirror.snapshots().evict().await;
                }
                Err(reason) => tracing::debug!(repo = %id, %reason, "stays for now, though others keep it"),
            }
        }
    }
}
