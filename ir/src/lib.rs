//! The intermediate representation between guest front ends and engines. It names no guest register and no host: guest
//! state is slots of a `StateLayout`, slow instructions are helpers of a table; both are supplied by the front end.

pub mod block;
pub mod display;
pub mod eval;
pub mod fp;
pub mod frontend;
pub mod interp;
pub mod layout;
pub mod ops;
pub mod parse;
pub mod pass;
pub mod testing;
pub mod tri;
pub mod types;
pub mod vec;
pub mod verify;
pub mod x87;

pub use block::{Block, Inst, Val};
pub use fp::FpOp;
pub use frontend::{BlockKey, Changing, CodeFetch, Frontend, Path, SIDES, TranslateError};
pub use interp::{Interp, Memory, Outcome};
pub use layout::{HelperDesc, HelperId, SlotDesc, SlotId, StateLayout};
pub use ops::{Effects, Op};
pub use parse::{ParseError, parse};
pub use pass::{Passes, optimize};
pub use tri::TriOp;
pub use types::{Cond, Rmw, Ty};
pub use vec::{VecOp, VecShift};
pub use verify::{VerifyError, verify};
pub use x87::{X87Insn, X87Kind, X87Layout};
