//! Tarn on a real cluster, as its users meet it. Modules are what happens to it; names of tests are sentences. One
//! binary, one release of the chart, a namespace for each test. `make e2e` brings the cluster.

mod cluster;
