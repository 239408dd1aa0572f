//! The same where the operand lies in two cache lines, in two pages, and in two pages whose frames are not neighbours.

use super::lock::{check, cmpxchg, operand, xadd};
use crate::smp::Emit;
use crate::smp::asm::Asm;
use crate::smp::layout::WINDOW;
use iced_x86::code_asm::*;

/// Size, and how many bytes lie before the boundary.
const SPLITS: [(u32, u32); 7] = [(2, 1), (4, 1), (4, 2), (4, 3), (8, 1), (8, 4), (8, 7)];
const PAGES: u32 = SPLITS.len() as u32 + 1;

struct Place {
    at: u32,
    size: u32,
    kind: &'static str,
}

/// An operand for each split: around the ends of `SPLITS.len()` pieces of memory, `step` bytes each.
fn places(from: u32, step: u32, kind: &'static str) -> impl Iterator<Item = Place> {
    SPLITS.iter().enumerate().map(move |(i, (size, before))| {
        let at = from + (i as u32 + 1) * step - before;
        Place { at, size: *size, kind }
    })
}

pub fn test(g: &mut Asm) -> Emit {
    let lines = g.vars(64 * PAGES, 4096);
    let (near, apart) = (g.frames(PAGES), g.frames(PAGES));
    // To frames in reverse.
    let pages: Vec<(u32, u32)> = (0..PAGES).map(|p| (p, apart + (PAGES - 1 - p) * 4096)).collect();
    g.map_window(&pages)?;
    let all: Vec<Place> = places(lines, 64, "two lines")
        .chain(places(near, 4096, "two pages"))
        .chain(places(WINDOW, 4096, "two pages apart"))
        .collect();
    g.rounds(|g| {
        for p in &all {
            g.mov(edi, p.at)?;
            g.lock().add(operand(p.size), 5)?;
            xadd(g, p.size)?;
            cmpxchg(g, p.size)?;
        }
        Ok(())
    })?;
    g.alone(|g| {
        for p in &all {
            g.mov(edi, p.at)?;
            check(g, p.size, &format!("{} bytes in {} at {:x}h", p.size, p.kind, p.at), |g| g.imul_3(r9, rax, 13))?;
        }
        Ok(())
    })
}
