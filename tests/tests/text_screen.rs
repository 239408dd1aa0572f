//! A Multiboot kernel of a few instructions with a module, and the text screen that it writes to, as the monitor shows it.

use iced_x86::code_asm::*;
use rhea_tests::boot::{Guest, engines, file};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const LOAD: u32 = 0x10_0000;
const HEADER: u32 = 32;
const COM1: u32 = 0x3f8;
const MAGIC: u32 = 0x1bad_b002;

/// Says `M` if it was entered as Multiboot asks, then the first byte of its module; then writes `Hi` on the screen and waits.
fn kernel() -> Vec<u8> {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        let (mut wrong, mut wait) = (a.create_label(), a.create_label());
        a.mov(edx, COM1)?;
        a.cmp(eax, 0x2bad_b002u32 as i32)?;
        a.jne(wrong)?;
        a.mov(al, i32::from(b'M'))?;
        a.out(dx, al)?;
        // The first module's start.
        a.mov(esi, dword_ptr(ebx + 24))?;
        a.mov(esi, dword_ptr(esi))?;
        a.mov(al, byte_ptr(esi))?;
        a.out(dx, al)?;
        a.mov(dword_ptr(0xb_8000), 0x0769_0748)?;
        a.set_label(&mut wrong)?;
        a.mov(al, i32::from(b'.'))?;
        a.out(dx, al)?;
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.jmp(wait)?;
        a.assemble(u64::from(LOAD + HEADER))
    };
    let flags = 1 << 16;
    let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(flags);
    let header = [MAGIC, flags, sum, LOAD, LOAD, 0, 0, LOAD + HEADER];
    let mut image: Vec<u8> = header.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.extend(assemble().expect("the kernel assembles"));
    image
}

#[test]
fn the_monitor_shows_what_a_kernel_writes() {
    let (kernel, module) = (file("multiboot.bin", &kernel()), file("module.bin", b"?!"));
    let picture = file("screen.ppm", b"");
    let initrd = format!("{module} some words");
    for (engine, accel) in engines() {
        let args = [accel, &["-m", "16M", "-nographic", "-kernel", &kernel, "-initrd", &initrd]].concat();
        let mut g = Guest::start(&format!("text-screen-{engine}"), &args);
        g.wait_for("M?.", LIMIT);
        g.send("\x01cxp /4xb 0xb8000\n");
        g.wait_for("0x48 0x07 0x69 0x07", LIMIT);
        g.send(&format!("screendump {picture}\n"));
        g.wait_for("(rhea)", LIMIT);
        g.send("info status\n");
        g.wait_for("running", LIMIT);
        let ppm = std::fs::read(&picture).expect("the picture was written");
        assert!(ppm.starts_with(b"P6\n720 400\n255\n"));
        // Something is seen of the first character.
        let dots = &ppm[ppm.len() - 720 * 400 * 3..];
        assert!((0..16).any(|y| dots[y * 720 * 3..][..24].contains(&170)));
        g.send("quit\n");
        g.expect_exit(0, LIMIT);
    }
}

#[test]
fn without_a_vga_there_is_nothing_to_show() {
    let kernel = file("multiboot-bare.bin", &kernel());
    let mut g = Guest::start("no-vga", &["-m", "16M", "-nographic", "-vga", "none", "-kernel", &kernel]);
    g.wait_for(".", LIMIT);
    g.send("\x01cscreendump /nowhere\n");
    g.wait_for("there is no VGA", LIMIT);
    g.send("xp /1xb 0xb8000\n");
    g.wait_for("annot access memory", LIMIT);
    g.send("quit\n");
    g.expect_exit(0, LIMIT);
}
