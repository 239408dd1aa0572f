//! `x` and `xp`: guest memory in QEMU's formats, `/<count><format><size> address`.

use super::MonitorTarget;
use super::command::shown;
use std::fmt::Write;

/// Most units one command shows.
pub const MAX_UNITS: u64 = 4096;
/// Longest x86 instruction in bytes.
const MAX_INSTRUCTION: usize = 15;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Virtual,
    Physical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub count: u64,
    /// One of `x d u o c i`.
    pub kind: char,
    /// Bytes in one unit: 1, 2, 4, 8.
    pub size: usize,
}

/// Runs `x` or `xp` with its arguments.
pub fn run(args: &str, space: Space, target: &dyn MonitorTarget) -> String {
    let parsed = split(args).and_then(|(format, address)| Ok((parse_format(format)?, parse_address(address, target)?)));
    match parsed {
        Err(why) => format!("{why}\n"),
        Ok((f, _)) if f.kind == 'i' && space == Space::Physical => "xp: format i is only available in x\n".into(),
        Ok((f, _)) if f.count > MAX_UNITS => format!("at most {MAX_UNITS} units are shown at once\n"),
        Ok((f, va)) if f.kind == 'i' => instructions(f.count, va, target),
        Ok((f, addr)) => units(f, addr, space, target),
    }
}

/// The format (without its slash) and the address.
fn split(args: &str) -> Result<(&str, &str), String> {
    let (format, address) = match args.strip_prefix('/') {
        Some(rest) => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        None => ("", args),
    };
    if address.trim().is_empty() { Err("an address is missing".into()) } else { Ok((format, address.trim())) }
}

pub fn parse_format(text: &str) -> Result<Format, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, letters) = text.split_at(digits);
    // A number too large to parse is too large to show.
    let count = if number.is_empty() { 1 } else { number.parse().unwrap_or(u64::MAX) };
    let (mut kind, mut size) = (None, None);
    for c in letters.chars() {
        match c {
            'x' | 'd' | 'u' | 'o' | 'c' | 'i' => kind = Some(c),
            'b' => size = Some(1),
            'h' => size = Some(2),
            'w' => size = Some(4),
            'g' => size = Some(8),
            _ => return Err(format!("invalid format '{}'", shown(text))),
        }
    }
    let kind = kind.unwrap_or('x');
    Ok(Format { count, kind, size: size.unwrap_or(if kind == 'c' { 1 } else { 4 }) })
}

/// A sum of terms: hexadecimal with 0x, decimal, `$register`; `+` and `-` between them, modulo 2^64.
pub fn parse_address(text: &str, target: &dyn MonitorTarget) -> Result<u64, String> {
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let bad = || format!("invalid address '{}'", shown(text));
    let (mut sum, mut rest, mut negative) = (0u64, compact.as_str(), false);
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, tail) = rest.split_at(end);
        let value = match (term.strip_prefix("0x").or(term.strip_prefix("0X")), term.strip_prefix('$')) {
            (Some(hex), _) if !hex.is_empty() => u64::from_str_radix(hex, 16).ok(),
            (_, Some(name)) => target.register(&name.to_ascii_lowercase()),
            _ => term.parse().ok(),
        };
        let value = value.ok_or_else(bad)?;
        sum = if negative { sum.wrapping_sub(value) } else { sum.wrapping_add(value) };
        if tail.is_empty() {
            return Ok(sum);
        }
        negative = tail.starts_with('-');
        rest = &tail[1..];
    }
}

fn read(space: Space, addr: u64, buf: &mut [u8], target: &dyn MonitorTarget) -> bool {
    match space {
        Space::Virtual => target.read_virt(addr, buf),
        Space::Physical => target.read_phys(addr, buf),
    }
}

/// Units per line: 16 bytes, 8 if they are shown one by one.
fn per_line(f: Format) -> u64 {
    let bytes = if f.size == 1 { 8 } else { 16 };
    (bytes / f.size).max(1) as u64
}

fn units(f: Format, start: u64, space: Space, target: &dyn MonitorTarget) -> String {
    let mut out = String::new();
    for i in 0..f.count {
        let addr = start.wrapping_add(i * f.size as u64);
        let mut bytes = [0; 8];
        if !read(space, addr, &mut bytes[..f.size], target) {
            let _ = writeln!(out, "{}Cannot access memory", if i % per_line(f) == 0 { "" } else { "\n" });
            return out;
        }
        if i % per_line(f) == 0 {
            let _ = write!(out, "{}{addr:016x}:", if i == 0 { "" } else { "\n" });
        }
        let _ = write!(out, " {}", unit(f, u64::from_le_bytes(bytes)));
    }
    if f.count > 0 {
        out.push('\n');
    }
    out
}

/// One unit as text; widths are those of the largest value of its size.
fn unit(f: Format, v: u64) -> String {
    let bits = 8 * f.size as u32;
    let signed = (v << (64 - bits)) as i64 >> (64 - bits);
    let decimal = match f.size {
        1 => 3,
        2 => 5,
        4 => 10,
        _ => 20,
    };
    match f.kind {
        'd' => format!("{signed:>decimal$}"),
        'u' => format!("{v:>decimal$}"),
        'o' if v == 0 => format!("{v:>width$}", width = bits.div_ceil(3) as usize),
        'o' => format!("{:>width$}", format!("0{v:o}"), width = bits.div_ceil(3) as usize),
        'c' => quoted(v as u8),
        _ => format!("{v:#0width$x}", width = 2 * f.size + 2),
    }
}

fn quoted(c: u8) -> String {
    match c {
        b'\'' => "'\\''".into(),
        b'\\' => "'\\\\'".into(),
        b'\n' => "'\\n'".into(),
        b'\r' => "'\\r'".into(),
        0x20..=0x7e => format!("'{}'", char::from(c)),
        _ => format!("'\\x{c:02x}'"),
    }
}

fn instructions(count: u64, mut va: u64, target: &dyn MonitorTarget) -> String {
    let mut out = String::new();
    for _ in 0..count {
        let mut code = [0; MAX_INSTRUCTION];
        // Near the end of what is mapped, the bytes that are there must do.
        let Some(n) = (1..=MAX_INSTRUCTION).rev().find(|&n| target.read_virt(va, &mut code[..n])) else {
            let _ = writeln!(out, "{va:016x}: Cannot access memory");
            return out;
        };
        let Some((len, text)) = target.disassemble(va, &code[..n]) else {
            let _ = writeln!(out, "{va:016x}: disassembly is not available");
            return out;
        };
        let len = len.clamp(1, n);
        let bytes: Vec<_> = code[..len].iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "0x{va:08x}:  {:<24} {text}", bytes.join(" "));
        va = va.wrapping_add(len as u64);
    }
    out
}
