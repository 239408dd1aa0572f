//! Text memory, cursor, fonts, palette, planes, status, saved state.

use super::*;
use vm_core::testing::contract;

fn vga() -> Vga {
    Vga::new(Clock::new())
}

fn out(v: &mut Vga, port: u16, value: u8) {
    let region = PORTS.iter().position(|(p, n)| (*p..p + n).contains(&port)).unwrap();
    PortIo::write(v, region as u32, port - PORTS[region].0, 1, value.into());
}

fn inp(v: &mut Vga, port: u16) -> u8 {
    let region = PORTS.iter().position(|(p, n)| (*p..p + n).contains(&port)).unwrap();
    PortIo::read(v, region as u32, port - PORTS[region].0, 1) as u8
}

fn index(v: &mut Vga, port: u16, i: u8, value: u8) {
    out(v, port, i);
    out(v, port + 1, value);
}

fn poke(v: &mut Vga, pa: u64, bytes: &[u8]) {
    for (a, b) in (pa - MEMORY..).zip(bytes) {
        Mmio::write(v, 0, a, 1, (*b).into());
    }
}

#[test]
fn saved_state_contract() {
    contract(vga, PORTS.len() as u32, MEMORY_LEN);
}

#[test]
fn power_on_is_an_empty_text_screen() {
    let v = vga();
    let text = v.text().unwrap();
    assert_eq!((text.len(), text[0].len()), (25, 80));
    assert!(text.iter().flatten().all(|c| *c == b' '));
    let p = v.picture().unwrap();
    assert_eq!((p.width, p.height, p.rgb.len()), (720, 400, 720 * 400 * 3));
    // Only the cursor is seen: two lines at the top left, grey.
    let lit = p.rgb.as_chunks::<3>().0.iter().filter(|d| **d == [170; 3]).count();
    assert_eq!(lit, 18);
    assert!(p.to_ppm().starts_with(b"P6\n720 400\n255\n\0"));
}

#[test]
fn characters_are_seen_where_they_are_written() {
    let mut v = vga();
    poke(&mut v, 0xb8000 + 160 * 2 + 6, b"A\x1f");
    assert_eq!((v.peek(0xb8146), v.peek(0xb8147), v.peek(0xb8148)), (Some(b'A'), Some(0x1f), Some(b' ')));
    assert_eq!(Mmio::read(&mut v, 0, 0x18146, 2), 0x1f41);
    assert_eq!((v.peek(0xb0000), v.peek(0x9ffff), v.peek(0xc0000)), (None, None, None));
    assert_eq!(v.text().unwrap()[2][3], b'A');
    let p = v.picture().unwrap();
    let dot = |x: usize, y: usize| p.rgb.as_chunks::<3>().0[(32 + y) * 720 + 27 + x];
    for (y, row) in font::glyphs()[usize::from(b'A')].iter().enumerate() {
        for x in 0..9 {
            let on = x < 8 && row >> (7 - x) & 1 == 1;
            // White on blue.
            assert_eq!(dot(x, y), if on { [255; 3] } else { [0, 0, 170] }, "{x} {y}");
        }
    }
}

#[test]
fn cursor_start_address_and_screen_off() {
    let mut v = vga();
    poke(&mut v, 0xb8000 + 160, b"x\x07");
    index(&mut v, 0x3d4, 0xd, 80);
    assert_eq!(v.text().unwrap()[0][0], b'x', "the screen starts one row further down");
    index(&mut v, 0x3d4, 0xf, 85);
    let grey = |v: &Vga| v.picture().unwrap().rgb.as_chunks::<3>().0[13 * 720 + 45] == [170; 3];
    assert!(grey(&v));
    index(&mut v, 0x3d4, 0xa, 0x20);
    assert!(!grey(&v));
    index(&mut v, 0x3c4, 1, 0x20);
    assert!(v.picture().unwrap().rgb.iter().all(|b| *b == 0));
    // Protected CRTC registers keep their value.
    index(&mut v, 0x3d4, 1, 39);
    assert_eq!(inp(&mut v, 0x3d5), 79);
    index(&mut v, 0x3d4, 0x11, 0x0e);
    index(&mut v, 0x3d4, 1, 39);
    assert_eq!(v.text().unwrap()[0].len(), 40);
}

#[test]
fn a_font_is_loaded_through_plane_2() {
    let mut v = vga();
    for (port, i, x) in [(0x3c4, 2, 4), (0x3c4, 4, 7), (0x3ce, 4, 2), (0x3ce, 5, 0), (0x3ce, 6, 4)] {
        index(&mut v, port, i, x);
    }
    assert_eq!(v.peek(0xa0000 + 0x41 * 32 + 5), Some(font::glyphs()[0x41][5]));
    poke(&mut v, 0xa0000 + 0x41 * 32, &[0xff; 16]);
    for (port, i, x) in [(0x3c4, 2, 3), (0x3c4, 4, 2), (0x3ce, 4, 0), (0x3ce, 5, 0x10), (0x3ce, 6, 0xe)] {
        index(&mut v, port, i, x);
    }
    poke(&mut v, 0xb8000, b"A\x07");
    let p = v.picture().unwrap();
    assert_eq!(p.rgb.as_chunks::<3>().0[..9], [[[170; 3]; 8].as_slice(), &[[0; 3]]].concat());
}

#[test]
fn write_modes_and_latches() {
    let mut v = vga();
    for (port, i, x) in [(0x3c4, 2, 0xf), (0x3c4, 4, 6), (0x3ce, 5, 2), (0x3ce, 6, 5)] {
        index(&mut v, port, i, x);
    }
    assert!(v.picture().is_none(), "a graphics mode");
    // Mode 2: a colour; the bit mask keeps the rest as it was latched.
    poke(&mut v, 0xa0000, &[0b0101]);
    assert_eq!(v.vram.bytes(0), [0xff, 0, 0xff, 0]);
    Mmio::read(&mut v, 0, 0, 1);
    index(&mut v, 0x3ce, 8, 0x0f);
    poke(&mut v, 0xa0000, &[0b0010]);
    assert_eq!(v.vram.bytes(0), [0xf0, 0x0f, 0xf0, 0]);
    // Mode 1 copies the latches.
    Mmio::read(&mut v, 0, 0, 1);
    index(&mut v, 0x3ce, 5, 1);
    poke(&mut v, 0xa0005, &[0]);
    assert_eq!(v.vram.bytes(5), [0xf0, 0x0f, 0xf0, 0]);
    // Mode 0: rotation and XOR; mode 3: set/reset through the rotated byte.
    for (i, x) in [(5, 0), (8, 0xff), (3, 0x18 | 4)] {
        index(&mut v, 0x3ce, i, x);
    }
    Mmio::read(&mut v, 0, 5, 1);
    poke(&mut v, 0xa0005, &[0x0f]);
    assert_eq!(v.vram.bytes(5), [0, 0xff, 0, 0xf0]);
    // Reading by comparison: all planes as the colour says.
    for (i, x) in [(5, 8), (2, 0b1010), (7, 0xf)] {
        index(&mut v, 0x3ce, i, x);
    }
    assert_eq!(Mmio::read(&mut v, 0, 5, 1), 0xf0);
}

#[test]
fn palette_and_dac() {
    let mut v = vga();
    poke(&mut v, 0xb8000, b"\xdb\x02");
    let first = |v: &Vga| v.picture().unwrap().rgb[..3].to_vec();
    assert_eq!(first(&v), [0, 170, 0]);
    // Colour 2 of the DAC, read back.
    for (port, x) in [(0x3c8, 2), (0x3c9, 63), (0x3c9, 32), (0x3c9, 0), (0x3c7, 2)] {
        out(&mut v, port, x);
    }
    assert_eq!((inp(&mut v, 0x3c7), [0; 3].map(|_: u8| inp(&mut v, 0x3c9))), (3, [63, 32, 0]));
    assert_eq!(first(&v), [255, 130, 0]);
    // The palette can be written while it is not in use; a read of the status makes the next write an index.
    out(&mut v, 0x3c0, 2);
    inp(&mut v, 0x3da);
    for x in [2, 1, 0x20] {
        out(&mut v, 0x3c0, x);
    }
    assert_eq!(first(&v), [0, 0, 170]);
    inp(&mut v, 0x3da);
    for x in [0x22, 4] {
        out(&mut v, 0x3c0, x);
    }
    assert_eq!(first(&v), [0, 0, 170]);
}

#[test]
fn status_follows_the_beam() {
    let clock = Clock::new();
    let mut v = Vga::new(clock.clone());
    for (ns, want) in [(0, 0), (LINE_NS - 1, 1), (LINE_NS * 405, 1), (LINE_NS * 413, 9), (LINE_NS * LINES, 0)] {
        clock.set(ns);
        assert_eq!(inp(&mut v, 0x3da), want, "{ns}");
    }
    // Monochrome addresses: only with the bit of the miscellaneous output.
    assert_eq!(inp(&mut v, 0x3ba), 0xff);
    out(&mut v, 0x3c2, 0x66);
    assert_eq!((inp(&mut v, 0x3da), inp(&mut v, 0x3ba)), (0xff, 0));
}

#[test]
fn forged_state_is_refused() {
    let mut v = vga();
    poke(&mut v, 0xb8000, b"hi");
    let saved = v.save();
    for (from, to) in [("\"dac_part\":0", "\"dac_part\":9"), ("\"vram\":[[0", "\"vram\":[[999"), ("6869", "zz69")] {
        let text = serde_json::to_string(&saved).unwrap();
        let forged = text.replacen(from, to, 1);
        assert_ne!(forged, text, "{from}");
        assert!(v.load(&serde_json::from_str(&forged).unwrap()).is_err(), "{from}");
    }
    assert_eq!(v.save(), saved);
}
