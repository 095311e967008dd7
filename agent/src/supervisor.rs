//! The agent's own tasks, each by its name. A task that ends though nobody told it to takes the process with it: what it did
//! would never be done again, and nobody would know.

use std::{collections::HashMap, future::Future, panic, time::Duration};

use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

tokio::task_local! {
    /// The name of the running task, for the log of a panic.
    static NAME: &'static str;
}

/// A task that should not have ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the task {name} {how}, which it never should; the process ends, for it would not do its work without"
)]
pub struct Ended {
    /// The task's name.
    pub name: &'static str,
    /// How it ended.
    pub how: &'static str,
}

impl Ended {
    fn of(name: &'static str, joined: Result<(), &JoinError>) -> Self {
        let panicked = joined.is_err_and(JoinError::is_panic);
        Self { name, how: if panicked { "panicked" } else { "ended" } }
    }
}

/// Tasks that are to run for as long as this lives.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    alarm: Alarm,
    alarms: mpsc::Receiver<Ended>,
}

impl Default for Tasks {
    fn default() -> Self {
        // The first one is enough.
        let (sender, alarms) = mpsc::channel(1);
        Self { set: JoinSet::new(), names: HashMap::new(), alarm: Alarm(sender), alarms }
    }
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.set.spawn(NAME.scope(name, failing(name, task)));
        self.names.insert(handle.id(), name);
    }

    /// Starts a task, if there is one.
    pub fn spawn_some<T>(&mut self, name: &'static str, task: Option<T>)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        if let Some(task) = task {
            self.spawn(name, task);
        }
    }

    /// Where those tell of it who own tasks themselves.
    pub fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    /// Waits until a task ends.
    pub async fn ended(&mut self) -> Ended {
        tokio::select! {
            Some(joined) = self.set.join_next_with_id() => {
                let id = joined.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                let name = self.names.get(&id).copied().unwrap_or("?");
                Ended::of(name, joined.as_ref().map(|_| ()))
            }
            Some(ended) = self.alarms.recv() => ended,
        }
    }

    /// Waits until all have ended, because they were told to; says whether they did in time.
    pub async fn finish(mut self, limit: Duration) -> bool {
        timeout(limit, async { while self.set.join_next().await.is_some() {} }).await.is_ok()
    }
}

/// Tells of tasks that should not have ended.
#[derive(Clone, Debug)]
pub struct Alarm(mpsc::Sender<Ended>);

impl Alarm {
    /// Watches a task until its owner stops it.
    pub fn watch(&self, name: &'static str, task: JoinHandle<()>) -> Owned {
        let (alarm, stop) = (self.0.clone(), CancellationToken::new());
        let (mut task, stopped) = (task, stop.clone());
        let watching = tokio::spawn(async move {
            let failing = failing(name, std::future::pending());
            tokio::select! {
                biased;
                () = stopped.cancelled() => {
                    task.abort();
                    let _ = task.await;
                }
                joined = &mut task => drop(alarm.try_send(Ended::of(name, joined.as_ref().map(|_| ())))),
                () = failing => drop(alarm.try_send(Ended { name, how: "ended" })),
            }
        });
        Owned { stop, watching }
    }
}

/// A task that its owner may stop.
#[derive(Debug)]
pub struct Owned {
    stop: CancellationToken,
    watching: JoinHandle<()>,
}

impl Owned {
    /// Ends the task; afterwards it does nothing any more.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.watching.await;
    }
}

/// Has a panic written as one line of the log, with the name of its task.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let task = NAME.try_with(|name| *name).unwrap_or("?");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason");
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(task, place, reason, %backtrace, "a bug: the agent panicked");
    }));
}

/// `task`, but in debug builds the one that the variable `TARN_TASK_FAILPOINT` names ends (`ends:NAME`) or panics
/// (`panics:NAME`) soon, for tests.
async fn failing(name: &'static str, task: impl Future<Output = ()> + Send) {
    #[cfg(debug_assertions)]
    if let Ok(wanted) = std::env::var("TARN_TASK_FAILPOINT")
        && let Some((how, which)) = wanted.split_once(':')
        && which == name
    {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(how != "panics", "as the test wants it");
        return;
    }
    let _ = name;
    task.await;
}
