//! What the environment says of the cluster and of what is tested.

use std::path::{Path, PathBuf};

/// The image's name in the fixtures.
const IMAGE: &str = "tarn.local/tarn:e2e";

/// The project's root directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The chart: `TARN_E2E_CHART`, or the project's own.
pub fn chart() -> PathBuf {
    std::env::var_os("TARN_E2E_CHART").map_or_else(|| root().join("charts/tarn"), PathBuf::from)
}

/// Repository and tag of the image that all pods run: `TARN_E2E_IMAGE`, or `tarn.local/tarn:e2e`.
pub fn image() -> (String, String) {
    let image = std::env::var("TARN_E2E_IMAGE").unwrap_or_else(|_| IMAGE.into());
    // A colon before the last slash belongs to a registry's port.
    let tag = image.rfind(':').filter(|colon| Some(*colon) > image.rfind('/'));
    let (repository, tag) = tag.map_or((image.as_str(), "latest"), |colon| {
        (image.get(..colon).unwrap_or_default(), image.get(colon + 1..).unwrap_or_default())
    });
    (repository.to_owned(), tag.to_owned())
}

/// The client that is in the image, as it was built: beside the directory of the tests themselves.
pub fn client() -> PathBuf {
    let built = std::env::current_exe().unwrap_or_default();
    built.ancestors().nth(2).unwrap_or(Path::new("")).join("git-tarn")
}

/// The scripts of the node, where the tests run on one of `e2e/node`: `TARN_E2E_NODE`.
pub fn node() -> Option<PathBuf> {
    std::env::var_os("TARN_E2E_NODE").map(PathBuf::from)
}

/// Whether namespaces stay when their test is over: `TARN_E2E_KEEP`.
pub fn keep() -> bool {
    std::env::var_os("TARN_E2E_KEEP").is_some_and(|value| !value.is_empty())
}

/// A manifest of `e2e/fixtures`, with the image of this run.
pub fn with_image(manifest: &str) -> String {
    let (repository, tag) = image();
    manifest.replace(IMAGE, &format!("{repository}:{tag}"))
}
