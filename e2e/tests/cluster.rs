//! By what happens. Those of `alone` take something from the whole cluster, and come first: the runner goes by names.

mod alone;
mod callers;
mod network;
mod outages;
mod pods;
mod removal;
mod rights;
mod secrets;
mod serving;
mod volumes;
mod webhooks;
