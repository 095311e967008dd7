//! P1: an answer about refs rests on a look at the upstream that started after the request arrived.

mod linearizable;
mod outage;
mod push;
mod ref_changes;
pub(crate) mod refusal;
mod restart;
mod shared_look;
