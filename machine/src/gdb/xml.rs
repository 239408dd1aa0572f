//! Documents that a client reads: target description, threads, memory map (GDB manual, "Target Descriptions", "Thread List
//! Format", "Memory Map Format").

use super::layout::Arch;
use std::fmt::Write;

/// Fields of flag registers: name and bit.
const CR0: &[(&str, u8)] = &[
    ("PE", 0),
    ("MP", 1),
    ("EM", 2),
    ("TS", 3),
    ("ET", 4),
    ("NE", 5),
    ("WP", 16),
    ("AM", 18),
    ("NW", 29),
    ("CD", 30),
    ("PG", 31),
];
const CR4: &[(&str, u8)] = &[
    ("VME", 0),
    ("PVI", 1),
    ("TSD", 2),
    ("DE", 3),
    ("PSE", 4),
    ("PAE", 5),
    ("MCE", 6),
    ("PGE", 7),
    ("PCE", 8),
    ("OSFXSR", 9),
    ("OSXMMEXCPT", 10),
    ("UMIP", 11),
    ("LA57", 12),
    ("VMXE", 13),
    ("SMXE", 14),
    ("FSGSBASE", 16),
    ("PCIDE", 17),
    ("OSXSAVE", 18),
    ("SMEP", 20),
    ("SMAP", 21),
    ("PKE", 22),
];
const EFER: &[(&str, u8)] = &[("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11), ("SVME", 12), ("FFXSR", 14)];
const EFLAGS: &[(&str, u8)] = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
const MXCSR: &[(&str, u8)] = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];

/// Types of a feature's own.
fn types(feature: &str) -> String {
    let flags = |id: &str, size: u8, fields: &[(&str, u8)]| {
        let field = |(n, b): &(&str, u8)| format!("<field name=\"{n}\" start=\"{b}\" end=\"{b}\"/>");
        format!("<flags id=\"{id}\" size=\"{size}\">{}</flags>\n", fields.iter().map(field).collect::<String>())
    };
    match feature {
        "org.gnu.gdb.i386.core" => flags("i386_eflags", 4, EFLAGS),
        "org.gnu.gdb.i386.sse" => {
            let vectors = [
                ("v4f", "ieee_single", 4),
                ("v2d", "ieee_double", 2),
                ("v16i8", "int8", 16),
                ("v8i16", "int16", 8),
                ("v4i32", "int32", 4),
                ("v2i64", "int64", 2),
            ];
            let vector = |(id, t, n): &(&str, &str, u8)| format!("<vector id=\"{id}\" type=\"{t}\" count=\"{n}\"/>\n");
            let names = ["v4_float", "v2_double", "v16_int8", "v8_int16", "v4_int32", "v2_int64"];
            let field = |(n, v): (&str, &(&str, &str, u8))| format!("<field name=\"{n}\" type=\"{}\"/>", v.0);
            let fields: String = names.into_iter().zip(&vectors).map(field).collect();
            let union = format!("<union id=\"vec128\">{fields}<field name=\"uint128\" type=\"uint128\"/></union>\n");
            vectors.iter().map(vector).collect::<String>() + &union + &flags("i386_mxcsr", 4, MXCSR)
        }
        "rhea.i386.system" => flags("cr0_flags", 8, CR0) + &flags("cr4_flags", 8, CR4) + &flags("efer_flags", 8, EFER),
        _ => String::new(),
    }
}

/// `target.xml`.
pub fn target(arch: Arch) -> String {
    let mut x = format!(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n<architecture>{}</architecture>\n",
        arch.name()
    );
    let mut number = 0;
    for f in arch.features() {
        let _ = writeln!(x, "<feature name=\"{}\">\n{}", f.name, types(f.name).trim_end());
        for r in &f.regs {
            let group = match f.name {
                "rhea.i386.system" => " group=\"system\"",
                _ if r.kind == "i387_ext" || r.name.starts_with('f') && r.kind == "int" => " group=\"float\"",
                _ => "",
            };
            let (name, bits, kind) = (&r.name, r.bits, r.kind);
            let _ = writeln!(x, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"{group}/>");
            number += 1;
        }
        x.push_str("</feature>\n");
    }
    x + "</target>\n"
}

/// Threads by what is said of each.
pub fn threads(says: &[String]) -> String {
    let one = |(i, s): (usize, &String)| format!("<thread id=\"{:x}\" core=\"{i}\" name=\"CPU#{i}\">{s}</thread>\n", i + 1);
    let list: String = says.iter().enumerate().map(one).collect();
    format!("<?xml version=\"1.0\"?>\n<threads>\n{list}</threads>\n")
}

/// All there can be: addresses are linear, and what is mapped changes.
pub fn memory_map() -> String {
    const HALF: &str = "0x8000000000000000";
    let half = |start| format!("<memory type=\"ram\" start=\"{start}\" length=\"{HALF}\"/>\n");
    format!("<?xml version=\"1.0\"?>\n<memory-map>\n{}{}</memory-map>\n", half("0x0"), half(HALF))
}

/// A part of a document, as `qXfer` asks for it: `offset,length` in hexadecimal.
pub fn part(document: &str, range: &[u8], most: usize) -> Option<Vec<u8>> {
    let (offset, length) = super::packet::split(range, b',');
    let (offset, length) = (super::packet::number(offset)?, super::packet::number(length)?);
    let bytes = document.as_bytes();
    let start = usize::try_from(offset).ok().filter(|o| *o <= bytes.len())?;
    let end = start.saturating_add(usize::try_from(length).unwrap_or(most).min(most)).min(bytes.len());
    let mark = if end == bytes.len() { b'l' } else { b'm' };
    Some([&[mark], &bytes[start..end]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole() {
        let doc = target(Arch::X64);
        let (mut got, mut last) = (Vec::<u8>::new(), false);
        while !last {
            let p = part(&doc, format!("{:x},100", got.len()).as_bytes(), 64).unwrap();
            assert!(p.len() <= 65);
            last = p[0] == b'l';
            got.extend(&p[1..]);
        }
        assert_eq!(got, doc.as_bytes());
        assert_eq!(part(&doc, b"ffffffffffffffff,1", 64), None);
        assert_eq!(part("ab", b"2,ffffffffffffffff", 64), Some(b"l".to_vec()));
    }
}
