//! Helpers of x87 instructions.

rows! { topic x87; }
