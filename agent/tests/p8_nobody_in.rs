//! P8: only declared repositories, only for those who may, and no credential where it can be read.

mod access;
mod admin_port;
mod audit;
mod authorities;
mod canary;
mod configuration;
mod credentials;
mod delegation;
mod every_route;
mod git_children;
mod github_app;
mod guessing;
mod hostile;
mod memory;
mod moved_names;
mod only_its_upstreams;
mod paths;
mod provenance;
mod ssh;
mod tls;
mod undeclared;

pub(crate) use self::access::{PUSHES, READS, ask};
pub(crate) use self::admin_port::stranger;
pub(crate) use self::credentials::{CANARY, CANARY_BASE64, expect_no_canary};
pub(crate) use self::tls::{Secured, certificate, trusting};
