//! How logical processors are arranged, and the APIC IDs that follow (SDM 3A "Hierarchical Mapping of Shared Resources").

/// Sockets, cores in each, threads in each of these; none is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
}

/// Bits that number `n` things.
fn bits(n: u32) -> u32 {
    n.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// One processor.
    pub const SINGLE: Topology = Topology { sockets: 1, cores: 1, threads: 1 };

    /// Logical processors of the machine.
    pub fn cpus(&self) -> u32 {
        self.sockets * self.package()
    }

    /// Logical processors of a socket.
    pub fn package(&self) -> u32 {
        self.cores * self.threads
    }

    /// Low bits of the APIC ID that number the threads of a core.
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }

    /// Low bits of the APIC ID that number the threads of a package.
    pub fn package_bits(&self) -> u32 {
        bits(self.cores) + self.thread_bits()
    }

    /// APIC ID of logical processor `n`: threads count first, then cores, then sockets.
    pub fn apic_id(&self, n: u32) -> u32 {
        let (thread, core, socket) = (n % self.threads, n / self.threads % self.cores, n / self.package());
        socket << self.package_bits() | core << self.thread_bits() | thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_leave_gaps_where_numbers_are_no_powers_of_two() {
        let t = Topology { sockets: 2, cores: 3, threads: 2 };
        let ids: Vec<u32> = (0..t.cpus()).map(|n| t.apic_id(n)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!((t.thread_bits(), t.package_bits()), (1, 3));
        assert_eq!((Topology::SINGLE.package_bits(), Topology::SINGLE.apic_id(0)), (0, 0));
    }
}
