//! `tarn-agent store rm`.

use tarn_crds::repo::RepoId;

use super::{Found, InspectError, mirrors, print::print_table};
use crate::{
    checkpoint::wipe::wipe,
    config::{RmArgs, StoreArgs},
};

pub(super) async fn run(args: RmArgs) -> Result<(), InspectError> {
    let args = StoreArgs { flags: args.flags, mirror: Some(args.mirror), json: false };
    let mut rows = Vec::new();
    for Found { name, lineage, shelf: _ } in mirrors(&args).await? {
        let Ok(id) = RepoId::from_route(&name) else { continue };
        let removed = wipe(&*lineage.store, &id, || true).await?;
        rows.push(vec![name, removed.unwrap_or(0).to_string()]);
    }
    print_table(&["MIRROR", "OBJECTS REMOVED"], &rows)
}
