//! What a report says about the machine.

use std::fs;

use serde::Serialize;
use tarn_testkit::process;

/// The machine a run was made on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) git: String,
    /// Processes that wanted a core in the last minute: what else the machine was doing.
    pub(crate) load: String,
    /// How CPU was counted; known once a server runs.
    pub(crate) accounting: &'static str,
}

impl Machine {
    /// Looks around; before the work, which raises the load itself.
    pub(crate) fn look() -> Self {
        let info = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).map(ToOwned::to_owned);
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory = info("/proc/meminfo", "MemTotal").replace(" kB", "");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let git = process::command("git").arg("--version").output();
        let git = git.map(|git| String::from_utf8_lossy(&git.stdout).trim().replace("git version ", ""));
        Self {
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            processor: info("/proc/cpuinfo", "model name"),
            memory_mib: memory.parse().unwrap_or(0_u64) / 1024,
            kernel: kernel.trim().to_owned(),
            git: git.unwrap_or_default(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            accounting: "",
        }
    }
}
