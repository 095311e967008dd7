//! `tarn-operator`: flags, logs, runtime; then [`tarn_operator::app`].

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tarn_operator::{
    app,
    config::{Config, LogFormat},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => return fail(2, &format!("--log: {error}")),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(1, "a TLS provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    match runtime.block_on(app::run(config)) {
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
        eprintln!("tarn-operator: {reason}");
    }
    ExitCode::from(code)
}
