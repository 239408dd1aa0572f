//! Tier 0: the interpreter. A block's IR is turned, without passes, into 16-byte ops (`form`) whose operands are byte
//! offsets from the seam pointer, each with its handler (`ops`); a one-line loop runs them.

pub mod counted;
pub mod form;
pub mod observed;
pub mod ops;
pub mod vector;
