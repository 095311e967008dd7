//! `tarn-agent store gc`.

use std::time::Duration;

use serde::Serialize;

use super::{
    Found, InspectError, mirrors,
    print::{print_json, print_table, size},
};
use crate::config::GcArgs;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Collected {
    mirror: String,
    checkpoints: usize,
    snapshots: usize,
    objects: usize,
    bytes: u64,
    removed: bool,
}

pub(super) async fn run(args: &GcArgs) -> Result<(), InspectError> {
    let grace = Duration::from_secs(u64::from(args.grace_hours) * 3600);
    let mut rows = Vec::new();
    for Found { name, lineage, shelf } in mirrors(&args.store).await? {
        let garbage = lineage.garbage(usize::from(args.keep.max(1)), grace).await?;
        let archives = shelf.garbage(grace).await?;
        if !args.dry_run {
            lineage.remove(&garbage).await?;
            shelf.remove(&archives).await?;
        }
        rows.push(Collected {
            mirror: name,
            checkpoints: garbage.manifests.len(),
            snapshots: archives.manifests.len(),
            objects: garbage.objects.len() + archives.objects.len(),
            bytes: garbage.bytes() + archives.bytes(),
            removed: !args.dry_run,
        });
    }
    if args.store.json {
        return print_json(&rows);
    }
    let verb = if args.dry_run { "WOULD FREE" } else { "FREED" };
    let cells = rows.iter().map(|row| {
        let counts = [row.checkpoints, row.snapshots, row.objects].map(|count| count.to_string());
        [vec![row.mirror.clone()], counts.to_vec(), vec![size(row.bytes)]].concat()
    });
    print_table(&["MIRROR", "CHECKPOINTS", "SNAPSHOTS", "OBJECTS", verb], &cells.collect::<Vec<_>>())
}
