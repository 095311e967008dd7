//! `tarn-agent`: flags, logs, runtime; then [`tarn_agent::app`].

use std::process::ExitCode;

use clap::Parser;
use tarn_agent::{
    app,
    config::{Cli, Command, unknown_variables},
    telemetry,
};

fn main() -> ExitCode {
    let Cli { command: Command::Serve(serve) } = Cli::parse();
    let unknown = unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()));
    if !unknown.is_empty() {
        return fail(2, &format!("unknown variables, perhaps misspelt: {}", unknown.join(", ")));
    }
    if let Err(error) = telemetry::start(&serve.log, serve.log_format) {
        return fail(2, &format!("--log: {error}"));
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(1, "a TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    match runtime.block_on(app::run(*serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.to_string()),
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
