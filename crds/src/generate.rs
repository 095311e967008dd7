//! The CRDs as the files that the Helm chart includes.

use crate::schema;
use crate::v1alpha1::{GitCache, GitMirror};

/// File name and text of each CRD; the same input always gives the same text.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_yaml_ng::Error> {
    let text = |crd| serde_yaml_ng::to_string(&crd);
    Ok(vec![
        ("gitmirrors.yaml", text(schema::crd::<GitMirror>())?),
        ("gitcaches.yaml", text(schema::crd::<GitCache>())?),
    ])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_charts_crds_are_generated() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tarn/files/crds");
        for (name, text) in files().unwrap() {
            let found = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            assert!(
                found == text,
                "{name} is out of date: cargo run -p tarn-crds --features crdgen --bin crdgen"
            );
        }
    }
}
