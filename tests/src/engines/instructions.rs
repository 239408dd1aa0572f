//! The instructions that random programs are made of.

use super::asm::{Rm, encode};
use super::machine::at;
use super::program::{Fix, Item};
use vm_core::testing::Rng;

/// An address in the data pages; often close to a page's end, sometimes where accesses fault or write code.
pub(super) fn pointer(r: &mut Rng) -> u64 {
    let page = match r.below(24) {
        0 => at::READ_ONLY,
        1 => at::ABSENT,
        2 | 3 => at::ALIAS,
        4 => at::CODE_ALIAS,
        5 | 6 => at::FRESH,
        7 | 8 => at::DEVICE,
        9 => 0xffff_f000,
        10..=15 => at::DATA + 0x1000,
        _ => at::DATA,
    };
    page + if r.one_in(3) { 4096 - r.below(24) } else { r.below(4096) }
}

/// Makes items for one program.
pub(super) struct Gen {
    /// 64-bit code.
    pub long: bool,
    pub r: Rng,
    /// How many items the program has.
    pub items: usize,
}

impl Gen {
    /// The item with number `i`.
    pub fn item(&mut self, i: usize) -> Item {
        let plain = |bytes| Item { bytes, ..Item::default() };
        match self.r.below(100) {
            0..=33 => plain(self.alu()),
            34..=43 => plain(self.unary_shift()),
            44..=49 => plain(self.bits()),
            50..=57 => plain(self.moves()),
            58..=62 => plain(self.locked()),
            63..=67 => plain(self.stack()),
            68..=70 => plain(self.strings()),
            71..=80 => plain(self.sse()),
            81..=88 => self.forward(i),
            89..=92 => self.backward(i),
            93..=95 => self.call_or_ret(i),
            96..=98 => self.self_modify(i),
            _ => plain(self.odd()),
        }
    }

    fn size(&mut self) -> u8 {
        let n = if self.long { 4 } else { 3 };
        self.r.pick(&[4, 8, 4, 1, 2, 8][..]).min(if n == 4 { 8 } else { 4 })
    }

    /// A register that may be changed.
    fn gen_reg(&mut self) -> u8 {
        if self.long { self.r.pick(&[0, 1, 2, 10, 11, 12, 13, 0, 1, 2, 6]) } else { self.r.pick(&[0, 1, 2, 0, 1, 2, 6]) }
    }

    fn any_reg(&mut self) -> u8 {
        if self.long { self.r.below(16) as u8 } else { self.r.below(8) as u8 }
    }

    fn mem(&mut self) -> Rm {
        let base = if self.long { self.r.pick(&[3, 5, 8, 9, 3, 8, 4, 7]) } else { self.r.pick(&[3, 7, 6, 3]) };
        let disp = match self.r.below(4) {
            0 => self.r.below(4) as i32 * 16,
            1 => self.r.below(256) as i32 - 128,
            2 => self.r.below(0x1000) as i32 - 0x800,
            _ => 0,
        };
        if self.long && self.r.one_in(4) {
            return Rm::Index(base, 14, self.r.below(4) as u8, disp);
        }
        Rm::Mem(base, disp)
    }

    /// Destination.
    fn dst(&mut self) -> Rm {
        if self.r.one_in(3) { self.mem() } else { Rm::Reg(self.gen_reg()) }
    }

    fn src(&mut self) -> Rm {
        if self.r.one_in(3) { self.mem() } else { Rm::Reg(self.any_reg()) }
    }

    fn imm(&mut self, size: u8) -> Vec<u8> {
        let v = match self.r.below(3) {
            0 => self.r.pick(&[0, 1, !0, 0x80, 0x7f, 0x8000_0000]),
            1 => self.r.below(256),
            _ => self.r.next_u64(),
        };
        v.to_le_bytes()[..size.min(4).into()].to_vec()
    }

    fn enc(&self, size: u8, op: &[u8], reg: u8, rm: Rm, imm: &[u8]) -> Vec<u8> {
        encode(self.long, &[], size, op, reg, rm, imm)
    }

    fn alu(&mut self) -> Vec<u8> {
        let (size, w) = {
            let s = self.size();
            (s, u8::from(s != 1))
        };
        let k = self.r.below(8) as u8;
        match self.r.below(6) {
            0 => {
                let (d, s) = (self.dst(), self.any_reg());
                self.enc(size, &[k << 3 | w], s, d, &[])
            }
            1 => {
                let (d, s) = (self.gen_reg(), self.src());
                self.enc(size, &[k << 3 | 2 | w], d, s, &[])
            }
            2 => {
                let (d, i) = (self.dst(), self.imm(size));
                self.enc(size, &[0x80 | w], k, d, &i)
            }
            3 => {
                let (d, i) = (self.dst(), self.imm(1));
                self.enc(size.max(2), &[0x83], k, d, &i)
            }
            4 => {
                let (d, s) = (self.src(), self.any_reg());
                self.enc(size, &[0x84 | w], s, d, &[])
            }
            _ => {
                let (d, s) = (self.gen_reg(), self.mem());
                self.enc(size.max(2), &[0x8d], d, s, &[])
            }
        }
    }

    fn unary_shift(&mut self) -> Vec<u8> {
        let (size, w) = {
            let s = self.size();
            (s, u8::from(s != 1))
        };
        let d = self.dst();
        match self.r.below(10) {
            0..=3 => {
                let (k, n) = (self.r.below(8) as u8, self.imm(1));
                self.enc(size, &[0xc0 | w], k, d, &n)
            }
            4 => {
                let k = self.r.below(8) as u8;
                self.enc(size, &[0xd2 | w], k, d, &[])
            }
            5 => {
                let k = self.r.below(8) as u8;
                self.enc(size, &[0xd0 | w], k, d, &[])
            }
            6 => {
                let k = self.r.below(2) as u8;
                self.enc(size, &[0xfe | w], k, d, &[])
            }
            7 => {
                let k = 2 + self.r.below(2) as u8;
                self.enc(size, &[0xf6 | w], k, d, &[])
            }
            8 => {
                // MUL, IMUL; a division mostly faults, so seldom.
                let (k, s) = (if self.r.one_in(6) { 6 + self.r.below(2) as u8 } else { 4 + self.r.below(2) as u8 }, self.src());
                self.enc(size, &[0xf6 | w], k, s, &[])
            }
            _ => {
                let (a, s, i) = (self.gen_reg(), self.src(), self.imm(1));
                if self.r.one_in(2) {
                    self.enc(size.max(2), &[0x6b], a, s, &i)
                } else {
                    self.enc(size.max(2), &[0x0f, 0xaf], a, s, &[])
                }
            }
        }
    }

    fn bits(&mut self) -> Vec<u8> {
        let size = self.size().max(2);
        match self.r.below(8) {
            0 => {
                let (k, d, n) = (4 + self.r.below(4) as u8, self.dst(), self.imm(1));
                self.enc(size, &[0x0f, 0xba], k, d, &n)
            }
            1 => {
                // With a register index the address is far away unless the index is small.
                let (op, d) = (self.r.pick(&[0xa3, 0xab, 0xb3, 0xbb]), self.dst());
                let s = if self.long { 14 } else { self.any_reg() };
                self.enc(size, &[0x0f, op], s, d, &[])
            }
            2 => {
                let (op, d, s) = (self.r.pick(&[0xbc, 0xbd]), self.gen_reg(), self.src());
                self.enc(size, &[0x0f, op], d, s, &[])
            }
            3 => {
                let (op, d, s, n) = (self.r.pick(&[0xa4, 0xac]), self.dst(), self.any_reg(), self.imm(1));
                self.enc(size, &[0x0f, op], s, d, &n)
            }
            4 => {
                let (op, d, s) = (self.r.pick(&[0xa5, 0xad]), self.dst(), self.any_reg());
                self.enc(size, &[0x0f, op], s, d, &[])
            }
            5 => {
                let (c, d) = (self.r.below(16) as u8, self.dst());
                self.enc(1, &[0x0f, 0x90 | c], 0, d, &[])
            }
            6 => {
                let (c, d, s) = (self.r.below(16) as u8, self.gen_reg(), self.src());
                self.enc(size, &[0x0f, 0x40 | c], d, s, &[])
            }
            _ => {
                let d = self.gen_reg();
                let size = size.max(4);
                let rex = if self.long { vec![0x40 | u8::from(size == 8) << 3 | d >> 3] } else { vec![] };
                [rex, vec![0x0f, 0xc8 | d & 7]].concat()
            }
        }
    }

    fn moves(&mut self) -> Vec<u8> {
        let (size, w) = {
            let s = self.size();
            (s, u8::from(s != 1))
        };
        match self.r.below(7) {
            0 | 1 => {
                let (d, s) = (self.dst(), self.any_reg());
                self.enc(size, &[0x88 | w], s, d, &[])
            }
            2 | 3 => {
                let (d, s) = (self.gen_reg(), self.src());
                self.enc(size, &[0x8a | w], d, s, &[])
            }
            4 => {
                let (d, i) = (self.dst(), self.imm(size));
                self.enc(size, &[0xc6 | w], 0, d, &i)
            }
            5 => {
                let (op, d, s) = (self.r.pick(&[0xb6, 0xb7, 0xbe, 0xbf]), self.gen_reg(), self.src());
                self.enc(size.max(if op & 1 == 0 { 2 } else { 4 }), &[0x0f, op], d, s, &[])
            }
            _ => {
                let (d, i) = (self.gen_reg(), self.r.next_u64());
                if self.long {
                    [vec![0x48 | d >> 3, 0xb8 | d & 7], i.to_le_bytes().to_vec()].concat()
                } else {
                    [vec![0xb8 | d], (i as u32).to_le_bytes().to_vec()].concat()
                }
            }
        }
    }

    fn locked(&mut self) -> Vec<u8> {
        let (size, w) = {
            let s = self.size();
            (s, u8::from(s != 1))
        };
        let lock: &[u8] = if self.r.one_in(4) { &[] } else { &[0xf0] };
        let m = self.mem();
        let (long, reg) = (self.long, self.gen_reg());
        match self.r.below(9) {
            0 => encode(long, &[], size, &[0x86 | w], reg, m, &[]),
            1 => encode(long, lock, size, &[0x0f, 0xc0 | w], reg, m, &[]),
            2 => encode(long, lock, size, &[0x0f, 0xb0 | w], reg, m, &[]),
            3 => {
                let k = self.r.below(7) as u8;
                encode(long, lock, size, &[k << 3 | w], reg, m, &[])
            }
            4 => {
                let (k, i) = (self.r.below(7) as u8, self.imm(size));
                encode(long, lock, size, &[0x80 | w], k, m, &i)
            }
            5 => {
                let k = self.r.below(2) as u8;
                encode(long, lock, size, &[0xfe | w], k, m, &[])
            }
            6 => {
                let (k, i) = (5 + self.r.below(3) as u8, self.imm(1));
                encode(long, lock, size.max(2), &[0x0f, 0xba], k, m, &i)
            }
            7 => {
                let k = 2 + self.r.below(2) as u8;
                encode(long, lock, size, &[0xf6 | w], k, m, &[])
            }
            _ => encode(long, lock, if size == 8 { 8 } else { 4 }, &[0x0f, 0xc7], 1, m, &[]),
        }
    }

    fn stack(&mut self) -> Vec<u8> {
        let (a, d) = (self.any_reg(), self.gen_reg());
        let rex = |r: u8| if r >= 8 { vec![0x41] } else { vec![] };
        match self.r.below(8) {
            0..=2 => [rex(a), vec![0x50 | a & 7]].concat(),
            3..=5 => [rex(d), vec![0x58 | d & 7]].concat(),
            6 => {
                let m = self.mem();
                let k = self.r.one_in(2);
                self.enc(0, if k { &[0xff] } else { &[0x8f] }, if k { 6 } else { 0 }, m, &[])
            }
            _ => {
                let mut v = vec![self.r.pick(&[0x9c, 0x68])];
                if v[0] == 0x68 {
                    v.extend(self.imm(4));
                }
                v
            }
        }
    }

    fn strings(&mut self) -> Vec<u8> {
        let op = self.r.pick(&[0xa4, 0xa5, 0xaa, 0xab, 0xa6, 0xa7, 0xac, 0xad, 0xae, 0xaf]);
        let mut v = Vec::new();
        let set = |r: u8, x: u32| [vec![0xb8 | r], x.to_le_bytes().to_vec()].concat();
        for reg in [6, 7] {
            if !self.r.one_in(3) {
                v.extend(set(reg, pointer(&mut self.r) as u32));
            }
        }
        v.extend(set(1, self.r.below(40) as u32));
        if self.r.one_in(6) {
            v.push(self.r.pick(&[0xfc, 0xfd]));
        }
        if !self.r.one_in(3) {
            v.push(self.r.pick(&[0xf2, 0xf3, 0xf3]));
        }
        match self.r.below(4) {
            0 if self.long && op & 1 == 1 => v.push(0x48),
            1 if op & 1 == 1 => v.insert(v.len(), 0x66),
            _ => {}
        }
        v.push(op);
        v
    }

    fn sse(&mut self) -> Vec<u8> {
        let n = if self.long { 16 } else { 8 };
        let (x, y) = (self.r.below(n) as u8, self.r.below(n) as u8);
        let rm = if self.r.one_in(3) { self.mem() } else { Rm::Reg(y) };
        let mem = if self.long { Rm::Mem(8, 16 * self.r.below(8) as i32 - 64) } else { self.mem() };
        let aligned = if self.r.one_in(3) { mem } else { Rm::Reg(y) };
        let (long, imm) = (self.long, self.imm(1));
        let packed = [
            0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x74, 0x75, 0x76, 0xd1, 0xd2,
            0xd3, 0xd4, 0xd5, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe8, 0xe9,
            0xea, 0xeb, 0xec, 0xed, 0xee, 0xef, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe,
            0x14, 0x15, 0x54, 0x55, 0x56, 0x57,
        ];
        let e = |p: &[u8], size: u8, op: &[u8], reg: u8, rm: Rm, imm: &[u8]| encode(long, p, size, op, reg, rm, imm);
        match self.r.below(14) {
            0..=4 => {
                let op = self.r.pick(&packed);
                e(&[0x66], 0, &[0x0f, op], x, aligned, &[])
            }
            5 => {
                let p = self.r.pick(&[0x66, 0xf2, 0xf3]);
                e(&[p], 0, &[0x0f, 0x70], x, aligned, &imm)
            }
            6 => {
                let (op, k) = self.r.pick(&[
                    (0x71, 2),
                    (0x71, 4),
                    (0x71, 6),
                    (0x72, 2),
                    (0x72, 4),
                    (0x72, 6),
                    (0x73, 2),
                    (0x73, 3),
                    (0x73, 6),
                    (0x73, 7),
                ]);
                e(&[0x66], 0, &[0x0f, op], k, Rm::Reg(y), &[imm[0] % 80])
            }
            7 | 8 => {
                let (p, op) = self.r.pick(&[
                    (0, 0x10),
                    (0, 0x11),
                    (0x66, 0x10),
                    (0x66, 0x11),
                    (0xf3, 0x10),
                    (0xf3, 0x11),
                    (0xf2, 0x10),
                    (0xf2, 0x11),
                    (0xf3, 0x6f),
                    (0xf3, 0x7f),
                    (0xf3, 0x7e),
                    (0x66, 0xd6),
                ]);
                if p == 0 { e(&[], 0, &[0x0f, op], x, rm, &[]) } else { e(&[p], 0, &[0x0f, op], x, rm, &[]) }
            }
            9 => {
                let op = self.r.pick(&[0x28, 0x29, 0x6f, 0x7f]);
                e(&[0x66], 0, &[0x0f, op], x, aligned, &[])
            }
            10 => {
                let (op, w) = (self.r.pick(&[0x6e, 0x7e]), if self.long && self.r.one_in(2) { 8 } else { 4 });
                let d = self.dst();
                e(&[0x66], w, &[0x0f, op], x, d, &[])
            }
            11 => {
                let (op, g) = (self.r.pick(&[0xd7, 0x50]), self.gen_reg());
                e(&[0x66], 0, &[0x0f, op], g, Rm::Reg(y), &[])
            }
            12 => {
                let (op, g) = (self.r.pick(&[0xc4, 0xc5, 0xc6]), self.gen_reg());
                if op == 0xc5 {
                    e(&[0x66], 0, &[0x0f, op], g, Rm::Reg(y), &imm)
                } else {
                    e(&[0x66], 0, &[0x0f, op], x, if op == 0xc4 { Rm::Reg(g) } else { aligned }, &imm)
                }
            }
            _ => {
                let op = self.r.pick(&[0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x51, 0x2e, 0x2f, 0x2a, 0x2d, 0x2c]);
                match op {
                    0x2e | 0x2f => e(&[0x66], 0, &[0x0f, op], x, rm, &[]),
                    0x2a => {
                        let s = self.src();
                        e(&[0xf2], 4, &[0x0f, op], x, s, &[])
                    }
                    0x2d | 0x2c => {
                        let g = self.gen_reg();
                        e(&[0xf2], 4, &[0x0f, op], g, rm, &[])
                    }
                    _ => e(&[0xf2], 0, &[0x0f, op], x, rm, &[]),
                }
            }
        }
    }

    fn forward(&mut self, i: usize) -> Item {
        let item = i + 1 + self.r.below(6) as usize;
        let item = item.min(self.items);
        if self.r.one_in(4) {
            return Item { bytes: vec![0xe9, 0, 0, 0, 0], fix: Some(Fix::Relative { at: 1, item }), dropped: false };
        }
        let c = self.r.below(16) as u8;
        Item { bytes: vec![0x0f, 0x80 | c, 0, 0, 0, 0], fix: Some(Fix::Relative { at: 2, item }), dropped: false }
    }

    /// All loops share one counter, so that programs end.
    fn backward(&mut self, i: usize) -> Item {
        let item = i - (self.r.below(10) as usize).min(i);
        let mut bytes = if self.long { vec![0x49, 0x83, 0xef, 1] } else { vec![0x83, 0xed, 1] };
        bytes.extend([0x0f, 0x8f, 0, 0, 0, 0]);
        let at = bytes.len() - 4;
        Item { bytes, fix: Some(Fix::Relative { at, item }), dropped: false }
    }

    fn call_or_ret(&mut self, i: usize) -> Item {
        match self.r.below(4) {
            0 => Item { bytes: vec![0xc3], ..Item::default() },
            1 => {
                // mov eax, target; jmp rax
                let item = (i + 1 + self.r.below(5) as usize).min(self.items);
                Item {
                    bytes: vec![0xb8, 0, 0, 0, 0, 0xff, 0xe0],
                    fix: Some(Fix::Absolute { at: 1, item, plus: 0, window: at::CODE as u32 }),
                    dropped: false,
                }
            }
            _ => {
                let item = (i + 1 + self.r.below(6) as usize).min(self.items);
                Item { bytes: vec![0xe8, 0, 0, 0, 0], fix: Some(Fix::Relative { at: 1, item }), dropped: false }
            }
        }
    }

    /// Stores into another instruction, before or behind, or farther away in the page, where there may be none; directly or through the
    /// page's alias.
    fn self_modify(&mut self, i: usize) -> Item {
        let item = (i + self.r.below(8) as usize).saturating_sub(3).min(self.items);
        let plus = if self.r.one_in(3) { 64 * self.r.below(24) as u32 } else { self.r.below(5) as u32 };
        let window = if self.r.one_in(3) { at::CODE_ALIAS } else { at::CODE } as u32;
        let any = Rm::Abs(0);
        let (bytes, imm) = match self.r.below(4) {
            0 => (encode(self.long, &[], 4, &[0x89], 0, any, &[]), 0),
            1 => (encode(self.long, &[], 2, &[0xc7], 0, any, &[0x90, 0x90]), 2),
            2 => (encode(self.long, &[0xf0], 4, &[0x81], 6, any, &[1, 0, 0, 0]), 4),
            _ => {
                let v = self.r.pick(&[0x90, 0xf4, 0x00, 0x01, 0x40, 0xc3]);
                (encode(self.long, &[], 1, &[0xc6], 0, any, &[v]), 1)
            }
        };
        let at = bytes.len() - imm - 4;
        Item { bytes, fix: Some(Fix::Absolute { at, item, plus, window }), dropped: false }
    }

    fn odd(&mut self) -> Vec<u8> {
        let long: &[&[u8]] = &[
            &[0x0f, 0x0b],
            &[0xcc],
            &[0xf5],
            &[0xf8],
            &[0xf9],
            &[0x9e],
            &[0x9f],
            &[0x98],
            &[0x48, 0x99],
            &[0x99],
            &[0xfb],
            &[0xfa],
            &[0x9c, 0x9d],
            &[0xc9],
            &[0x0f, 0xae, 0xf0],
            &[0x0f, 0xa2],
            &[0xd7],
            &[0x90],
            &[0xf4],
            &[0xcd, 3],
            &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
            &[0x0f, 0x01, 0x3b],
        ];
        let flat: &[&[u8]] = &[
            &[0x0f, 0x0b],
            &[0xf5],
            &[0xf8],
            &[0xf9],
            &[0x40],
            &[0x4a],
            &[0x27],
            &[0xd4, 10],
            &[0x60],
            &[0x98],
            &[0x99],
            &[0xfb],
            &[0xfa],
            &[0x9c, 0x9d],
            &[0x90],
            &[0xd7],
        ];
        self.r.pick(if self.long { long } else { flat }).to_vec()
    }
}
