//! Tables: scenarios with the same figures.

use serde::Serialize;

/// A figure of a table.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    /// Digits after the point.
    #[serde(skip)]
    pub(crate) digits: usize,
}

/// Scenarios with the same figures. The first figure is the one that sides are compared by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) columns: &'static [Column],
    /// What Tarn's first figure divided by the baseline's says.
    pub(crate) ratio: &'static str,
    /// What Tarn is compared with.
    pub(crate) baseline: &'static str,
}

/// What most tables compare Tarn with.
const GIT: &str = "git http-backend";

impl Table {
    /// One measurement as a line.
    pub(crate) fn describe(&self, sample: &[f64]) -> String {
        let figure =
            |(column, value): (&Column, &f64)| format!("{} {value:.*}", column.heading, column.digits);
        self.columns.iter().zip(sample).map(figure).collect::<Vec<_>>().join(", ")
    }
}

const fn column(heading: &'static str, digits: usize) -> Column {
    Column { heading, digits }
}

/// Clones: see `clone_figures` in scenario.rs for the order.
pub(crate) static CLONES: Table = Table {
    title: "Clones",
    columns: &[
        column("server CPU s per clone", 3),
        column("of it the server process", 2),
        column("wall s", 2),
        column("first pack byte ms, p50", 0),
        column("server peak RSS MiB", 0),
        column("children PSS MiB", 0),
        column("of it anonymous", 0),
        column("children at once, most", 0),
        column("client CPU s per clone", 2),
    ],
    ratio: "CPU, Tarn / git",
    baseline: GIT,
};

/// Lists of refs: see `listing_figures` in scenario.rs for the order.
pub(crate) static LISTINGS: Table = Table {
    title: "Lists of refs",
    columns: &[
        column("requests/s", 0),
        column("p50 ms", 1),
        column("p99 ms", 1),
        column("server CPU ms per request", 2),
        column("server peak RSS MiB", 0),
        column("client CPU ms per request", 2),
    ],
    ratio: "requests/s, Tarn / git",
    baseline: GIT,
};

/// The first clone after a push: see `figures` in stage/after_push.rs for the order.
pub(crate) static AFTER_PUSH: Table = Table {
    title: "After a push",
    columns: &[
        column("server CPU s until the answer is complete", 3),
        column("of it the server process", 2),
        column("wall s", 2),
        column("first pack byte ms", 0),
        column("server CPU s afterwards", 2),
        column("client CPU s", 2),
    ],
    ratio: "CPU, Tarn / git",
    baseline: GIT,
};

/// Lists of a far upstream's refs: see stage/far_look.rs for the order.
pub(crate) static FAR: Table = Table {
    title: "Lists of refs of an upstream 20 ms away",
    columns: &[
        column("compared ms: p50 alone, p99 of 64", 1),
        column("p50 ms", 1),
        column("p99 ms", 1),
        column("requests/s", 0),
        column("looks at once, most", 0),
        column("looks/s", 0),
        column("server CPU ms per request", 2),
        column("client CPU ms per request", 2),
    ],
    ratio: "p99 of 64 to Tarn / p50 alone",
    baseline: "the upstream itself, 1 connection",
};

/// Clones made before: see `hit_figures` in scenario.rs for the order.
pub(crate) static HITS: Table = Table {
    title: "First byte of an answer made before",
    columns: &[
        column("first pack byte ms, p50", 2),
        column("first pack byte ms, p99", 2),
        column("server CPU s per clone", 3),
        column("client CPU s per clone", 2),
    ],
    ratio: "first byte, Tarn / git",
    baseline: GIT,
};

/// See stage/stream.rs for the order.
const STREAM_COLUMNS: &[Column] =
    &[column("MB/s", 0), column("server CPU s per GB", 3), column("client CPU s per GB", 3)];

/// Streams of the same bytes.
pub(crate) static STREAMS: Table = Table {
    title: "One stream of an answer made before",
    columns: STREAM_COLUMNS,
    ratio: "MB/s, Tarn / nginx",
    baseline: "nginx, a file without sendfile",
};

/// The same beside a server that leaves the copying to the kernel.
pub(crate) static SENDFILE: Table = Table {
    title: "One stream beside sendfile",
    columns: STREAM_COLUMNS,
    ratio: "MB/s, Tarn / nginx",
    baseline: "nginx, a file with sendfile",
};

/// Storms of distinct commits: see `figures` in stage/storm.rs for the order.
pub(crate) static STORMS: Table = Table {
    title: "Storms",
    columns: &[
        column("server CPU s per fetch", 3),
        column("wall s", 2),
        column("refused", 0),
        column("first pack byte ms, earliest", 0),
        column("… p50 after the earliest", 0),
        column("… latest", 0),
        column("pack MB per fetch", 1),
        column("disk used beyond MiB", 1),
        column("… of the mirror's packs, %", 1),
        column("server peak RSS MiB", 0),
        column("children PSS MiB", 0),
        column("of it anonymous", 0),
        column("client CPU s per fetch", 2),
    ],
    ratio: "CPU, Tarn / git",
    baseline: GIT,
};

/// The first full clone after a push: see `figures` in stage/full_after_push.rs for the order.
pub(crate) static FULL_AFTER_PUSH: Table = Table {
    title: "Full clones after a push",
    columns: &[
        column("server CPU s per clone", 3),
        column("of it the server process", 2),
        column("wall s", 2),
        column("first pack byte ms", 1),
        column("server CPU s between push and clone", 2),
        column("disk used beyond MiB", 2),
        column("… of 2 × thin pack + 1 MiB, %", 0),
        column("… with what lies ready MiB", 2),
        column("thin pack of the push MiB", 2),
        column("client CPU s", 2),
    ],
    ratio: "CPU, Tarn / git",
    baseline: GIT,
};
