//! The task that owns one mirror. It routes messages and results between machines that each own a part of it, carries
//! out what [`super::life`] decides, and publishes what has changed.
//!
//! | machine | owns |
//! | --- | --- |
//! | [`Looks`] | what the upstream shows, and who waits to see it |
//! | [`Fetches`] | the clone or fetch under way, and who waits for its objects |
//! | [`Publishing`] | restores from the store, and checkpoints |
//! | [`Upkeep`] | the order of the packs, and the seed for shallow clones |
//! | [`Healing`] | what the disk has damaged |
//! | [`Entitled`] | whether the upstream lets it be shown |
//!
//! At most one clone, fetch or restore runs at a time.

mod site;
mod upstream;
mod entitled;
mod fetches;
mod looks;
mod publishing;
mod upkeep;
mod load;
mod removal;
mod healing;

use std::{mem, sync::Arc, time::Duration};

use tarn_crds::v1alpha1::Phase;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    BringError, Message, Services, Settings, Settled, Stored, View,
    demand::Demand,
    fetch::FetchError,
    life::{Action, Event, Life},
};
use crate::{
    backoff::{interval_delay, retry_delay},
    checkpoint::{
        CheckpointError,
        restore::{Outcome, Restored},
    },
    git::{RefSet, remote::Patience},
    never::or_never,
    queue::Priority,
    upstream::LookError,
};
use entitled::Entitled;
use fetches::{Fetched, Fetches, Kind, Order, Wanted, WantedById};
use healing::Healing;
use looks::{Looks, Waiter};
use publishing::{Finished, Publishing};
use site::{Site, log_progress};
use upkeep::Upkeep;
use upstream::Upstream;

/// What handles on the mirror read, and what other tasks of the mirror share.
pub(super) struct Ports {
    pub(super) view: watch::Receiver<View>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) progress: watch::Receiver<Option<String>>,
    /// Held by whoever must not see packs disappear.
    pub(super) packs: Arc<Mutex<()>>,
}

/// See the module.
pub(super) struct Task {
    site: Arc<Site>,
    settings: Arc<Settings>,
    upstream: Result<Upstream, Arc<LookError>>,
    services: Services,
    demand: Demand,
    life: Life,
    /// It is to be on the disk; otherwise nothing is done before somebody asks.
    wanted: bool,
    /// Whether anyone has asked for it since this process started.
    urgency: Priority,
    stored: Option<Arc<Stored>>,
    bytes: u64,
    timer: Option<time::Instant>,
    looks: Looks,
    fetches: Fetches,
    publishing: Publishing,
    upkeep: Upkeep,
    healing: Healing,
    entitled: Entitled,
    view_out: watch::Sender<View>,
    settings_out: watch::Sender<Arc<Settings>>,
}

impl Task {
    pub(super) fn new(services: &Services, settings: Arc<Settings>, demand: Demand) -> (Self, Ports) {
        let site = Arc::new(Site::new(services, settings.url.id().clone()));
        site.allow(settings.max_bytes);
        let entitled = Entitled::new(site.clone(), services, &settings);
        let (view_out, view) = watch::channel(View::empty(entitled.known().clone()));
        let (settings_out, settings_in) = watch::channel(settings.clone());
        let (progress, packs) = (site.progress.subscribe(), site.packs.clone());
        let task = Self {
            upstream: Upstream::connect(&site, &settings),
            settings,
            services: services.clone(),
            demand,
            life: Life::default(),
            wanted: false,
            urgency: Priority::Background,
            stored: None,
            bytes: 0,
            timer: None,
            looks: Looks::new(services.metrics.clone(), services.queue.clone()),
            fetches: Fetches::new(site.clone(), services),
            publishing: Publishing::new(site.clone(), services),
            upkeep: Upkeep::new(site.clone(), services.queue.clone()),
            healing: Healing::new(site.clone()),
            entitled,
            site,
            view_out,
            settings_out,
        };
        (task, Ports { view, settings: settings_in, progress, packs })
    }

    /// Runs until all handles are gone; then whatever is under way is ended.
    pub(super) async fn run(self, inbox: mpsc::Receiver<Message>) {
        let span = tracing::info_span!("mirror", repo = %self.site.id);
        let logged = log_progress(self.site.progress.subscribe()).instrument(span.clone());
        let _logged = AbortOnDropHandle::new(tokio::spawn(logged));
        Box::pin(self.serve(inbox)).instrument(span).await;
    }

    async fn serve(mut self, mut inbox: mpsc::Receiver<Message>) {
        let Some(early) = self.wait_to_load(&mut inbox).await else { return };
        if self.stored.is_some() {
            self.begin();
        }
        early.into_iter().for_each(|message| self.receive(message));
        loop {
            self.start_what_is_due();
            self.publish();
            // Before the look at the others: what changes after it must be noticed.
            let others_changed = self.publishing.others_changed();
            let again = self.start_background_work();
            let timer = self.timer;
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
                result = self.looks.result() => self.looked(result),
                result = self.fetches.result() => self.fetch_ended(result),
                finished = self.publishing.result() => match finished {
                    Finished::Restore(result) => self.restored(result),
                    Finished::Publish(result) => {
                        self.publishing.published(result, self.settings.checkpoint.interval);
                    }
                },
                result = self.upkeep.result() => if self.upkeep.ended(result) {
                    self.measure();
                },
                () = or_never(again.map(time::sleep_until)) => {}
                () = others_changed => {}
                () = or_never(timer.map(time::sleep_until)) => {
                    self.timer = None;
                    // The store may be back before the upstream is.
                    self.publishing.restores.set_due();
                    self.happened(Event::TimerFired);
                }
            }
        }
    }

    fn receive(&mut self, message: Message) {
        if matches!(message, Message::Look(..) | Message::Settle { .. } | Message::ById(..)) {
            self.awaited();
            // A look is answered without the data, and requests for objects are handed on where that can be.
            if self.keeps() || !matches!(message, Message::Look(..)) {
                self.want();
            }
        }
        match message {
            Message::Want(Priority::Background) => self.want(),
            Message::Want(Priority::Awaited) if self.keeps() => {
                self.awaited();
                self.want();
            }
            Message::Want(Priority::Awaited) => {}
            Message::Look(prefixes, reply) => self.looks.ask(prefixes, reply),
            Message::Settle { oids, asked, reply } => self.settle(Wanted { oids, asked, reply }),
            Message::ById(oids, reply) => self.fetch_by_id(WantedById { oids, reply }),
            Message::Evict(reply) => self.evict(reply),
            Message::Damaged(trouble) => self.damaged(trouble),
            Message::Shallow => self.upkeep.shallow_asked(),
            Message::Base => self.upkeep.base_asked(),
            Message::Checkpoint => self.publishing.order(),
            Message::Configure(settings) => self.configure(&settings),
        }
    }

    /// Whether it belongs here, and would stay; otherwise requests go to those that keep it.
    fn keeps(&self) -> bool {
        let owned = self.services.placement.as_ref().is_none_or(|placement| placement.keeps(&self.site.id));
        owned && !(self.stored.is_none() && self.services.room.holds_off(&self.site.id))
    }

    /// Somebody asks for the mirror: if it is to be restored or cloned, then before those that nobody has asked for.
    fn awaited(&mut self) {
        self.urgency = Priority::Awaited;
        self.publishing.restores.lift();
        self.fetches.lift();
    }

    /// From now on the mirror is to be here, and up to date.
    fn want(&mut self) {
        if mem::replace(&mut self.wanted, true) {
            return;
        }
        self.publishing.restores.set_due();
        self.happened(if self.settings.suspend { Event::Suspended } else { Event::Started });
    }

    /// Where it is in its life.
    fn phase(&self) -> Phase {
        match self.life.phase() {
            Phase::Absent if !self.wanted => Phase::OnDemand,
            phase => phase,
        }
    }

    /// Whether it is up to date, as far as it could be looked at, and nothing is wrong with it.
    fn is_sound(&self) -> bool {
        self.life.caught_up && self.looks.trouble().is_none() && self.fetches.trouble().is_none()
    }

    fn settle(&mut self, wanted: Wanted) {
        // The usual case: the look that showed these objects to the client has started their fetch.
        if self.fetches.brings(&wanted) {
            self.fetches.wait(wanted);
        } else if self.settings.suspend {
            wanted.answer(Ok(Settled::Looked));
        } else if self.looks.seen().is_some_and(|(_, began)| *began >= wanted.asked) {
            self.settled(wanted);
        } else {
            self.looks.settle([wanted]);
        }
    }

    /// A look that began after `wanted` was asked for has succeeded.
    fn settled(&mut self, wanted: Wanted) {
        if self.fetches.is_coming() {
            self.fetches.wait(wanted);
        } else {
            wanted.answer(Ok(Settled::Looked));
        }
    }

    fn fetch_by_id(&mut self, wanted: WantedById) {
        // What the upstream has not shown under the present declaration, it is not asked for.
        if self.stored.is_none() || self.settings.suspend || self.looks.seen().is_none() {
            let all = wanted.oids.iter().copied().collect();
            wanted.answer(Ok(all));
        } else {
            self.fetches.ask(wanted);
        }
    }

    fn configure(&mut self, settings: &Arc<Settings>) {
        if **settings == *self.settings {
            return;
        }
        let former = mem::replace(&mut self.settings, settings.clone());
        let was_suspended = former.suspend;
        if self.site.allow(settings.max_bytes) {
            // What failed for the former limit is tried at once.
            (self.life.retry_scheduled, self.life.fetch_failed) = (false, false);
        }
        self.entitled.configure(&former, settings);
        self.upstream = Upstream::connect(&self.site, settings);
        // What the old declaration let the agent see says nothing about the new one.
        self.looks.forget();
        self.settings_out.send_replace(settings.clone());
        tracing::info!(url = %settings.url, suspend = settings.suspend, "mirror reconfigured");
        if !self.wanted {
            // Nothing is under way that the change concerns.
        } else if settings.suspend {
            self.happened(Event::Suspended);
        } else {
            if was_suspended {
                tracing::info!("mirror resumed");
            }
            self.happened(Event::Started);
        }
    }

    fn happened(&mut self, event: Event) {
        let before = self.phase();
        let (life, action) = self.life.on(event);
        self.life = life;
        let phase = self.phase();
        if phase != before {
            tracing::info!(from = ?before, to = ?phase, "phase");
        }
        match action {
            Some(Action::Look) => self.looks.set_due(),
            Some(Action::Fetch) => self.fetches.set_due(),
            Some(Action::WaitInterval) => self.wait(interval_delay(self.settings.interval, rand::random())),
            Some(Action::WaitRetry) => self.wait(retry_delay(life.failures, rand::random())),
            None => {}
        }
    }

    fn wait(&mut self, delay: Duration) {
        self.timer = Some(time::Instant::now() + delay);
    }

    fn start_what_is_due(&mut self) {
        let stored = self.stored.as_ref().map(|stored| &*stored.refs);
        self.looks.start(&self.upstream, &self.settings, stored);
        if self.fetches.is_running() || self.publishing.restores.is_running() {
            return;
        }
        if !self.upkeep.is_running() {
            self.site.tidy();
        }
        let restore = self.publishing.restores.take_due() && self.stored.is_none();
        if restore && self.publishing.start_restore(self.urgency) {
            self.happened(Event::RestoreStarted);
        } else {
            match self.fetches.next() {
                Some(Kind::Refs) => self.start_fetch(),
                Some(Kind::ById) => self.fetches.start_by_id(&self.upstream, self.settings.timeout),
                None => {}
            }
        }
    }

    fn start_fetch(&mut self) {
        let (Ok(upstream), Some(seen)) = (&self.upstream, self.looks.seen()) else {
            // Reconfigured since the look: look again, as the new declaration says.
            self.life.fetching = false;
            return self.looks.set_due();
        };
        self.fetches.start(Order {
            upstream,
            target: seen.clone(),
            stored: self.stored.as_ref().map(|stored| stored.refs.clone()),
            by_name: self.life.races > 0,
            patience: if self.life.caught_up { Patience::UPDATE } else { Patience::FIRST },
            timeout: self.settings.timeout,
            urgency: self.urgency,
            awaited: self.looks.is_awaited(),
            provenance: self.entitled.declared(&self.settings),
        });
    }

    /// Starts upkeep and publishing where they are due; says when to ask again.
    fn start_background_work(&mut self) -> Option<time::Instant> {
        let held = self.looks.held_until();
        let held = [held, self.healing.changes_at()].into_iter().flatten().min();
        let Some(stored) = self.stored.clone() else { return held.map(Into::into) };
        let upkeep = self.upkeep.start(&stored.refs, self.bytes);
        let sound = self.is_sound() && !self.settings.suspend;
        let (coming, settings) = (self.fetches.is_running(), self.settings.checkpoint);
        let provenance = self.entitled.known().provenance();
        let publish = self.publishing.start(&stored, provenance, sound, coming, settings);
        [held, upkeep, publish].into_iter().flatten().min().map(Into::into)
    }

    fn looked(&mut self, result: Result<Arc<RefSet>, LookError>) {
        let Some(ended) = self.looks.ended(result, self.stored.as_deref(), self.wanted) else { return };
        if ended.current {
            self.entitled.heard(&ended.answer, self.settings.url.scheme());
        }
        if let Some(event) = ended.event {
            if event == Event::LookFoundMoves {
                self.fetches.moved();
            }
            self.happened(event);
        }
        // A fetch this look asks for starts now, so that those who wait for its objects can be told of it.
        self.start_what_is_due();
        self.publish();
        for waiter in ended.waiters {
            match waiter {
                Waiter::Look(_, reply) => drop(reply.send(ended.answer.clone())),
                Waiter::Settle(wanted) => match &ended.answer {
                    Ok(_) => self.settled(wanted),
                    // What was seen before is on its way all the same.
                    Err(_) if self.fetches.is_coming() => self.fetches.wait(wanted),
                    Err(error) => wanted.answer(Err(BringError::Look(error.clone()))),
                },
            }
        }
    }

    fn fetch_ended(&mut self, finished: fetches::Finished) {
        match self.fetches.ended(finished) {
            Some(fetches::Ended::Refs { fetch, result: Ok(bytes) }) => self.fetched(&fetch, bytes),
            Some(fetches::Ended::Refs { result: Err(error), .. }) => self.fetch_failed(error),
            Some(fetches::Ended::ById { bytes }) => {
                self.bytes = bytes;
                self.upkeep.packed();
            }
            None => {}
        }
    }

    fn fetched(&mut self, fetch: &Fetched, bytes: u64) {
        let target = fetch.target.clone();
        self.bytes = bytes;
        self.upkeep.fetched(&target);
        if self.stored.is_none() {
            self.demand.touch();
        }
        let behind = self.looks.seen().is_none_or(|(seen, _)| *seen != target);
        let stored = Arc::new(Stored::new(target));
        tracing::info!(refs = stored.refs.refs().len(), bytes, behind, "fetched");
        self.stored = Some(stored);
        self.entitled.change(|known| known.place(fetch.provenance.clone()));
        self.healing.healed();
        self.happened(if behind { Event::FetchDoneBehind } else { Event::FetchDone });
        self.publish();
        self.fetches.answer(fetch, behind);
    }

    fn fetch_failed(&mut self, error: FetchError) {
        let raced = matches!(error, FetchError::Raced);
        self.happened(if raced { Event::FetchRaced } else { Event::FetchFailed });
        if let Some(delay) = error.retry_after(self.life.failures) {
            self.wait(delay);
        }
        if raced && self.looks.is_due() {
            tracing::debug!("the upstream moved during the fetch; looking again");
            self.looks.settle(self.fetches.take_waiting());
        } else {
            self.fetches.failed(error, self.life.failures);
        }
    }

    fn restored(&mut self, result: Result<Outcome, CheckpointError>) {
        let Some((restored, began)) = self.publishing.restored(result, self.life.failures) else {
            return self.happened(Event::RestoreFailed);
        };
        let Restored { refs, checkpoint: _, provenance } = restored;
        self.upkeep.restored(&refs, began);
        self.stored = Some(Arc::new(Stored::new(refs)));
        self.entitled.change(|known| known.place(provenance));
        self.healing.healed();
        self.demand.touch();
        self.measure();
        self.happened(Event::Restored);
    }

    /// Tells those who follow the mirror what has changed, if anything has.
    fn publish(&self) {
        let view = View {
            phase: self.phase(),
            stored: self.stored.clone(),
            seen: self.looks.seen().cloned(),
            look_trouble: self.looks.trouble().cloned(),
            fetch_trouble: self.fetches.trouble().cloned(),
            last_look: self.looks.last(),
            last_fetch: self.fetches.last(),
            bytes: self.bytes,
            checkpoint: self.publishing.newest().cloned(),
            store_trouble: self.publishing.trouble().cloned(),
            restore_trouble: self.publishing.restores.trouble().cloned(),
            damage: self.healing.trouble(),
            replaced: self.healing.replaced(),
            seeds: self.upkeep.seeds().to_vec(),
            entitlement: self.entitled.known().clone(),
            upstream: self.upstream.as_ref().ok().map(|upstream| upstream.looker.clone()),
        };
        self.view_out.send_if_modified(|shown| {
            let changed = !view.says(shown);
            if changed {
                *shown = view;
            }
            changed
        });
    }
}
