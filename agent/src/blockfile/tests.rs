//! Downloads from a store that fails, cuts, lies and hangs.
