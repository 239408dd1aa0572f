//! Identification, commands of disks, packets.

use super::disk::Disk;
use super::identify::Identity;
use super::packet::Packet;
use super::*;
use crate::block::Geometry;
use vm_core::testing::Rng;

fn geometry(bytes: u64) -> Geometry {
    Geometry { bytes, read_only: false, discard: true, write_back: true }
}

fn identity() -> Identity {
    Identity { serial: "S1".into(), model: "RHEA HARDDISK".into() }
}

fn words(data: &[u8]) -> Vec<u16> {
    data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

fn plan(command: u8, features: u16, count: u16, lba: u64, device: u8) -> Plan {
    let g = geometry(1 << 30);
    Disk::new(&g).plan(&Task { command, features, count, lba, device }, &g, &identity(), true)
}

#[test]
fn identify_tells_size_and_names() {
    let g = geometry(200 << 30);
    let w = words(&identify::disk(&g, &identity(), 16, true, 0x45, true));
    assert_eq!((w[10], &w[27..29]), (u16::from_be_bytes(*b"S1"), &[u16::from_be_bytes(*b"RH"), u16::from_be_bytes(*b"EA")][..]));
    let sectors = (200u64 << 30) / 512;
    assert_eq!((w[60], w[61]), (0xffff, 0xfff), "28 bits at most");
    assert_eq!((0..4).map(|i| u64::from(w[100 + i]) << (16 * i)).sum::<u64>(), sectors);
    assert_eq!((w[1], w[3], w[6], w[59], w[75], w[76] >> 8), (16383, 16, 63, 0x110, 31, 1));
    assert_eq!((w[85] & 0x20, w[88], w[93]), (0x20, 0x203f, 0));
    assert_eq!((w[105], w[169]), (8, 1), "TRIM");
    let w = words(&identify::disk(&g, &identity(), 0, false, 0x22, false));
    assert_eq!((w[85] & 0x20, w[63], w[88], w[93] >> 13, w[76]), (0, 0x407, 0x3f, 3, 0));
    let w = words(&identify::packet(&identity(), 0x45, false));
    assert_eq!((w[0], w[82] & 0x10), (0x85c0, 0x10));
}

#[test]
fn a_disk_without_sectors_has_no_last_one() {
    let (g, t) = (geometry(0), |command| Task { command, features: 0, count: 1, lba: 0, device: 0x40 });
    let mut disk = Disk::new(&g);
    let plans = [0x27, 0xf8, 0x25, 0x20].map(|c| disk.plan(&t(c), &g, &identity(), true));
    assert_eq!(plans, [Plan::Address(0), Plan::Address(0), Plan::NotFound, Plan::NotFound]);
    assert_eq!(words(&identify::disk(&g, &identity(), 16, true, 0x45, true))[60], 0);
}

#[test]
fn ranges_of_commands() {
    let (k, way) = (512, Way::Pio(512));
    assert_eq!(plan(0x20, 0, 0, 0, DEVICE_LBA), Plan::Read { at: 0, len: 256 * k, way });
    assert_eq!(plan(0x24, 0, 0, 5, DEVICE_LBA), Plan::Read { at: 5 * k, len: 65536 * k, way });
    assert_eq!(plan(0xc8, 0, 8, 0xff_0001, 0x40), Plan::NotFound);
    assert_eq!(plan(0xc8, 0, 8, 1, 0x40), Plan::Read { at: k, len: 8 * k, way: Way::Dma });
    // Cylinder 1, head 2, sector 3; there is no sector 0.
    assert_eq!(plan(0x20, 0, 1, 0x103, 2), Plan::Read { at: ((16 + 2) * 63 + 2) * k, len: k, way });
    assert_eq!(plan(0x20, 0, 1, 0x100, 2), Plan::NotFound);
    assert_eq!(plan(0x35, 0, 1, (1 << 21) - 1, 0x40), Plan::Write { at: (1 << 30) - k, len: k, through: false, way: Way::Dma });
    assert_eq!(plan(0x35, 0, 1, 1 << 21, 0x40), Plan::NotFound);
    assert_eq!(plan(0x25, 0, 1, !0 >> 16, 0x40), Plan::NotFound);
    assert_eq!(plan(0xc4, 0, 1, 1, 0x40), Plan::Abort, "READ MULTIPLE without SET MULTIPLE");
    let queued = Plan::Write { at: 7 * k, len: 16 * k, through: true, way: Way::Queued(9) };
    assert_eq!(plan(0x61, 16, 9 << 3, 7, 0xc0), queued);
    let trims = [(1, 1), (1, 9), (0, 1)].map(|(features, count)| plan(0x06, features, count, 0, 0x40));
    assert_eq!(trims, [Plan::Trim { len: 512 }, Plan::Abort, Plan::Abort]);
    assert_eq!((plan(0xe5, 0, 0, 0, 0), plan(0xf8, 0, 0, 0, 0x40)), (Plan::Done(Some(0xff)), Plan::Address((1 << 21) - 1)));
}

#[test]
fn settings_are_kept() {
    let g = geometry(1 << 20);
    let mut d = Disk::new(&g);
    let mut set =
        |command, features, count| d.plan(&Task { command, features, count, ..Task::default() }, &g, &identity(), false);
    assert_eq!((set(0xc6, 0, 3), set(0xc6, 0, 8)), (Plan::Abort, Plan::Done(None)));
    assert_eq!((set(0xef, 0x82, 0), set(0xef, 0x03, 0x42), set(0xef, 0x03, 0x50)), (Plan::Flush, Plan::Done(None), Plan::Abort));
    assert!(matches!(set(0xc4, 0, 1), Plan::NotFound), "sector 0 of a cylinder");
    let Plan::Data(data) = set(0xec, 0, 0) else { panic!() };
    let w = words(&data);
    assert_eq!((w[59], w[85] & 0x20, w[88]), (0x108, 0, 0x043f));
    let t = Task { command: 0xca, count: 1, device: DEVICE_LBA, ..Task::default() };
    assert!(matches!(d.plan(&t, &g, &identity(), false), Plan::Write { through: true, .. }), "without a cache");
    let ro = Geometry { read_only: true, ..g };
    assert_eq!(d.plan(&t, &ro, &identity(), false), Plan::Abort);
}

#[test]
fn a_disk_without_a_write_cache_says_so_until_it_is_turned_on() {
    let g = Geometry { write_back: false, ..geometry(1 << 20) };
    let mut d = Disk::new(&g);
    let write = Task { command: 0xca, count: 1, device: DEVICE_LBA, ..Task::default() };
    let look = |d: &mut Disk| {
        let Plan::Data(data) = d.plan(&Task { command: 0xec, ..Task::default() }, &g, &identity(), false) else { panic!() };
        let Plan::Write { through, .. } = d.plan(&write, &g, &identity(), false) else { panic!() };
        (words(&data)[82] & 0x20, words(&data)[85] & 0x20, through)
    };
    assert_eq!(look(&mut d), (0x20, 0, true));
    let on = Task { command: 0xef, features: 0x02, ..Task::default() };
    assert_eq!((d.plan(&on, &g, &identity(), false), look(&mut d)), (Plan::Done(None), (0x20, 0x20, false)));
}

#[test]
fn the_log_tells_which_queued_command_failed() {
    let g = geometry(1 << 20);
    let mut d = Disk::new(&g);
    d.queued_failed(5, 0x51, 0x40);
    let read = Task { command: 0x2f, count: 1, lba: 0x10, ..Task::default() };
    let Plan::Data(page) = d.plan(&read, &g, &identity(), true) else { panic!() };
    assert_eq!((page[0], page[2], page[3]), (5, 0x51, 0x40));
    assert_eq!(page.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    let Plan::Data(page) = d.plan(&read, &g, &identity(), true) else { panic!() };
    assert_eq!(page[0], 0x80);
}

fn ask(p: &mut Packet, bytes: Option<u64>, c: &[u8]) -> Reply {
    let mut packet = [0; 12];
    packet[..c.len()].copy_from_slice(c);
    p.command(&packet, bytes, &identity())
}

#[test]
fn packets_of_a_disc() {
    let (mut p, disc) = (Packet::default(), Some(100 * 2048));
    assert_eq!(ask(&mut p, disc, &[0]), Reply::Done);
    assert_eq!(ask(&mut p, disc, &[0x25]), Reply::Data(vec![0, 0, 0, 99, 0, 0, 8, 0]));
    assert_eq!(ask(&mut p, disc, &[0x28, 0, 0, 0, 0, 10, 0, 0, 3]), Reply::Read { at: 20480, len: 6144 });
    assert_eq!(ask(&mut p, disc, &[0xa8, 0, 0, 0, 0, 98, 0, 0, 0, 3]), Reply::Failed(5));
    let Reply::Data(sense) = ask(&mut p, disc, &[3, 0, 0, 0, 18]) else { panic!() };
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    let Reply::Data(toc) = ask(&mut p, disc, &[0x43, 0, 0, 0, 0, 0, 0, 1, 0]) else { panic!() };
    assert_eq!((toc.len(), toc[1], toc[6], toc[14], toc[19]), (20, 18, 1, 0xaa, 100));
    let Reply::Data(inquiry) = ask(&mut p, disc, &[0x12, 0, 0, 0, 36]) else { panic!() };
    assert_eq!((inquiry.len(), inquiry[0], &inquiry[8..12], &inquiry[16..24]), (36, 5, &b"RHEA"[..], &b"HARDDISK"[..]));
    let Reply::Data(config) = ask(&mut p, disc, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255]) else { panic!() };
    assert_eq!((config[7], usize::from(config[3]) + 4), (8, config.len()));
    assert_eq!(ask(&mut p, disc, &[0x77]), Reply::Failed(5));
}

#[test]
fn an_empty_drive_says_so() {
    let mut p = Packet::default();
    assert_eq!(
        (ask(&mut p, None, &[0]), ask(&mut p, None, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1])),
        (Reply::Failed(2), Reply::Failed(2))
    );
    let Reply::Data(sense) = ask(&mut p, None, &[3, 0, 0, 0, 18]) else { panic!() };
    assert_eq!((sense[2], sense[12]), (2, 0x3a));
}

/// Whatever comes, answers are bounded and reads lie on the disc.
#[test]
fn hostile_packets_and_commands() {
    let (mut r, mut p, g) = (Rng(3), Packet::default(), geometry(50 * 2048));
    let mut d = Disk::new(&g);
    for _ in 0..200_000 {
        let mut c: [u8; 12] = std::array::from_fn(|_| r.next_u64() as u8);
        if r.one_in(2) {
            c[0] = r.pick(&[0x03, 0x12, 0x1a, 0x5a, 0x25, 0x28, 0xa8, 0xbe, 0x43, 0x46, 0x4a, 0x51]);
            c[2..5].fill(0);
        }
        match p.command(&c, r.one_in(3).then_some(g.bytes).or(Some(0)), &identity()) {
            Reply::Data(data) => assert!(!data.is_empty() && data.len() < 1000),
            Reply::Read { at, len } => assert!(len > 0 && at + len <= g.bytes),
            Reply::Done | Reply::Failed(_) => {}
        }
        let v = r.next_u64();
        let t = Task {
            command: v as u8,
            features: r.below(300) as u16,
            count: (v >> 8) as u16,
            lba: r.below(300),
            device: (v >> 24) as u8,
        };
        match d.plan(&t, &g, &identity(), r.one_in(2)) {
            Plan::Read { at, len, .. } | Plan::Write { at, len, .. } => assert!(len > 0 && at + len <= g.bytes),
            Plan::Data(data) => assert_eq!(data.len(), 512),
            _ => {}
        }
        assert!(d.plausible());
    }
}
