//! `tarn-agent store ls`.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Found, InspectError, Kind, mirrors,
    print::{print_json, print_table, size},
};
use crate::{
    checkpoint::CheckpointError,
    config::StoreArgs,
    snapshot::{SnapshotError, shelf::Shelf},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    mirror: String,
    kind: Kind,
    generation: u64,
    time: Option<Timestamp>,
    refs: Option<u64>,
    packs: Option<usize>,
    bytes: Option<u64>,
    writer: Option<String>,
    /// `good`, `bad` (marked so), or what is wrong with the manifest.
    state: String,
    /// What its signature says: `unchecked` without `--store-key`.
    signature: Option<&'static str>,
}

pub(super) async fn run(args: &StoreArgs) -> Result<(), InspectError> {
    let mut rows = Vec::new();
    for Found { name, lineage, shelf } in mirrors(args).await? {
        let generations = lineage.generations().await?;
        for generation in generations.written.keys().rev() {
            let bad = generations.bad.contains(generation);
            let manifest = match lineage.look(*generation).await {
                Ok(manifest) => Ok(manifest),
                Err(CheckpointError::Damaged { reason, .. }) => Err(reason),
                Err(error) => return Err(error.into()),
            };
            let state = if bad {
                "bad".to_owned()
            } else {
                manifest.as_ref().err().cloned().unwrap_or("good".into())
            };
            let manifest = manifest.ok();
            let signature = manifest.as_ref().map(|(_, authenticity)| authenticity.as_str());
            let of = manifest.as_ref().map(|(manifest, _)| manifest);
            rows.push(Listed {
                mirror: name.clone(),
                kind: Kind::Checkpoint,
                generation: generation.0,
                time: of.map(|m| m.time),
                refs: of.map(|m| m.refs.count),
                packs: of.map(|m| m.packs.len()),
                bytes: of.map(|m| m.bytes()),
                writer: of.map(|m| m.writer.agent.clone()),
                state,
                signature,
            });
        }
        rows.extend(snapshots(&name, &shelf).await?);
    }
    if args.json {
        return print_json(&rows);
    }
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    let cells = rows.iter().map(|row| {
        vec![
            row.mirror.clone(),
            row.kind.name(),
            row.generation.to_string(),
            row.time.map_or("-".to_owned(), |time| format!("{time:.0}")),
            number(row.refs),
            number(row.packs.map(|packs| packs as u64)),
            row.bytes.map_or("-".to_owned(), size),
            row.signature.unwrap_or("-").to_owned(),
            row.state.clone(),
        ]
    });
    print_table(
        &["MIRROR", "KIND", "GENERATION", "TIME", "REFS", "PACKS", "SIZE", "SIGNATURE", "STATE"],
        &cells.collect::<Vec<_>>(),
    )
}

/// A mirror's snapshots, the newest first.
async fn snapshots(name: &str, shelf: &Shelf) -> Result<Vec<Listed>, InspectError> {
    let mut rows = Vec::new();
    let generations = shelf.generations().await?;
    for generation in generations.written.keys().rev() {
        let found = match shelf.look(*generation).await {
            Ok(found) => Ok(found),
            Err(SnapshotError::Damaged { reason, .. }) => Err(reason),
            Err(error) => return Err(error.into()),
        };
        let state = match &found {
            _ if generations.bad.contains(generation) => "bad".to_owned(),
            Ok(_) => "good".to_owned(),
            Err(reason) => reason.clone(),
        };
        let found = found.ok();
        let signature = found.as_ref().map(|(_, authenticity)| authenticity.as_str());
        let of = found.map(|(snapshot, _)| snapshot);
        rows.push(Listed {
            mirror: name.to_owned(),
            kind: Kind::Snapshot,
            generation: generation.0,
            time: of.as_ref().map(|snapshot| snapshot.time),
            refs: None,
            packs: None,
            bytes: of.as_ref().map(|snapshot| snapshot.bytes),
            writer: of.map(|snapshot| snapshot.writer.agent),
            state,
            signature,
        });
    }
    Ok(rows)
}
