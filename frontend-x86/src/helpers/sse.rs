//! Helpers of sse instructions.

rows! { topic sse; }
