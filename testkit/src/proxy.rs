//! Trouble on the way: proxies on loopback that count what passes and break it on purpose.
//!
//! [`FaultProxy`] knows bytes and connections only and stands in front of anything. [`HttpFaultProxy`] knows
//! requests and answers, for faults of one request among many.

mod http;
mod tcp;

pub use self::http::{HttpFault, HttpFaultProxy, Seen, Select, When};
pub use self::tcp::{FaultProxy, Traffic, Trouble};
