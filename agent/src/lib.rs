//! Tarn agent.
