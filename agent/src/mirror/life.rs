//! A mirror's life as a pure function: state and event in, state and actions out.
//!
//! No state is terminal: whatever fails schedules a retry (P4), and what is on the disk is kept and
//! served until something newer is complete.

use tarn_crds::v1alpha1::Phase;

/// After so many fetches in a row whose objects were gone upstream when asked for, it counts as a failure.
const MAX_RACES: u32 = 3;

/// Where a mirror is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// A whole mirror is on the disk.
    pub on_disk: bool,
    /// It has been brought up to date since this process started.
    pub caught_up: bool,
    /// A clone or fetch runs.
    pub fetching: bool,
    /// Failures since the last success.
    pub failures: u32,
    /// A retry is scheduled, and has not come due.
    pub retry_scheduled: bool,
    /// That retry is of a clone or fetch, not of a look alone.
    pub fetch_failed: bool,
    /// Fetches in a row that found their objects gone upstream.
    pub races: u32,
    /// The user said not to fetch.
    pub suspended: bool,
    /// A checkpoint is being restored.
    pub restoring: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The task begins, or the user resumes the mirror.
    Started,
    /// The user suspends the mirror.
    Suspended,
    /// The interval, or the wait before a retry, is over.
    TimerFired,
    /// The upstream answered; its refs are those on the disk.
    LookFoundNothing,
    /// The upstream answered; its refs are others than those on the disk.
    LookFoundMoves,
    /// The upstream did not answer.
    LookFailed,
    /// The refs last looked at are on the disk.
    FetchDone,
    /// What was being fetched is on the disk, and a later look has found newer refs.
    FetchDoneBehind,
    /// An object was gone upstream when asked for: the upstream moved on since the look.
    FetchRaced,
    /// The fetch failed.
    FetchFailed,
    /// The disk has damaged the mirror again and again: another one is made later.
    HeldBack,
    /// A restore from the store begins.
    RestoreStarted,
    /// A checkpoint is on the disk.
    Restored,
    /// There is none, or it cannot be had now.
    RestoreFailed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the upstream.
    Look,
    /// Fetch what the last look found.
    Fetch,
    /// Wait for the mirror's interval.
    WaitInterval,
    /// Wait as [`crate::backoff::retry_delay`] says.
    WaitRetry,
}

impl Life {
    /// What follows from `event`.
    pub fn on(mut self, event: Event) -> (Self, Option<Action>) {
        let action = match event {
            Event::Started => {
                self.suspended = false;
                Some(Action::Look)
            }
            Event::Suspended => {
                self.suspended = true;
                None
            }
            Event::TimerFired => {
                (self.retry_scheduled, self.fetch_failed) = (false, false);
                (!self.suspended).then_some(Action::Look)
            }
            Event::LookFoundNothing => {
                self.caught_up = true;
                (!self.fetching).then(|| self.succeed())
            }
            // A running fetch is followed by another one if it turns out to be behind; a failed one waits
            // for its retry, lest every request start it again. Where looks have failed, this one has not.
            Event::LookFoundMoves if self.fetching || self.fetch_failed => None,
            Event::LookFoundMoves => Some(self.fetch()),
            Event::LookFailed => (!self.fetching).then(|| self.fail()).flatten(),
            Event::FetchDone => {
                (self.fetching, self.on_disk, self.caught_up) = (false, true, true);
                Some(self.succeed())
            }
            Event::FetchDoneBehind => {
                (self.on_disk, self.races) = (true, 0);
                Some(self.fetch())
            }
            Event::FetchRaced if self.races < MAX_RACES => {
                (self.fetching, self.races) = (false, self.races + 1);
                Some(Action::Look)
            }
            Event::FetchRaced | Event::FetchFailed => {
                (self.fetching, self.races, self.fetch_failed) = (false, 0, true);
                self.fail()
            }
            // The task sets the timer, and nothing is fetched before it fires.
            Event::HeldBack => {
                (self.failures, self.retry_scheduled, self.fetch_failed) = (1, true, true);
                None
            }
            Event::RestoreStarted => {
                self.restoring = true;
                None
            }
            // What was published may be old: it is served, and not called fresh before a look.
            Event::Restored => {
                (self.restoring, self.on_disk, self.caught_up) = (false, true, false);
                (!self.fetching && !self.suspended).then_some(Action::Look)
            }
            // The look that runs beside the restore leads on to a clone, or to a retry.
            Event::RestoreFailed => {
                self.restoring = false;
                None
            }
        };
        (self, action)
    }

    fn fetch(&mut self) -> Action {
        self.fetching = true;
        Action::Fetch
    }

    fn succeed(&mut self) -> Action {
        (self.failures, self.races, self.retry_scheduled, self.fetch_failed) = (0, 0, false, false);
        Action::WaitInterval
    }

    /// Counts a failure and schedules a retry; failures while one is scheduled are the same trouble.
    fn fail(&mut self) -> Option<Action> {
        if self.retry_scheduled {
            return None;
        }
        self.failures += 1;
        self.retry_scheduled = true;
        Some(Action::WaitRetry)
    }

    /// The phase shown in status.
    pub fn phase(&self) -> Phase {
        match (self.on_disk, self.fetching) {
            (false, _) if self.restoring => Phase::Restoring,
            (false, true) => Phase::Cloning,
            (false, false) if self.failures > 0 => Phase::Backoff,
            (false, false) => Phase::Absent,
            (true, _) if !self.caught_up => Phase::CatchingUp,
            (true, true) => Phase::Fetching,
            (true, false) => Phase::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(state: Life, events: &[Event]) -> (Life, Vec<Action>) {
        let mut actions = Vec::new();
        let state = events.iter().fold(state, |state, event| {
            let (state, action) = state.on(*event);
            actions.extend(action);
            state
        });
        (state, actions)
    }

    #[test]
    fn a_new_mirror_is_cloned_and_becomes_ready() {
        let (state, actions) = run(Life::default(), &[Event::Started, Event::LookFoundMoves]);
        assert_eq!((state.phase(), actions), (Phase::Cloning, vec![Action::Look, Action::Fetch]));
        let (state, actions) = run(state, &[Event::FetchDone]);
        assert_eq!((state.phase(), actions), (Phase::Ready, vec![Action::WaitInterval]));
    }

    #[test]
    fn data_on_disk_is_caught_up_before_it_is_ready() {
        let found = Life { on_disk: true, ..Life::default() };
        assert_eq!(found.phase(), Phase::CatchingUp);
        assert_eq!(run(found, &[Event::Started, Event::LookFailed]).0.phase(), Phase::CatchingUp);
        assert_eq!(run(found, &[Event::Started, Event::LookFoundNothing]).0.phase(), Phase::Ready);
    }

    #[test]
    fn after_an_outage_the_first_look_that_finds_moves_has_them_fetched() {
        let ready = Life { on_disk: true, caught_up: true, ..Life::default() };
        let outage = [Event::TimerFired, Event::LookFailed, Event::LookFailed];
        let (state, _) = run(ready, &outage);
        let (state, actions) = run(state, &[Event::LookFoundMoves]);
        assert_eq!(actions, [Action::Fetch]);
        // Should that fail, requests do not start it again before the retry.
        let (state, _) = run(state, &[Event::FetchFailed]);
        assert_eq!(run(state, &[Event::LookFoundMoves, Event::LookFoundMoves]).1, []);
        assert_eq!(run(state, &[Event::TimerFired, Event::LookFoundMoves]).1, [Action::Look, Action::Fetch]);
    }

    #[test]
    fn what_is_restored_is_caught_up_before_it_is_ready() {
        let begun = [Event::Started, Event::RestoreStarted];
        assert_eq!(run(Life::default(), &begun).0.phase(), Phase::Restoring);
        let (state, actions) = run(Life::default(), &[begun.as_slice(), &[Event::Restored]].concat());
        assert_eq!((state.phase(), actions), (Phase::CatchingUp, vec![Action::Look, Action::Look]));
        assert_eq!(run(state, &[Event::LookFoundNothing]).0.phase(), Phase::Ready);
        let failed = [begun.as_slice(), &[Event::LookFoundMoves, Event::RestoreFailed]].concat();
        assert_eq!(run(Life::default(), &failed).0.phase(), Phase::Cloning);
    }

    #[test]
    fn a_failed_clone_backs_off_and_is_retried() {
        let (state, actions) = run(Life::default(), &[Event::LookFoundMoves, Event::FetchFailed]);
        assert_eq!((state.phase(), actions), (Phase::Backoff, vec![Action::Fetch, Action::WaitRetry]));
        let (state, actions) = run(state, &[Event::LookFoundMoves, Event::TimerFired, Event::LookFoundMoves]);
        assert_eq!((state.phase(), actions), (Phase::Cloning, vec![Action::Look, Action::Fetch]));
    }

    #[test]
    fn a_failed_fetch_keeps_the_mirror() {
        let ready = Life { on_disk: true, caught_up: true, ..Life::default() };
        let (state, actions) = run(ready, &[Event::LookFoundMoves, Event::FetchFailed]);
        assert_eq!((state.phase(), actions), (Phase::Ready, vec![Action::Fetch, Action::WaitRetry]));
    }

    #[test]
    fn an_upstream_that_moves_on_is_looked_at_again_at_once() {
        let raced = [Event::LookFoundMoves, Event::FetchRaced];
        let (state, actions) = run(Life::default(), &raced);
        assert_eq!(actions, [Action::Fetch, Action::Look]);
        let (_, actions) = run(state, &[raced, raced, raced].concat());
        assert_eq!(actions.last(), Some(&Action::WaitRetry));
    }

    #[test]
    fn requests_during_an_outage_do_not_lengthen_the_backoff() {
        let ready = Life { on_disk: true, caught_up: true, ..Life::default() };
        let (state, _) = run(ready, &[Event::LookFailed; 50]);
        assert_eq!(state.failures, 1);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        use Event::*;
        prop::sample::select(vec![
            Started,
            Suspended,
            TimerFired,
            LookFoundNothing,
            LookFoundMoves,
            LookFailed,
            FetchDone,
            FetchDoneBehind,
            FetchRaced,
            FetchFailed,
            HeldBack,
            RestoreStarted,
            Restored,
            RestoreFailed,
        ])
    }

    proptest! {
        /// Whatever happens, a mirror that is not suspended has something under way or scheduled.
        #[test]
        fn nothing_is_terminal(events in prop::collection::vec(any_event(), 0..60)) {
            let (mut state, mut scheduled, mut looking) = (Life::default(), false, false);
            for event in [Event::Started].into_iter().chain(events) {
                // Events that cannot happen now do not.
                let possible = match event {
                    Event::TimerFired => std::mem::take(&mut scheduled),
                    Event::LookFoundNothing if !state.on_disk => false,
                    Event::LookFoundNothing | Event::LookFoundMoves | Event::LookFailed => std::mem::take(&mut looking),
                    Event::FetchDone | Event::FetchDoneBehind | Event::FetchRaced | Event::FetchFailed => state.fetching,
                    Event::RestoreStarted => !state.on_disk && !state.restoring,
                    Event::Restored | Event::RestoreFailed => state.restoring,
                    Event::HeldBack => !state.fetching && !state.restoring,
                    Event::Started | Event::Suspended => true,
                };
                if !possible {
                    continue;
                }
                let (next, action) = state.on(event);
                scheduled |= event == Event::HeldBack;
                match action {
                    Some(Action::Look) => looking = true,
                    Some(Action::WaitInterval | Action::WaitRetry) => scheduled = true,
                    Some(Action::Fetch) => prop_assert!(!state.fetching || event == Event::FetchDoneBehind),
                    None => {}
                }
                state = next;
                prop_assert!(state.suspended || looking || scheduled || state.fetching, "stuck after {event:?}: {state:?}");
            }
        }
    }
}
