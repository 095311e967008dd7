//! Runs kubectl, helm and the node's scripts.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::process::{Output, command, run};

/// Longer than anything the tests ask a tool to wait for.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs a program, with text on its standard input, however it ends.
pub async fn attempt<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
    stdin: &str,
) -> Result<Output> {
    let mut command = command(program);
    command.args(args);
    run(command, stdin.as_bytes(), TIMEOUT).await
}

/// Runs a program, which must succeed, and gives its output back without the final newline.
pub async fn output<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
    stdin: &str,
) -> Result<String> {
    let program = program.as_ref();
    let args: Vec<S> = args.into_iter().collect();
    let what: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    let what = format!("{} {}", program.to_string_lossy(), what.join(" "));
    let done = attempt(program, &args, stdin).await?;
    ensure!(done.status.success(), "{what}: {}: {} {}", done.status, done.text(), done.stderr.trim_end());
    Ok(done.text())
}

/// Runs kubectl, which must succeed.
pub async fn kubectl(args: &[&str]) -> Result<String> {
    output("kubectl", args, "").await
}
