//! Open files. The process's limit is raised as far as the system allows, and shared out before anything is opened, so that
//! clients cannot take the descriptors that children, the store and upstreams need.

use std::{io, num::NonZeroUsize, thread::available_parallelism};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but clients: upstream and store connections, mirrors, logs, locks, watches.
const RESERVE: usize = 512;

/// Descriptors for the children of one processor: pipes and the file that each writes to.
const CHILDREN_PER_PROCESSOR: usize = 16;

/// Connections to the admin port, if there are enough descriptors.
const ADMIN: usize = 256;

/// The limit where the system has none.
const UNLIMITED: usize = 1 << 30;

/// The limit of open files, before and after [`raise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The soft limit that the process was started with.
    pub from: usize,
    /// The soft limit now.
    pub to: usize,
}

/// Raises the soft limit of open files to the hard one.
///
/// # Errors
/// The system refuses.
pub fn raise() -> io::Result<Raised> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(Raised { from: number(current), to: number(maximum) })
}

/// The soft limit of open files.
pub fn limit() -> usize {
    number(getrlimit(Resource::Nofile).current)
}

fn number(limit: Option<u64>) -> usize {
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(UNLIMITED)
}

/// What clients may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Connections to the git port.
    pub connections: usize,
    /// Requests under way: each may hold one open file, that of its answer.
    pub requests: usize,
    /// Connections to the admin port.
    pub admin: usize,
}

impl Shares {
    /// Shares out `limit`: no more than the wanted numbers, and less where they would not leave enough for the rest.
    pub fn of(limit: usize, connections: usize, requests: usize) -> Self {
        let processors = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::with(limit, RESERVE + CHILDREN_PER_PROCESSOR * processors, connections, requests)
    }

    fn with(limit: usize, reserve: usize, connections: usize, requests: usize) -> Self {
        let admin = ADMIN.min(limit / 8).max(1);
        let clients = limit.saturating_sub(reserve.min(limit / 2) + admin);
        // Two thirds for connections: of three connections, two have a request under way at most.
        let connections = connections.min(clients.saturating_sub(requests).max(clients * 2 / 3)).max(1);
        let requests = requests.min(clients.saturating_sub(connections)).max(1);
        Self { connections, requests, admin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_may_only_where_enough_is_left() {
        let shares = |limit| Shares::with(limit, 544, 4096, 2048);
        assert_eq!(shares(1 << 20), Shares { connections: 4096, requests: 2048, admin: 256 });
        assert_eq!(shares(6944), Shares { connections: 4096, requests: 2048, admin: 256 });
        assert_eq!(shares(1024), Shares { connections: 256, requests: 128, admin: 128 });
        assert_eq!(shares(256), Shares { connections: 64, requests: 32, admin: 32 });
        for limit in 0..8000 {
            let Shares { connections, requests, admin } = shares(limit);
            assert!(connections > 0 && requests > 0 && admin > 0);
            assert!(limit < 16 || connections + requests + admin + 544.min(limit / 2) <= limit, "{limit}");
        }
    }
}
