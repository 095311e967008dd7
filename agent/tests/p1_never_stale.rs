//! P1: an answer about refs rests on a look at the upstream that started after the request arrived.

mod linearizable;
mod outage;
mod push;
mod ref_changes;
mod refusal;
mod restart;
mod shared_look;

pub(crate) use refusal::note;
