//! `tarn-agent`: flags, logs, runtime; then [`tarn_agent::app`].

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tarn_agent::{
    app,
    config::{Cli, Command, unknown_variables},
    inspect, secrecy, supervisor,
    telemetry::{self, LogFormat},
};

/// How long threads that block may go on once the agent is done.
const LEFT: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let unknown = unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()));
    if !unknown.is_empty() {
        return fail(2, &format!("unknown variables, perhaps misspelt: {}", unknown.join(", ")));
    }
    // What a person at a terminal asked for is the answer; warnings go to the standard error beside it.
    let (filter, format) = match &command {
        Command::Serve(serve) => (serve.log.as_str(), serve.log_format),
        Command::Store(_) => ("warn", LogFormat::Text),
    };
    if let Err(error) = telemetry::start(filter, format) {
        return fail(2, &format!("--log: {error}"));
    }
    supervisor::log_panics();
    let debuggable = matches!(&command, Command::Serve(serve) if serve.debuggable);
    if !debuggable && let Err(error) = secrecy::close_memory() {
        tracing::warn!(%error, "other processes of this user may read the agent's memory");
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(1, "a TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    let done = match command {
        Command::Serve(serve) => runtime.block_on(app::run(*serve)).map_err(|error| error.to_string()),
        Command::Store(command) => runtime.block_on(inspect::run(command)).map_err(|error| error.to_string()),
    };
    // What still blocks a thread then is as if the process had been killed: nothing on the disk minds.
    runtime.shutdown_timeout(LEFT);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn fail(code: u8, reason: &str) -> ExitCode {
    #[expect(
        clippy::print_stderr,
        reason = "the one line that a failed start leaves, whatever the log filter says"
    )]
    {
        eprintln!("tarn-agent: {reason}");
    }
    ExitCode::from(code)
}
