//! Writes the benchmarks' repository, or one like it, and says what it made.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use tarn_testkit::generate::{Profile, generate};

/// Writes a bare git repository made from a seed.
#[derive(Debug, Parser)]
struct Flags {
    /// Where to write it; must not exist.
    dir: PathBuf,
    /// What the other flags start from: full, small or huge.
    #[arg(long, default_value = "full")]
    profile: String,
    /// Objects to reach.
    #[arg(long)]
    objects: Option<u64>,
    /// Branches and tags together.
    #[arg(long)]
    refs: Option<u32>,
    /// Decides everything else.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let mut profile = Profile::named(&flags.profile).context("--profile is full, small or huge")?;
    profile.objects = flags.objects.unwrap_or(profile.objects);
    profile.refs = flags.refs.unwrap_or(profile.refs);
    profile.seed = flags.seed.unwrap_or(profile.seed);
    let start = Instant::now();
    let made = generate(&flags.dir, &profile)?;
    writeln!(std::io::stdout(), "{made:?} in {:.1} s", start.elapsed().as_secs_f64())?;
    Ok(())
}
