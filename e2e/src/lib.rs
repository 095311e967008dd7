//! What the tests on a real cluster stand on: a release of the chart, namespaces with all that Tarn needs around it,
//! clients that clone without end, and everything there is to know when a test fails.
//!
//! Objects are made and looked at as users do it, by kubectl and helm; the kube client reads what is judged in types.

pub mod settings;

pub mod tool;

pub mod node;
pub mod release;

pub mod scene;

pub mod cloner;
pub mod dump;
pub mod play;
