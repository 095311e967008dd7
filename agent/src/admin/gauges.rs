//! Gauges of each mirror, read from the fleet when they are asked for.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Unit,
};
use tarn_crds::v1alpha1::{Access, Phase};

use crate::{
    fleet::{Fleet, budget::Keeper, prewarm::Warmer},
    mirror::Mirror,
};

/// Key of the names that stand for mirrors' own; it leaves no memory.
static KEY: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

/// Computes the gauges.
pub struct Gauges {
    /// All mirrors.
    pub fleet: Arc<Fleet>,
    /// Who brings mirrors before anyone asks.
    pub warmer: Warmer,
    /// Who keeps the disk's budget.
    pub budget: Keeper,
    /// Which mirrors are called by their names.
    pub named: Named,
}

/// Which mirrors metrics call by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// Those that everybody may have. Each other one has a name of its own that means nothing, until the agent starts again:
    /// so an alert on it still fires, and who may ask learns which it is.
    Public,
    /// All.
    All,
}

impl Named {
    fn label(self, mirror: &Mirror) -> String {
        let name = mirror.id().to_string();
        if self == Self::All || mirror.settings().access == Access::Anonymous {
            return name;
        }
        let hash = blake3::keyed_hash(&KEY, name.as_bytes()).to_hex();
        format!("hidden-{}", hash.get(..12).unwrap_or_default())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMirror {
    mirror: String,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (ready, bytes, refs) = (
            Family::<ByMirror, Gauge>::default(),
            Family::<ByMirror, Gauge>::default(),
            Family::<ByMirror, Gauge>::default(),
        );
        let (looked, failing) = (Family::<ByMirror, Gauge>::default(), Family::<ByMirror, Gauge>::default());
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for mirror in self.fleet.mirrors() {
            let (view, label) = (mirror.view(), ByMirror { mirror: self.named.label(&mirror) });
            let is_ready = matches!(view.phase, Phase::Ready | Phase::Fetching);
            ready.get_or_create(&label).set(i64::from(is_ready));
            bytes.get_or_create(&label).set(number(view.bytes));
            let count = view.stored.as_ref().map_or(0, |stored| stored.refs.refs().len());
            refs.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
            failing.get_or_create(&label).set(i64::from(view.trouble().is_some()));
            looked.get_or_create(&label).set(view.last_look.map_or(0, Timestamp::as_second));
        }
        let refused = self.fleet.refused();
        let mut put =
            |name, help, unit: Option<&Unit>, family: &dyn Encode| family.put(&mut encoder, name, help, unit);
        put("mirror_ready", "Whether the mirror is whole and caught up", None, &ready)?;
        put("mirror_failing", "Whether the last look or fetch failed", None, &failing)?;
        put("mirror_refs", "Refs on the disk", None, &refs)?;
        put("mirror_disk", "Size on the disk", Some(&Unit::Bytes), &bytes)?;
        put(
            "mirror_last_look_timestamp",
            "When the newest look that succeeded began, in Unix time; 0 before it",
            Some(&Unit::Seconds),
            &looked,
        )?;
        let count = |n: usize| ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
        let disk = self.budget.usage();
        let bytes = |n| ConstGauge::new(number(n));
        let unit = Some(&Unit::Bytes);
        put("disk_budget", "What the agent's data may take", unit, &bytes(disk.budget))?;
        put("disk_used", "What they take", unit, &bytes(disk.used))?;
        put("disk_free", "What is free on their volume", unit, &bytes(disk.volume.free))?;
        let warm = self.warmer.progress();
        put("prewarm_chosen", "Mirrors brought before anyone asks", None, &count(warm.total))?;
        put("prewarm_warm", "Of those, the ones that are here and up to date", None, &count(warm.warmed))?;
        put(
            "fleet_stalled",
            "Mirrors that cannot be set up as declared",
            None,
            &count(refused.stalled.len()),
        )?;
        put(
            "fleet_rejected",
            "Manifests that are no valid declarations",
            None,
            &count(refused.rejected.len()),
        )
    }
}

/// Lets gauges of different types share one helper.
trait Encode {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> fmt::Result;
}

impl<M: EncodeMetric> Encode for M {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> fmt::Result {
        self.encode(encoder.encode_descriptor(name, help, unit, self.metric_type())?)
    }
}
