//! Which mirrors are brought before anyone asks.

use std::num::NonZero;

use clap::Args;
use tarn_crds::v1alpha1::Duration;

use crate::popularity;

/// Which mirrors are brought before anyone asks; those that are not come when they are asked for.
#[derive(Clone, Debug, Args)]
pub struct PrewarmFlags {
    /// How many of the most cloned mirrors are brought before anyone asks for them, besides those of `prewarm: Always`
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_PREWARM_MOST_CLONED",
        hide_env_values = true,
        default_value_t = 20,
        value_parser = clap::value_parser!(u16).range(..=10_000)
    )]
    pub prewarm_most_cloned: u16,

    /// Over which time clones are counted, in whole days of at most a month
    #[arg(
        long,
        value_name = "DURATION",
        env = "TARN_AGENT_PREWARM_WINDOW",
        hide_env_values = true,
        default_value = "336h",
        value_parser = window
    )]
    pub prewarm_window: u32,

    /// How many mirrors are brought at a time; those that are asked for do not queue here
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_PREWARM_CONCURRENCY",
        hide_env_values = true,
        default_value = "2",
        value_parser = concurrency
    )]
    pub prewarm_concurrency: NonZero<usize>,
}

/// Days of at least the duration that the text names.
fn window(text: &str) -> Result<u32, String> {
    let wrong = || "must be a duration of at least 1h, such as 336h".to_owned();
    let window: Duration = text.parse().map_err(|_| wrong())?;
    let hours = window.get().as_secs().div_ceil(3600);
    if hours == 0 {
        return Err(wrong());
    }
    Ok(u32::try_from(hours.div_ceil(24)).unwrap_or(u32::MAX).min(popularity::KEPT))
}

fn concurrency(text: &str) -> Result<NonZero<usize>, String> {
    let number: Option<NonZero<usize>> = text.parse().ok();
    number.filter(|number| number.get() <= 64).ok_or_else(|| "must be a number from 1 to 64".to_owned())
}
