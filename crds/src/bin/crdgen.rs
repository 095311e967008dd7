//! Writes the CRDs into the Helm chart, or into the directory it is given.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/tarn/files/crds");
    let dir = PathBuf::from(env::args_os().nth(1).unwrap_or_else(|| chart.into()));
    fs::create_dir_all(&dir)?;
    for (name, text) in tarn_crds::generate::files().map_err(io::Error::other)? {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
