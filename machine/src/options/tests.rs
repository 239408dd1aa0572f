//! Command lines, good and bad.

use super::*;
use accel_kvm::Irqchip;
use proptest::prelude::*;
use vm_core::log::Item;

fn parse_line(line: &str) -> Result<Request, OptionError> {
    parse(line.split(' ').filter(|w| !w.is_empty()).map(|w| w.replace('~', " ")))
}

fn config(line: &str) -> Config {
    match parse_line(line) {
        Ok(Request::Run(c)) => *c,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    match parse_line(line) {
        Err(e) => e.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

fn printed(line: &str) -> String {
    match parse_line(line) {
        Ok(Request::Print(s)) => s,
        other => panic!("{line}: {other:?}"),
    }
}

fn backends(c: &Config) -> Vec<(&str, &CharBackend, bool)> {
    c.chardevs.iter().map(|d| (d.id.as_str(), &d.backend, d.mux)).collect()
}

const STDIO: CharBackend = CharBackend::Stdio { signal: true };

#[test]
fn no_arguments_is_the_first_run_with_a_terminal_and_512m() {
    let Ok(Request::FirstRun(c)) = parse_line("") else { panic!("not a first run") };
    assert_eq!(c.mem_bytes, 512 << 20);
    assert_eq!(backends(&c), [("serial0", &STDIO, true)]);
    assert_eq!(c.serials[0].as_deref(), Some("serial0"));
    assert_eq!(c.monitors, ["serial0"]);
    let kvm = AccelConfig::Kvm(KvmConfig { self_test: true, irqchip: Irqchip::Off });
    assert_eq!(c.accel, [kvm, AccelConfig::Jit(JitConfig::default())]);
    assert_eq!(c.cpu.model, "qemu64");
}

#[test]
fn one_and_two_dashes_and_short_names_are_the_same() {
    let c = config("-M q35 -m 1G -kernel k -initrd i -append a~b -S -no-reboot");
    assert_eq!(c, config("--machine type=q35 --m size=1024 --kernel k --initrd i --append a~b --S --no-reboot"));
    assert_eq!((c.machine.kind, c.mem_bytes, c.append.as_str()), (MachineKind::Q35, 1 << 30, "a b"));
    assert!(c.start_paused && c.no_reboot && !c.no_shutdown);
}

#[test]
fn values_may_begin_with_a_dash() {
    assert_eq!(config("-kernel k -append --verbose").append, "--verbose");
    assert_eq!(config("-kernel -k").kernel.as_deref(), Some("-k".as_ref()));
}

#[test]
fn machine_and_accel() {
    let c = config("-machine pc,accel=kvm:tcg -no-hpet -no-acpi");
    let kvm = |self_test| AccelConfig::Kvm(KvmConfig { self_test, irqchip: Irqchip::Off });
    assert_eq!(c.accel, [kvm(true), AccelConfig::Jit(JitConfig::default())]);
    assert_eq!(config("-accel kvm,self-test=off,kernel-irqchip=off -accel interp").accel, [kvm(false), AccelConfig::Interp]);
    let split = AccelConfig::Kvm(KvmConfig { self_test: true, irqchip: Irqchip::Split });
    assert_eq!(config("-accel kvm,kernel-irqchip=split").accel, [split]);
    let on = AccelConfig::Kvm(KvmConfig { self_test: true, irqchip: Irqchip::On });
    assert_eq!(config("-accel kvm,kernel-irqchip=on").accel, [on]);
    assert!(error("-accel kvm,kernel-irqchip=of").contains("did you mean 'off'?"));
    let host = config("-cpu host,-avx").cpu;
    assert_eq!((host.model, host.host, &host.features[..]), ("max", true, &[("avx", false)][..]));
    assert!(!c.machine.hpet && !c.machine.acpi);
    let jit = JitConfig { threshold: Some(7), region: RegionKind::Loop, bisect: Some(3..9), ..Default::default() };
    assert_eq!(config("-accel jit,threshold=7,region=loop,bisect=3..9,thread=single").accel, [AccelConfig::Jit(jit)]);
    assert_eq!(config("-accel interp -machine q35 -machine hpet=off").machine.kind, MachineKind::Q35);
    assert_eq!(error("-machine q36"), "-machine: unknown value 'q36'; did you mean 'q35'?");
    assert_eq!(error("-accel jti"), "-accel: unknown value 'jti'; did you mean 'jit'?");
    assert!(error("-accel jit,treshold=7").ends_with("did you mean 'threshold'?"));
    assert!(error("-accel jit,threshold=99999999999").contains("4294967295"));
    assert!(error("-accel jit,region=big").contains("there is auto, block, loop"));
    assert!(error("-accel jit,bisect=9..3").contains("backwards"));
    assert!(error("-accel interp,threshold=3").contains("unknown property"));
}

#[test]
fn cpu_models_and_features() {
    let c = config("-cpu max,+avx2,-sse3,smep=off").cpu;
    assert_eq!((c.model, c.features), ("max", vec![("avx2", true), ("sse3", false), ("smep", false)]));
    assert_eq!(error("-cpu Zen"), "-cpu: unknown value 'Zen'; try '-cpu help'");
    assert!(error("-cpu Nehalam").ends_with("did you mean 'Nehalem'?"));
    assert_eq!(config("-cpu x86-64-v3").cpu.model, "x86-64-v3");
    assert!(error("-cpu max,+pclmul").ends_with("did you mean 'pclmulqdq'?"));
}

#[test]
fn memory_sizes_do_not_overflow() {
    assert_eq!(config("-S").mem_bytes, 128 << 20);
    assert_eq!(config("-m 1T").mem_bytes, 1 << 40);
    assert_eq!(config("-m 1048577b").mem_bytes, (1 << 20) + 4096);
    assert_eq!(config("-m size=2G").mem_bytes, 2 << 30);
    for bad in ["-m 0", "-m 1K", "-m 3P", "-m 16E", "-m -5", "-m lots", "-m 18446744073709551615b"] {
        assert!(error(bad).starts_with("-m: "), "{}", error(bad));
    }
}

#[test]
fn cpus_are_arranged_as_in_qemu() {
    let smp = |s: &str| {
        let t = config(&format!("-smp {s}")).cpu.topology;
        (t.sockets, t.cores, t.threads)
    };
    assert_eq!(config("-nographic").cpu.topology.cpus(), 1);
    assert_eq!(smp("cpus=1,sockets=1,cores=1,threads=1,maxcpus=1"), (1, 1, 1));
    assert_eq!((smp("4"), smp("64")), ((1, 4, 1), (1, 64, 1)));
    assert_eq!((smp("4,sockets=2"), smp("8,cores=2,threads=2")), ((2, 2, 1), (2, 2, 2)));
    assert_eq!((smp("sockets=2,cores=3"), smp("4,cores=4")), ((2, 3, 1), (1, 4, 1)));
    assert_eq!(error("-smp 65"), "-smp: 65 CPUs: a machine has at most 64");
    assert_eq!(error("-smp 0"), "-smp: cpus=0: must be at least 1");
    assert_eq!(error("-smp 1,cores=4"), "-smp: sockets (0) * cores (4) * threads (1) are not 1 CPUs");
    assert_eq!(error("-smp 3,sockets=2"), "-smp: sockets (2) * cores (1) * threads (1) are not 3 CPUs");
    assert_eq!(error("-smp 2,maxcpus=1"), "-smp: maxcpus=1 is less than cpus=2");
    assert_eq!(error("-smp 2,maxcpus=4"), "-smp maxcpus=4 is not built yet: CPUs cannot be added later; use cpus=4");
    assert!(error("-smp 65535,cores=65535,sockets=65535,threads=65535").contains("are not 65535 CPUs"));
}

#[test]
fn serial_and_monitor_back_ends() {
    let c = config("-nographic");
    assert_eq!((backends(&c), c.monitors.len()), (vec![("serial0", &STDIO, true)], 1));
    let c = config("-serial stdio -monitor none");
    assert_eq!((backends(&c), c.monitors.len()), (vec![("serial0", &STDIO, false)], 0));
    let c = config("-nographic -serial null");
    assert_eq!(backends(&c), [("serial0", &CharBackend::Null, false), ("compat_monitor0", &STDIO, false)]);
    assert_eq!(c.monitors, ["compat_monitor0"]);
    let c = config("-display none");
    assert!(c.serials.iter().all(Option::is_none) && c.monitors.is_empty());
    let c = config("-serial pty -monitor unix:/m,reconnect=2");
    let reconnect = Some(std::time::Duration::from_secs(2));
    let client =
        CharBackend::Socket { address: SocketAddress::Unix("/m".into()), server: false, wait: false, nodelay: false, reconnect };
    assert_eq!(backends(&c), [("serial0", &CharBackend::Pty, false), ("compat_monitor0", &client, false)]);
    let c = config("-nodefaults -serial none -serial file:/tmp/a,b");
    assert_eq!(backends(&c), [("serial1", &CharBackend::File { path: "/tmp/a,b".into(), append: false }, false)]);
    assert_eq!(c.serials, [None, Some("serial1".into()), None, None]);
    let c = config("-serial unix:/s,server=on,wait=off -serial tcp:[::1]:4444 -monitor tcp::5555,server,nowait");
    let socket = |address, server| CharBackend::Socket { address, server, wait: false, nodelay: false, reconnect: None };
    let tcp = |host: &str, port| SocketAddress::Tcp { host: host.into(), port };
    assert_eq!(
        backends(&c),
        [
            ("serial0", &socket(SocketAddress::Unix("/s".into()), true), false),
            ("serial1", &socket(tcp("::1", 4444), false), false),
            ("compat_monitor0", &socket(tcp("", 5555), true), false),
        ]
    );
}

#[test]
fn short_forms_expand_into_the_long_ones() {
    let long = config("-nodefaults -chardev stdio,id=serial0,mux=on -device isa-serial,chardev=serial0 -mon serial0");
    let short = config("-serial mon:stdio -nic none");
    assert_eq!(long, short);
    let c = config(
        "-net none -chardev null,id=n -debugcon chardev:n -device isa-debug-exit -device isa-debug-exit,iobase=0xf4,iosize=4",
    );
    let exit = |iobase, iosize| DeviceSpec::IsaDebugExit { iobase, iosize };
    let con = DeviceSpec::IsaDebugcon { iobase: 0xe9, readback: 0xe9, chardev: "n".into() };
    assert_eq!(c.devices, [con, exit(0x501, 2), exit(0xf4, 4)]);
}

#[test]
fn chardev_mistakes() {
    assert!(error("-serial stdio -monitor stdio").contains("already used"));
    assert!(error("-serial chardev:x").contains("unknown value 'x'"));
    assert!(error("-chardev null,id=x -serial chardev:x -serial chardev:x").contains("mux=on"));
    config("-chardev null,id=x,mux=on -serial chardev:x -monitor chardev:x");
    assert!(error("-chardev null,id=x -chardev null,id=x").contains("another chardev"));
    assert!(error("-chardev null").contains("id is missing"));
    assert!(error("-chardev file,id=f").contains("path is missing"));
    assert!(error("-chardev file,id=f,path=").contains("path is empty"));
    assert!(error("-chardev socket,id=f").contains("path, or host and port"));
    assert!(error("-chardev socket,id=f,port=70000,host=h").contains("between 1 and 65535"));
    assert!(error("-chardev vc,id=f").contains("not built yet"));
    assert!(error("-serial unix:/s,server=on,reconnect=1").contains("clients"));
    assert!(error("-device isa-debug-exit,iosize=0").contains("between 1 and 16"));
    assert!(error("-debugcon null -device isa-debug-exit,iobase=65536").contains("larger than 65535"));
    assert!(error("-serial unix:/s,wait=on").contains("servers"));
    assert!(error("-chardev null,id=9").contains("ids start with a letter"));
    assert!(error("-serial stdoi").contains("did you mean 'stdio'"));
    assert!(error("-serial tcp:nowhere").contains("not HOST:PORT"));
    assert!(error("-serial stdio:x").contains("takes nothing after"));
    assert!(error("-serial null -serial null -serial null -serial null -serial null").contains("only 4"));
}

#[test]
fn logging() {
    let c = config("-d int,in_asm -d unimp -D log -dfilter 0x1000..0x1fff,0x8000+0x10").log;
    assert_eq!(c.items, Item::INT | Item::IN_ASM | Item::UNIMP);
    assert_eq!(c.filter, [0x1000..0x2000, 0x8000..0x8010]);
    assert_eq!(c.file.as_deref(), Some("log".as_ref()));
    assert_eq!(error("-d in_asn"), "-d: unknown value 'in_asn'; did you mean 'in_asm'?");
    assert!(error("-dfilter 5").contains("not a range"));
    assert!(printed("-d help").contains("guest_errors"));
}

#[test]
fn clock_name_and_what_is_accepted() {
    assert_eq!(config("-rtc base=utc,clock=host").rtc, RtcConfig::default());
    assert_eq!(config("-rtc base=2006-06-17T16:01:21").rtc.base, RtcBase::Date(1_150_560_081));
    assert_eq!(config("-rtc base=localtime,clock=vm").rtc, RtcConfig { base: RtcBase::Localtime, clock: RtcClock::Vm });
    assert!(error("-rtc base=tomorrow").contains("not a date"));
    assert_eq!(config("-name a,debug-threads=on -pidfile p").name.as_deref(), Some("a"));
    assert!(config("-perfmap").perfmap && !config("-name a").perfmap);
    config("-boot order=dc,menu=on -boot d -vga none -nic none -net none -parallel none -no-user-config -display none");
    assert!(config("-vga std").machine.vga && config("-display none").machine.vga && !config("-vga none").machine.vga);
    assert!(error("-vga cirrus").contains("'std' and 'none'"));
    assert!(error("-display gtk").contains("only 'none'"));
}

#[test]
fn unknown_options_are_one_line_with_a_hint() {
    assert_eq!(error("-kernal x"), "'-kernal': unknown option; did you mean '-kernel'?");
    assert_eq!(error("--serail x"), "'--serail': unknown option; did you mean '--serial'?");
    assert_eq!(error("-xyzzy"), "'-xyzzy': unknown option; try '-help'");
    assert!(error("-").contains("unknown option"));
    assert_eq!(error("-m"), "-m: needs a value (SIZE)");
    assert_eq!(error("-initrd i"), "-initrd is only of use with -kernel");
    assert!(!error("-machine a\nb\x1b[31m").contains(['\n', '\x1b']));
}

#[test]
fn help_is_there_for_every_list() {
    assert!(printed("-help").contains("-dfilter") && printed("-h") == printed("--help"));
    assert!(printed("--version").starts_with("rhea "));
    for (line, word) in [
        ("-machine help", "q35"),
        ("-M ?", "q35"),
        ("-accel help", "interp"),
        ("-accel jit,help", "threshold"),
        ("-cpu help", "qemu64"),
        ("-device help", "isa-debug-exit"),
        ("-device isa-debugcon,help", "readback"),
        ("-chardev help", "socket"),
        ("-chardev socket,help", "nodelay"),
        ("-serial help", "mon:stdio"),
        ("-monitor ?", "mon:stdio"),
        ("-d ?", "in_asm"),
        ("-m help", "size"),
        ("-smp help", "cpus"),
        ("-rtc help", "base"),
        ("-boot help", "order"),
        ("-display help", "none"),
        ("-vga help", "std"),
    ] {
        assert!(printed(line).contains(word), "{line}: {}", printed(line));
    }
}

fn argument() -> impl Strategy<Value = String> {
    let names: Vec<&str> = table::OPTIONS.iter().map(|o| o.name).collect();
    let words = vec![
        "pc",
        "jit",
        "stdio",
        "null",
        "unix:",
        "tcp:",
        "file:",
        "mon:",
        "chardev:",
        "socket",
        "id=",
        "a",
        "mux=on",
        "host=",
        "port=",
        "server",
        "nowait",
        "path=",
        "isa-serial",
        "isa-debugcon",
        "chardev=",
        "0x",
        "1",
        "99999999999999999999",
        "..",
        "+",
        "-",
        ",",
        ",,",
        "=",
        ":",
        "max",
        "G",
        "base=",
        "help2",
        "é",
        "\n",
        "index=",
        "bisect=",
        "threshold=",
        "order=",
    ];
    prop_oneof![
        prop::sample::select(names).prop_map(|n| format!("-{n}")),
        prop::collection::vec(prop::sample::select(words), 0..8).prop_map(|v| v.concat()),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn random_arguments_never_panic_and_errors_are_one_line(args in prop::collection::vec(argument(), 0..10)) {
        if let Err(e) = parse(args) {
            let text = e.to_string();
            prop_assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
    }

    #[test]
    fn every_option_survives_any_value(n in 0..table::OPTIONS.len(), value in argument()) {
        let _ = parse([format!("-{}", table::OPTIONS[n].name), value]);
    }

    #[test]
    fn chardevs_named_by_a_config_exist(args in prop::collection::vec(argument(), 0..10)) {
        if let Ok(Request::Run(c)) = parse(args) {
            for id in c.serials.iter().flatten().chain(&c.monitors) {
                prop_assert!(c.chardev(id).is_some());
            }
            prop_assert!(c.mem_bytes > 0 && !c.accel.is_empty());
        }
    }
}

#[test]
fn qmp_servers() {
    let c = config("-nographic -qmp unix:/q,server=on,wait=off -qmp-pretty tcp:localhost:4444,server=on");
    assert_eq!(
        c.qmp.iter().map(|q| (&*q.chardev, q.pretty)).collect::<Vec<_>>(),
        [("compat_monitor0", false), ("compat_monitor1", true)]
    );
    assert!(c.monitors.is_empty(), "QMP stands for the default monitor, as in QEMU");
    let c = config("-display none -chardev stdio,id=a -mon a,mode=control");
    assert_eq!((c.qmp[0].chardev.as_str(), c.monitors.len()), ("a", 0));
    assert!(config("-display none -qmp none").qmp.is_empty());
    assert!(error("-chardev stdio,id=a,mux=on -mon a,mode=control").contains("a chardev of its own"));
    assert!(error("-qmp foo:bar").starts_with("-qmp: "));
}

#[test]
fn counted_time() {
    assert_eq!(config("-m 64").icount, None);
    let icount = |s: &str| config(&format!("-m 64 -icount {s}")).icount.unwrap();
    assert_eq!(icount("3"), IcountConfig { shift: Some(3), sleep: true });
    assert_eq!(icount("shift=10,sleep=off,align=off"), IcountConfig { shift: Some(10), sleep: false });
    assert_eq!(icount("auto"), IcountConfig { shift: None, sleep: true });
    let log = config("-m 64 -icount 0 -d int,hash,every=77").log;
    assert_eq!((log.hash_every, log.items), (Some(77), Item::INT | Item::HASH));
    assert_eq!(config("-m 64 -icount 0 -d hash").log.hash_every, Some(1_000_000));
    assert!(!config("-m 64 -d all").log.items.contains(Item::HASH));
}

#[test]
fn drives_by_their_short_and_long_forms() {
    let c = config(
        "-nic none -drive file=a.img,format=raw,if=virtio -drive file=b,if=none,id=b,cache=none,werror=stop,discard=unmap,readonly=on",
    );
    let [a, b] = &c.drives[..] else { panic!("{:?}", c.drives) };
    assert_eq!((a.id.as_str(), a.format, a.read_only, a.werror), ("virtio0", Some(ImageFormat::Raw), false, OnError::Enospc));
    assert_eq!((b.id.as_str(), b.format, b.read_only, b.werror, b.discard), ("b", None, true, OnError::Stop, true));
    assert_eq!((b.cache.write_back, b.cache.direct, b.cache.no_flush), (true, true, false));
    assert!(matches!(&c.devices[..], [DeviceSpec::VirtioBlk { drive, .. }] if drive == "virtio0"));
    let two = "-blockdev driver=file,node-name=f,filename=x.qcow2 -blockdev driver=qcow2,node-name=n,file=f";
    let one = "-blockdev {\"driver\":\"qcow2\",\"node-name\":\"n\",\"file\":{\"driver\":\"file\",\"filename\":\"x.qcow2\"}}";
    let device =
        " -nic none -device virtio-blk-pci,drive=n,addr=1e.0,num-queues=2,queue-size=64,disable-legacy=on,serial=s,rerror=stop";
    let c = config(&format!("{two}{device}"));
    assert_eq!(c.drives, config(&format!("{one}{device}")).drives);
    assert_eq!((c.drives[0].file.to_str(), c.drives[0].rerror), (Some("x.qcow2"), OnError::Stop));
    let slot = PciSlot { addr: Some((0x1e, 0)), legacy: false, modern: true, vectors: None };
    let (drive, serial) = ("n".to_owned(), "s".to_owned());
    let disk = DeviceSpec::VirtioBlk { drive, serial, queues: Some(2), queue_size: 64, config_wce: true, slot, boot_index: None };
    assert_eq!(c.devices, [disk]);
    assert!(config("-snapshot -drive file=a,if=virtio").drives[0].snapshot);
}

#[test]
fn a_device_says_whether_its_drive_has_a_write_cache() {
    for (cache, device, on) in [
        ("", "virtio-blk-pci", true),
        ("", "virtio-blk-pci,write-cache=auto", true),
        ("", "virtio-blk-pci,write-cache=off", false),
        (",cache=writethrough", "virtio-blk-pci", false),
        (",cache=writethrough", "virtio-blk-pci,write-cache=on,config-wce=off", true),
        (",cache.writeback=off", "ide-hd,write-cache=auto", false),
        (",cache=directsync", "ide-hd,write-cache=on", true),
        ("", "ide-hd,write-cache=off", false),
    ] {
        let c = config(&format!("-drive file=a,if=none,id=x{cache} -device {device},drive=x"));
        assert_eq!(c.drives[0].cache.write_back, on, "{cache} {device}");
        assert!(
            !c.devices
                .iter()
                .any(|d| matches!(d, DeviceSpec::VirtioBlk { config_wce, .. } if *config_wce == device.contains("wce")))
        );
    }
}

#[test]
fn addresses_lead_to_chardevs_named_or_described() {
    let targets = |line: &str| {
        let c = config(line);
        let NetdevKind::User(u) = &c.netdevs[0].kind else { panic!("{line}") };
        let ids: Vec<String> = c.chardevs.iter().map(|c| c.id.clone()).filter(|id| !id.starts_with("serial")).collect();
        (u.guestfwd.iter().map(|g| g.to.clone()).collect::<Vec<_>>(), ids)
    };
    let to = |id: &str| ForwardTarget::Chardev(id.into());
    let named =
        targets("-chardev null,id=c -netdev user,id=n,guestfwd=tcp:10.0.2.100:80-chardev:c -device virtio-net-pci,netdev=n");
    assert_eq!(named, (vec![to("c")], vec!["c".into()]));
    let made = targets(
        "-nic user,guestfwd=:10.0.2.100:80-file:out,guestfwd=:10.0.2.100:81-tcp:127.0.0.1:5,guestfwd=:10.0.2.100:82-null",
    );
    let (a, b) = ("guestfwd.tcp.80", "guestfwd.tcp.82");
    let tcp = ForwardTarget::Tcp("127.0.0.1:5".parse().unwrap());
    assert_eq!(made, (vec![to(a), tcp, to(b)], vec![a.to_owned(), b.to_owned()]));
    for (line, words) in [
        ("-nic user,guestfwd=:10.0.2.100:80-chardev:x", "unknown value 'x'"),
        ("-chardev null,id=c -serial chardev:c -nic user,guestfwd=:10.0.2.100:80-chardev:c", "share it with mux=on"),
        ("-nic user,guestfwd=:10.0.2.100:80-none", "not [tcp]:ADDR:PORT-"),
        ("-nic user,guestfwd=:10.0.2.100:80-tpc:x:1", "unknown value 'tpc'"),
        ("-nic user,guestfwd=:10.0.2.100:80", "not [tcp]:ADDR:PORT-"),
    ] {
        assert!(error(line).contains(words), "{line}: {}", error(line));
    }
}

#[test]
fn drives_that_cannot_be() {
    for (line, words) in [
        ("-drive file=a,readonly=on", "IDE disks cannot be read-only"),
        ("-hda a -drive file=b,index=0", "ide.0 unit 0 is taken"),
        ("-drive file=b,index=4", "index"),
        ("-M q35 -drive file=b,bus=0,unit=1", "unit"),
        ("-device ide-cd,bus=ide.7", "bus"),
        ("-hda a -hdb b -cdrom c -hdd d -drive file=e", "no place is free"),
        ("-drive if=virtio", "property file is missing"),
        ("-drive file=a,if=none,id=x -drive file=b,if=none,id=x", "another drive has this id"),
        ("-device virtio-blk-pci", "property drive is missing"),
        ("-device virtio-blk-pci,drive=y -drive file=a,if=none,id=x", "unknown value 'y'"),
        ("-drive file=a,if=none,id=x -device virtio-blk-pci,drive=x -device virtio-blk-pci,drive=x", "has another user"),
        ("-drive file=a,if=none,id=x -device virtio-blk-pci,drive=x,queue-size=100", "a power of two"),
        ("-drive file=a,if=none,id=x -device virtio-blk-pci,drive=x,addr=1f", "addr"),
        ("-drive file=a,if=none,id=x -device virtio-blk-pci,drive=x,disable-legacy=on,disable-modern=on", "neither"),
        ("-blockdev driver=qcow2,node-name=n,file=f", "unknown value 'f'"),
        ("-blockdev {\"driver\":", "-blockdev"),
        ("-icount 1 -device virtio-rng-pci", "exact instruction counts"),
    ] {
        assert!(error(line).contains(words), "{line}: {}", error(line));
    }
}

#[test]
fn ide_drives_have_places_as_in_qemu() {
    let list = |line: &str| {
        let c = config(line);
        let place = |d: &DeviceSpec| match d {
            DeviceSpec::Ide { cd, drive, place, .. } => Some((*place, *cd, drive.clone().unwrap_or_default())),
            _ => None,
        };
        (c.devices.iter().filter_map(place).collect::<Vec<_>>(), c.drives)
    };
    let (devices, drives) = list("disk.img -cdrom a,b.iso -drive file=c,if=ide");
    assert_eq!(devices, [(0, false, "ide0".into()), (1, false, "ide2".into()), (2, true, "ide1".into())]);
    assert_eq!((drives[0].file.to_str(), drives[1].file.to_str()), (Some("disk.img"), Some("a,b.iso")));
    assert!(drives[1].read_only && !drives[0].read_only);
    let (devices, drives) = list("-M q35 -drive file=a,if=none,id=x -device ide-cd,drive=x,bus=ide.4 -device ide-cd");
    assert_eq!(devices, [(0, true, String::new()), (4, true, "x".into())]);
    assert!(drives[0].read_only);
    let (devices, _) = list("-hdd a -device ide-cd,bus=ide.1");
    assert_eq!(devices, [(2, true, String::new()), (3, false, "ide0".into())]);
}
