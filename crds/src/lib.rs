//! The `tarn.dev` API.
