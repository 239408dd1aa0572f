//! Keyboard scan codes: set 1, set 2, and the 8042's translation between them (IBM PS/2 Technical Reference, "Keyboard").

/// A key, by its set 1 make code: 0x01..=0x7f, the same with 0xe000 for keys with the E0 prefix, or `PAUSE`.
pub type Key = u16;

/// Sends E1 1D 45 E1 9D C5 in set 1; has no break code.
pub const PAUSE: Key = 0xe11d;
/// Sends its own shift around it.
pub const PRINT_SCREEN: Key = 0xe037;

/// Longest sequence one key event sends.
pub const MAX_SEQUENCE: usize = 8;

/// Set 1 code for each set 2 code below 80h (8042 command byte bit 6).
const TRANSLATION: [u8; 0x80] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, //
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, //
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, //
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, //
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, //
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, //
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, //
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, //
];

/// Set 2 code to set 1 code as the 8042 does it; codes without a counterpart (FA, AA, E0, E1 among them) pass.
pub fn translate(code: u8) -> u8 {
    match code {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => TRANSLATION.get(usize::from(code)).copied().unwrap_or(code),
    }
}

/// Set 2 code of the key whose set 1 make code is `code` (1..=7Fh).
fn set2_of(code: u8) -> Option<u8> {
    match code {
        // F7 and Alt-SysRq: the table's own entries for these values belong to no key.
        0x41 => Some(0x83),
        0x54 => Some(0x84),
        _ => TRANSLATION.iter().position(|&c| c == code).map(|i| i as u8),
    }
}

/// The bytes a keyboard in `set` (1 or 2) sends for a key event; `None` if there is no such key.
pub fn sequence(key: Key, down: bool, set: u8) -> Option<Vec<u8>> {
    let code = (key & 0x7f) as u8;
    match key {
        PAUSE if !down => Some(vec![]),
        PAUSE if set == 1 => Some(vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]),
        PAUSE => Some(vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]),
        PRINT_SCREEN => {
            let (first, second) = if down { (0x2a, 0x37) } else { (0x37, 0x2a) };
            let mut all = sequence(0xe100 | first, down, set)?;
            all.extend(sequence(0xe100 | second, down, set).into_iter().flatten());
            Some(all)
        }
        // E1xx is the inner form of an E0 key, free of the special cases above.
        0x01..=0x7f | 0xe001..=0xe07f | 0xe101..=0xe17f => {
            let mut all = if key >= 0xe000 { vec![0xe0] } else { vec![] };
            match (set, down) {
                (1, true) => all.push(code),
                (1, false) => all.push(code | 0x80),
                (_, true) => all.push(set2_of(code)?),
                (_, false) => all.extend([0xf0, set2_of(code)?]),
            }
            Some(all)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_2_translated_is_set_1() {
        for key in (1..0x80).chain(0xe001..0xe080).filter(|&k| k != PRINT_SCREEN && set2_of(k as u8 & 0x7f).is_some()) {
            for down in [true, false] {
                let mut brk = 0;
                let mut got = vec![];
                for b in sequence(key, down, 2).unwrap() {
                    if b == 0xf0 {
                        brk = 0x80;
                    } else {
                        got.push(translate(b) | brk);
                    }
                }
                assert_eq!(got, sequence(key, down, 1).unwrap(), "key {key:#x}");
            }
        }
    }

    #[test]
    fn known_sequences() {
        assert_eq!(sequence(0x1e, true, 2).unwrap(), [0x1c], "A");
        assert_eq!(sequence(0x41, false, 2).unwrap(), [0xf0, 0x83], "F7");
        assert_eq!(sequence(0xe048, false, 2).unwrap(), [0xe0, 0xf0, 0x75], "up");
        assert_eq!(sequence(PRINT_SCREEN, true, 2).unwrap(), [0xe0, 0x12, 0xe0, 0x7c]);
        assert_eq!(sequence(PRINT_SCREEN, false, 2).unwrap(), [0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12]);
        assert_eq!(sequence(PRINT_SCREEN, false, 1).unwrap(), [0xe0, 0xb7, 0xe0, 0xaa]);
        for key in 0..=u16::MAX {
            for set in [1, 2] {
                assert!(sequence(key, true, set).is_none_or(|s| s.len() <= MAX_SEQUENCE));
            }
        }
    }
}
