//! Fuzz targets: queues and every virtio device, IDE, AHCI, qcow2 images. A second each; `RHEA_FUZZ_SECONDS` makes them longer
//! (see `rhea_tests::fuzz`). The user-mode network has its own in `machine/src/net/user/tests.rs` (`RHEA_NET_FUZZ_SECONDS`).

use devices::block::testkit::MemoryDisk;
use devices::chr::CharSink;
use devices::net::{Frame, testkit::MemoryNet};
use devices::virtio::p9::{Request, Share};
use devices::virtio::{Balloon, BalloonConfig, Blk, BlkConfig, Console, Net, NetConfig, P9, PortConfig, Queues, Rng};
use machine::block::Drives;
use machine::control::{Control, RunState};
use machine::options::{CacheConfig, DriveConfig, ImageFormat, OnError, ShareConfig};
use machine::share::Shares;
use rhea_tests::fuzz::{Behaviour, campaign, disks, image, mmio, pci, share, virtio};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vm_core::testing::left_out;

thread_local! {
    static DISK: RefCell<Arc<MemoryDisk>> = RefCell::new(disk());
    static NET: RefCell<Arc<MemoryNet>> = RefCell::new(MemoryNet::new(true));
    static SHARE: RefCell<Arc<Held>> = RefCell::default();
    static ROOM: Cell<&'static AtomicUsize> = Cell::new(Box::leak(Box::default()));
}

fn disk() -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(1 << 20).holding())
}

/// Holds requests until it is told to answer them.
#[derive(Default)]
struct Held(Mutex<Vec<Request>>);

impl Share for Held {
    fn submit(&self, request: Request) {
        self.0.lock().unwrap().push(request);
    }
    fn abandon(&self) {
        self.0.lock().unwrap().clear();
    }
    fn drain(&self) {}
    fn save(&self) -> Value {
        Value::Null
    }
    fn load(&self, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

/// Takes as much as the input allows.
struct Sink(&'static AtomicUsize);

impl CharSink for Sink {
    fn write(&self, bytes: &[u8]) {
        let before = self.0.fetch_sub(bytes.len(), Ordering::Relaxed);
        assert!(before >= bytes.len(), "more is written than there is room for");
    }
    fn room(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
    fn input_wanted(&self) {}
}

#[test]
fn queues() {
    let subject = virtio::OnPci { make: || Rng::new(Box::new(|b| b.fill(0x55))), outside: |d, _| d.service() };
    campaign("queues", &virtio::first(), &|input, seen| virtio::run(&subject, input, seen));
}

#[test]
fn blk() {
    let subject = virtio::OnPci {
        make: || {
            Blk::new(
                DISK.with_borrow(Clone::clone),
                BlkConfig { serial: "fuzz".into(), queues: 2, queue_size: 64, ..BlkConfig::default() },
            )
        },
        outside: |d, n| {
            if n & 1 != 0 {
                DISK.with_borrow(|disk| disk.run());
            }
            d.service();
        },
    };
    campaign("blk", &virtio::first(), &|input, seen| {
        DISK.set(disk());
        virtio::run(&subject, input, seen);
    });
}

#[test]
fn net() {
    let subject = virtio::OnPci {
        make: || Net::new(NET.with_borrow(Clone::clone), NetConfig { mac: [2, 0, 0, 0, 0, 1], rx_queue: 64, tx_queue: 64 }),
        outside: |d, n| {
            NET.with_borrow(|net| {
                if n & 3 == 0 {
                    net.waiting.lock().push_back(Frame::plain(vec![n; 14 + 40 * usize::from(n)]));
                }
                net.full.store(n & 0x40 != 0, Ordering::Relaxed);
                net.turn.store(true, Ordering::Relaxed);
                net.take_sent();
            });
            d.service();
        },
    };
    campaign("net", &virtio::first(), &|input, seen| {
        NET.set(MemoryNet::new(input.first().is_none_or(|b| b & 0x80 == 0)));
        virtio::run(&subject, input, seen);
    });
}

fn console_model() -> Console {
    let room = ROOM.get();
    let port = |nr: u32| PortConfig { nr, console: nr == 0, name: "port".repeat(nr as usize), sink: Some(Arc::new(Sink(room))) };
    Console::new(4, vec![port(0), port(2), PortConfig { nr: 1, console: false, name: String::new(), sink: None }])
}

/// The host's side of a console: room for output, input, peers that come and go.
fn at_the_console(n: u8, with: impl FnOnce(&mut dyn FnMut(&mut Console, &mut Queues))) {
    ROOM.get().store(usize::from(n) * 50, Ordering::Relaxed);
    let nr = u32::from(n % 4);
    with(&mut |c, queues| match n >> 6 {
        0 => {
            let room = c.room(nr).min(300);
            c.receive(nr, &vec![n; room], queues);
        }
        1 => {
            c.receive(nr, &[n; 5000], queues);
        }
        2 => c.set_open(nr, n & 4 != 0, queues),
        _ => {}
    });
}

/// In memory-mapped registers, as on microvm.
#[test]
fn mmio() {
    let subject = mmio::OnMmio { make: console_model, outside: |d, n| at_the_console(n, |f| d.with(f)) };
    campaign("mmio", &virtio::first(), &|input, seen| mmio::run(&subject, input, seen));
}

#[test]
fn console() {
    let subject = virtio::OnPci { make: console_model, outside: |d, n| at_the_console(n, |f| d.with(f)) };
    campaign("console", &virtio::first(), &|input, seen| virtio::run(&subject, input, seen));
}

#[test]
fn balloon() {
    let subject = virtio::OnPci {
        make: || Balloon::new(BalloonConfig { ram: pci::RAM, deflate_on_oom: true, reporting: true }, Box::new(|_| {})),
        outside: |d, n| match n & 1 {
            0 => d.with(|b, queues| b.set_target(u64::from(n) << 12, queues)),
            _ => d.with(|b, queues| b.request_stats(queues)),
        },
    };
    campaign("balloon", &virtio::first(), &|input, seen| virtio::run(&subject, input, seen));
}

#[test]
fn p9() {
    let subject = virtio::OnPci {
        make: || P9::new("fuzz", SHARE.with_borrow(|s| s.clone() as Arc<dyn Share>)),
        outside: |d, n| {
            let list = SHARE.with_borrow(|s| std::mem::take(&mut *s.0.lock().unwrap()));
            for r in list {
                let len = (usize::from(n) * 40).min(r.room);
                r.done.put(r.id, vec![n; len]);
            }
            d.service();
        },
    };
    campaign("p9", &virtio::first(), &|input, seen| {
        SHARE.set(Arc::default());
        virtio::run(&subject, input, seen);
    });
}

/// The server behind it, on a folder.
#[test]
fn shared_folder() {
    let open = |path| {
        let config = ShareConfig { id: "fuzz".into(), path, read_only: false, passthrough: false };
        Shares::open(&[config]).expect("the folder is there").all().remove("fuzz").expect("it is open")
    };
    campaign("share", &share::first(), &|input, seen| share::run(open, input, seen));
}

#[test]
fn ide() {
    campaign("ide", &disks::first(3), &disks::ide);
}

#[test]
fn ahci() {
    campaign("ahci", &disks::first(4), &disks::ahci);
}

fn drive(file: std::path::PathBuf, read_only: bool) -> DriveConfig {
    DriveConfig {
        id: "fuzz".into(),
        file,
        format: Some(ImageFormat::Qcow2),
        read_only,
        snapshot: false,
        cache: CacheConfig { write_back: true, direct: false, no_flush: true },
        werror: OnError::Report,
        rerror: OnError::Report,
        discard: true,
        io_uring: false,
        share: false,
    }
}

/// Waits for the ends of jobs.
#[derive(Default)]
struct Ends(Mutex<Vec<bool>>, Condvar);

impl devices::block::Done for Ends {
    fn done(&self, _: u64, ok: bool) {
        self.0.lock().unwrap().push(ok);
    }
    fn kick(&self) {
        self.1.notify_all();
    }
}

/// Reads and writes a bit of everything.
fn use_image(drives: &Drives, seen: &mut Behaviour) {
    use devices::block::{Job, Memory, Op, Segment};
    let Some(disk) = drives.disk("fuzz") else { return };
    let bytes = disk.geometry().bytes;
    seen.saw(bytes.checked_ilog2());
    let ends = Arc::<Ends>::default();
    let buffer = || Memory::Buffer(Arc::new(parking_lot::Mutex::new(vec![7; 65536])));
    let part = |n: u32| vec![Segment { pa: 0, len: n }];
    let last = bytes.saturating_sub(65536) / 512 * 512;
    let all = [
        Op::Read { at: 0, to: part(65536) },
        Op::Read { at: last, to: part(65536) },
        Op::Write { at: 4096, from: part(1024), through: false },
        Op::Discard { at: 8192, len: 8192 },
        Op::Zero { at: 16384, len: 4096, unmap: true, through: true },
        Op::Write { at: last, from: part(65536), through: false },
        Op::Flush,
    ];
    let read_only = disk.geometry().read_only;
    let fit: Vec<Op> = all.into_iter().filter(|op| op.fits(bytes) && !(read_only && op.writes())).collect();
    for (id, op) in fit.iter().enumerate() {
        disk.submit(Job { id: id as u64, op: op.clone(), memory: buffer(), done: ends.clone() });
    }
    let list = ends.0.lock().unwrap();
    let (list, late) = ends.1.wait_timeout_while(list, Duration::from_secs(60), |l| l.len() < fit.len()).unwrap();
    assert!(!late.timed_out(), "jobs do not end: {} of {}", list.len(), fit.len());
    let mut list = list.clone();
    list.sort();
    seen.saw(list);
}

fn damaged_images(target: &str, read_only: bool) {
    if image::damaged(target, &[], &mut Behaviour::default()).is_none() {
        return left_out("fuzz: qemu-img is not there");
    }
    let control = Control::new(vec![Arc::default()], RunState::Running);
    let first: Vec<Vec<u8>> = (0..110u8).flat_map(|at| [0, 1, 0x7f, 0xff].map(|v| vec![0, at, 0, v])).collect();
    campaign(target, &first, &|input, seen| {
        let Some(path) = image::damaged(target, input, seen) else { return };
        match Drives::open(&[drive(path, read_only)], &control) {
            Ok(drives) => use_image(&drives, seen),
            // The first words, without numbers.
            Err(e) => {
                seen.saw(e.to_string().split(": ").nth(2).map(|s| s.chars().filter(|c| c.is_alphabetic()).collect::<String>()))
            }
        }
    });
}

#[test]
fn qcow2() {
    damaged_images("qcow2", true);
}

#[test]
fn qcow2_written() {
    damaged_images("qcow2-written", false);
}
