//! `git-tarn`: flags, runtime, signals; then [`tarn_client::clone`].

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use tarn_client::cli::{Cli, CloneArgs, Command};
use tarn_client::clone::{self, CloneError, Report};
use tarn_client::credential::{self, CredentialError};
use tarn_client::exit::Exit;
use tarn_client::screen::Screen;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let screen = Screen::new(matches!(&command, Command::Clone(args) if args.quiet));
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        screen.fail("a TLS provider is installed already");
        return Exit::Failed.into();
    }
    // One thread for the network; unpacking has two of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen.fail(&format!("cannot start: {error}"));
            return Exit::Failed.into();
        }
    };
    let args = match command {
        Command::Clone(args) => args,
        Command::Credential(args) => {
            return told(&screen, runtime.block_on(credential::answer(&args)).map(|()| None));
        }
        Command::Login(args) => return told(&screen, runtime.block_on(credential::login(&args)).map(Some)),
        Command::Logout(args) => return told(&screen, runtime.block_on(credential::logout(&args)).map(Some)),
    };
    match runtime.block_on(until_signal(&args, &screen)) {
        Ok(Some(report)) => finish(&args, &screen, &report),
        Ok(None) => {
            screen.fail("interrupted; nothing was left behind");
            Exit::Interrupted.into()
        }
        Err(error) => {
            screen.fail(&error.to_string());
            error.exit().into()
        }
    }
}

/// Says what was done, or why not.
fn told(screen: &Screen, done: Result<Option<String>, CredentialError>) -> ExitCode {
    match done {
        Ok(done) => {
            done.iter().for_each(|done| screen.note(done));
            Exit::Done.into()
        }
        Err(error) => {
            screen.fail(&error.to_string());
            error.exit().into()
        }
    }
}

/// Clones; none if a signal came first. The clone's future is dropped then, and removes what it made.
async fn until_signal(args: &CloneArgs, screen: &Screen) -> Result<Option<Report>, CloneError> {
    let stop = async {
        let streams = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = streams else {
            // Without handlers a signal ends the process, and the next run removes what it left.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    tokio::select! {
        done = clone::run(args, screen) => done.map(Some),
        () = stop => Ok(None),
    }
}

fn finish(args: &CloneArgs, screen: &Screen, report: &Report) -> ExitCode {
    if args.json {
        let line = serde_json::to_string(report).expect("a report is JSON");
        if writeln!(std::io::stdout().lock(), "{line}").is_err() {
            screen.fail("the clone is there, but nobody reads the result");
            return Exit::Failed.into();
        }
    }
    Exit::Done.into()
}
