//! Finds, checks and loads kernels.
