//! Tests of the user-mode network.
