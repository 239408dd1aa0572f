//! Regions of tier 2: blocks of one page with loops among them, emitted one after the other with the slots they use most in
//! registers all the while (`pins`).

use super::emit::{Buffers, EDGES, Emit, Env, NEAR_OR_FAR, Tier1};
use super::pins::Pins;
use crate::jit::arena::HostCode;
use dynasmrt::SimpleAssembler;
use ir::{Block, Inst, Op};

/// How much more an access in a loop counts than another.
const LOOP_WEIGHT: u32 = 8;

/// No member's number.
const NOWHERE: usize = usize::MAX;

/// What emitting a block must know of the region it is in.
pub struct Inside {
    /// Page offsets of the members.
    starts: Vec<u32>,
    /// Number of the member that is being emitted.
    at: usize,
    /// Jumps to members: (end of the jump, number).
    jumps: Vec<(usize, usize)>,
    /// The same, to where the region is entered at a member.
    landings: Vec<(usize, usize)>,
}

impl Inside {
    pub fn member(&self, to: i64) -> Option<usize> {
        self.starts.iter().position(|s| i64::from(*s) == to)
    }
}

/// Emitted code of a region.
pub struct RegionCode<'a> {
    pub code: HostCode<'a>,
    /// For each member, where the code begins that enters the region there with the program counter in the state.
    pub entries: Vec<u32>,
}

/// Edges that lead from a member to itself or one before it: (target, source).
fn loops(starts: &[u32], blocks: &[&Block]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for (start, b) in starts.iter().zip(blocks) {
        for to in b.targets().into_iter().flatten() {
            if (0..=i64::from(*start)).contains(&to) && starts.contains(&(to as u32)) {
                found.push((to as u32, *start));
            }
        }
    }
    found
}

impl Tier1 {
    /// Emits optimised blocks, of which there are some, as a region. `None` if there is no loop in it, unless `always`: it would
    /// not be faster than the blocks one by one.
    ///
    /// With each block comes what to run instead of it where the region is entered there, if that is something else.
    pub fn emit_region<'a>(
        &'a mut self,
        env: &'a Env<'a>,
        members: &[(&'a Block, Option<&'a Block>)],
        always: bool,
    ) -> Option<RegionCode<'a>> {
        let blocks: Vec<&Block> = members.iter().map(|m| m.0).collect();
        let starts: Vec<u32> = blocks.iter().map(|b| b.start).collect();
        let loops = loops(&starts, &blocks);
        if loops.is_empty() && !always {
            return None;
        }
        let weight = |s: u32| if loops.iter().any(|(from, to)| (*from..=*to).contains(&s)) { LOOP_WEIGHT } else { 1 };
        // What runs instead of a block may change slots that the block leaves alone.
        let instead = members.iter().filter_map(|m| Some((m.1?, 0)));
        let weighed: Vec<(&Block, u32)> = blocks.iter().map(|b| (*b, weight(b.start))).chain(instead).collect();
        let mut b = std::mem::take(&mut self.buffers);
        b.code.clear();
        b.cold.clear();
        b.late_stores.clear();
        b.crossing.clear();
        b.regs.pins = Pins::choose(env.layout, &weighed);
        let mut code = SimpleAssembler::new();
        code.ops = b.code;
        let region = Some(Inside { starts, at: 0, jumps: Vec::new(), landings: Vec::new() });
        let (r, cold, ways) = (b.regs, b.cold, b.ways);
        let mut e = Emit {
            code,
            env,
            block: blocks[0],
            r,
            cold,
            ways,
            split: usize::MAX,
            crossing: b.crossing,
            at: 0,
            insn: 0,
            rest: 0,
            edges: [None; EDGES],
            far: [const { None }; NEAR_OR_FAR],
            sides: 0,
            guard: None,
            calls: false,
            fp_ready: false,
            x87_ready: false,
            x87_home: false,
            region,
            copies: Vec::new(),
            late_stores: b.late_stores,
            apart_from: u32::MAX,
        };
        let labels: Vec<usize> = (0..blocks.len()).map(|k| e.member(k, blocks[k], &loops)).collect();
        let entries: Vec<u32> =
            members.iter().zip(&labels).map(|((b, entered), label)| e.region_entry(b, *entered, *label, &loops)).collect();
        e.cold_code();
        if let Some(r) = e.region.take() {
            r.jumps.iter().for_each(|(jump, k)| e.point(*jump, labels[*k]));
            r.landings.iter().for_each(|(jump, k)| e.point(*jump, entries[*k] as usize));
        }
        let (mut regs, split) = (e.r, e.split);
        regs.pins = Pins::default();
        self.buffers =
            Buffers { code: e.code.ops, regs, cold: e.cold, ways: e.ways, late_stores: e.late_stores, crossing: e.crossing };
        Some(RegionCode { code: self.buffers.parts(split), entries })
    }
}

/// Whether an edge leads back to a block.
fn begins_loop(loops: &[(u32, u32)], block: &Block) -> bool {
    loops.iter().any(|(to, _)| *to == block.start)
}

impl<'a> Emit<'a> {
    /// Emits a member; gives its first byte.
    fn member(&mut self, k: usize, block: &'a Block, loops: &[(u32, u32)]) -> usize {
        let label = self.here();
        self.start_block(k, block);
        if begins_loop(loops, block) && !self.asks() {
            self.exit_test();
        }
        self.take_budget();
        self.ops();
        label
    }

    fn start_block(&mut self, k: usize, block: &'a Block) {
        (self.block, self.at, self.insn) = (block, 0, block.start);
        (self.fp_ready, self.x87_ready, self.x87_home) = (false, false, false);
        if let Some(r) = &mut self.region {
            r.at = k;
        }
        self.prepare();
    }

    /// The way in at a member, with the program counter in rdi.
    fn region_entry(&mut self, block: &'a Block, entered: Option<&'a Block>, label: usize, loops: &[(u32, u32)]) -> u32 {
        // No member follows this code.
        self.start_block(NOWHERE, entered.unwrap_or(block));
        let here = self.here() as u32;
        self.set_page(block.start as i32);
        self.load_pins(true);
        // Regions may lead to each other without end. Whoever leaves writes the pins back.
        if (entered.is_some() || !begins_loop(loops, block)) && !self.asks() {
            self.exit_test();
        }
        if entered.is_some() {
            self.take_budget();
            self.ops();
        } else {
            let jump = self.jmp();
            self.point(jump, label);
        }
        here
    }

    /// The edges of a terminator of which one leads to a member. `false`: it has none.
    pub fn inner_edges(&mut self, i: &Inst) -> bool {
        let next = self.block.next;
        let Some(r) = &self.region else { return false };
        let following = r.starts.get(r.at.saturating_add(1)).map(|s| i64::from(*s));
        let (taken, other) = (r.member(i.imm), r.member(next));
        match i.op {
            Op::Jump if taken.is_some() => {
                if following != Some(i.imm) {
                    let jump = self.jmp();
                    self.leads(0, jump, taken, i.imm);
                }
                true
            }
            Op::Br if taken.is_some() || other.is_some() => {
                let c = self.condition(i.a);
                if following == Some(i.imm) {
                    let jump = self.jcc(c ^ 1);
                    self.leads(1, jump, other, next);
                    return true;
                }
                let jump = self.jcc(c);
                self.leads(0, jump, taken, i.imm);
                if following != Some(next) {
                    let jump = self.jmp();
                    self.leads(1, jump, other, next);
                }
                true
            }
            _ => false,
        }
    }

    /// A jump to member `k`.
    pub fn leads_to(&mut self, jump: usize, k: usize) {
        if let Some(r) = &mut self.region {
            r.jumps.push((jump, k));
        }
    }

    /// Enters the region at a page offset, with the program counter in rdi. `false`: no member begins there.
    pub fn enters(&mut self, to: i64) -> bool {
        let Some(k) = self.region.as_ref().and_then(|r| r.member(to)) else { return false };
        let jump = self.jmp();
        if let Some(r) = &mut self.region {
            r.landings.push((jump, k));
        }
        true
    }

    /// A jump to a member, or else out of the region.
    fn leads(&mut self, n: u32, jump: usize, member: Option<usize>, to: i64) {
        match (&mut self.region, member) {
            (Some(r), Some(k)) => r.jumps.push((jump, k)),
            _ => self.edge(n, jump, to),
        }
    }
}
