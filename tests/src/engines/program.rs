//! Random programs: items of machine code with fix-ups, so that an item can be dropped and the rest laid out again.

use super::instructions::{Gen, pointer};
use super::machine::{Image, World, at};
use vm_core::testing::Rng;

/// Four bytes at `at` in an item that depend on where another item lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fix {
    /// Distance from the end of the four bytes.
    Relative { at: usize, item: usize },
    /// Address of byte `plus` of the item, in `window`.
    Absolute { at: usize, item: usize, plus: u32, window: u32 },
}

#[derive(Clone, Debug, Default)]
pub(super) struct Item {
    pub bytes: Vec<u8>,
    pub fix: Option<Fix>,
    pub dropped: bool,
}

/// One program and the registers and memory that it starts with.
#[derive(Clone)]
pub struct Program {
    pub world: World,
    items: Vec<Item>,
    /// Offset of the first instruction from `at::CODE`.
    start: u64,
    gpr: [u64; 16],
    xmm: [u128; 16],
    flags: u64,
    data: u64,
}

const HLT: u8 = 0xf4;

impl Program {
    pub fn random(seed: u64) -> Program {
        let mut r = Rng(seed);
        let world = if r.one_in(5) { World::Flat } else { World::Long };
        let start = if r.one_in(3) { 4096 - r.below(120) } else { r.below(0x400) };
        let mut p = Program { world, items: Vec::new(), start, gpr: [0; 16], xmm: [0; 16], flags: 0, data: r.next_u64() };
        p.registers(&mut r);
        let n = 5 + r.below(36) as usize;
        let mut g = Gen { long: world == World::Long, r, items: n };
        for i in 0..n {
            let item = g.item(i);
            p.items.push(item);
        }
        p
    }

    fn registers(&mut self, r: &mut Rng) {
        for v in &mut self.gpr {
            *v = match r.below(4) {
                0 => r.below(64),
                1 => r.next_u64() as u32 as i32 as i64 as u64,
                2 => r.pick(&[0, 1, !0, 1 << 63, 0x7fff_ffff, 0x8000_0000, 0x7f, 0x80]),
                _ => r.next_u64(),
            };
        }
        for i in [3, 5, 6, 7, 8, 9] {
            self.gpr[i] = pointer(r);
        }
        self.gpr[8] &= !15;
        self.gpr[4] = at::STACK_TOP - 8 * r.below(16);
        self.gpr[14] = r.below(32);
        let counter = 1 + r.below(14);
        self.gpr[15] = counter;
        if self.world == World::Flat {
            self.gpr[5] = counter;
            self.gpr.iter_mut().for_each(|v| *v &= 0xffff_ffff);
            self.gpr[8..].fill(0);
        }
        for v in &mut self.xmm {
            *v = match r.below(3) {
                0 => u128::from((r.below(2000) as f64 / 8.0 - 100.0).to_bits()) | u128::from(r.next_u64()) << 64,
                1 => u128::from(r.pick(&[0, !0, f64::NAN.to_bits(), f64::INFINITY.to_bits(), 1, 0x7f80_0000_8000_0000])),
                _ => u128::from(r.next_u64()) | u128::from(r.next_u64()) << 64,
            };
        }
        if self.world == World::Flat {
            self.xmm[8..].fill(0);
        }
        self.flags = r.next_u64() & 0x8d5 | if r.one_in(10) { 0x400 } else { 0 };
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Without item `i`; `None` if it is gone already.
    pub fn without(&self, i: usize) -> Option<Program> {
        if self.items[i].dropped {
            return None;
        }
        let mut p = self.clone();
        p.items[i].dropped = true;
        Some(p)
    }

    /// Machine code, with its linear address.
    pub fn code(&self) -> (u64, Vec<u8>) {
        let base = at::CODE + self.start;
        let mut places = Vec::new();
        let mut pos = 0;
        for i in &self.items {
            places.push(pos);
            pos += if i.dropped { 0 } else { i.bytes.len() };
        }
        places.push(pos);
        let mut code = Vec::new();
        for i in self.items.iter().filter(|i| !i.dropped) {
            let mut bytes = i.bytes.clone();
            let here = code.len();
            let put = |bytes: &mut [u8], at: usize, v: u32| bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
            match i.fix {
                Some(Fix::Relative { at, item }) => {
                    put(&mut bytes, at, (places[item] as u32).wrapping_sub((here + at + 4) as u32))
                }
                Some(Fix::Absolute { at, item, plus, window }) => {
                    let a = window.wrapping_add(self.start as u32).wrapping_add(places[item] as u32).wrapping_add(plus);
                    put(&mut bytes, at, a);
                }
                None => {}
            }
            code.extend(bytes);
        }
        code.extend([HLT; 32]);
        (base, code)
    }

    pub fn image(&self) -> Image {
        let mut i = Image::new(self.world);
        let mut r = Rng(self.data);
        for page in [at::DATA, at::DATA + 0x1000, at::READ_ONLY, at::FRESH, at::STACK] {
            let bytes: Vec<u8> = (0..512).flat_map(|_| r.next_u64().to_le_bytes()).collect();
            i.put(page, &bytes);
        }
        i.put(at::CODE, &[HLT; 8192]);
        let (base, code) = self.code();
        i.put(base, &code);
        i.cpu.gpr = self.gpr;
        i.cpu.xmm = self.xmm;
        i.cpu.rip = base;
        i.cpu.set_rflags(self.flags | 2);
        i
    }
}
