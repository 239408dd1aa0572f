//! Keys by QEMU's names (`sendkey`), as scan codes of set 1 (IBM PS/2 Technical Reference, "Keyboard").

use super::command::shown;
use devices::input::scancode::{Key, PAUSE, PRINT_SCREEN};

/// Keys pressed at once at most.
pub const MAX_KEYS: usize = 16;
/// How long keys are held unless it is said, and at most, in milliseconds.
const HOLD: u64 = 100;
const MAX_HOLD: u64 = 60_000;

/// Names in the order of their codes, from 1 on.
const PLAIN: &str = "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p bracket_left bracket_right ret ctrl \
                     a s d f g h j k l semicolon apostrophe grave_accent shift backslash z x c v b n m comma dot slash shift_r \
                     kp_multiply alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock kp_7 kp_8 kp_9 \
                     kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal sysrq";

const OTHERS: [(&str, Key); 49] = [
    ("less", 0x56),
    ("<", 0x56),
    ("asterisk", 0x37),
    ("f11", 0x57),
    ("f12", 0x58),
    ("kp_equals", 0x59),
    ("hiragana", 0x70),
    ("katakanahiragana", 0x70),
    ("ro", 0x73),
    ("henkan", 0x79),
    ("muhenkan", 0x7b),
    ("yen", 0x7d),
    ("kp_comma", 0x7e),
    ("audioprev", 0xe010),
    ("audionext", 0xe019),
    ("kp_enter", 0xe01c),
    ("ctrl_r", 0xe01d),
    ("audiomute", 0xe020),
    ("calculator", 0xe021),
    ("audioplay", 0xe022),
    ("audiostop", 0xe024),
    ("volumedown", 0xe02e),
    ("volumeup", 0xe030),
    ("ac_home", 0xe032),
    ("kp_divide", 0xe035),
    ("print", PRINT_SCREEN),
    ("alt_r", 0xe038),
    ("home", 0xe047),
    ("up", 0xe048),
    ("pgup", 0xe049),
    ("left", 0xe04b),
    ("right", 0xe04d),
    ("end", 0xe04f),
    ("down", 0xe050),
    ("pgdn", 0xe051),
    ("insert", 0xe052),
    ("delete", 0xe053),
    ("meta_l", 0xe05b),
    ("meta_r", 0xe05c),
    ("compose", 0xe05d),
    ("menu", 0xe05d),
    ("power", 0xe05e),
    ("sleep", 0xe05f),
    ("wake", 0xe063),
    ("ac_bookmarks", 0xe066),
    ("ac_refresh", 0xe067),
    ("ac_forward", 0xe069),
    ("ac_back", 0xe06a),
    ("mail", 0xe06c),
];

/// A key by its name, or by its number: the set 1 code, with bit 7 for those with the prefix E0.
fn key(name: &str) -> Option<Key> {
    if name == "pause" {
        return Some(PAUSE);
    }
    if let Some(digits) = name.strip_prefix("0x") {
        let code = Key::from_str_radix(digits, 16).ok().filter(|c| *c <= 0xff)?;
        return (code & 0x7f != 0).then_some(if code & 0x80 != 0 { 0xe000 | code & 0x7f } else { code });
    }
    let plain = (1..).zip(PLAIN.split_ascii_whitespace()).find(|(_, n)| *n == name).map(|(code, _)| code);
    plain.or_else(|| OTHERS.iter().find(|(n, _)| *n == name).map(|(_, k)| *k))
}

/// `sendkey`'s arguments: keys, joined by `-`, and for how many milliseconds they are held.
pub fn parse(args: &str) -> Result<(Vec<Key>, u64), String> {
    let mut words = args.split_whitespace();
    let names = words.next().ok_or("keys must be named, as in 'sendkey ctrl-alt-f1'")?;
    let hold = match words.next() {
        None => HOLD,
        Some(w) => w.parse().ok().filter(|ms| *ms <= MAX_HOLD).ok_or(format!("keys are held for 0 to {MAX_HOLD} ms"))?,
    };
    if words.next().is_some() {
        return Err("keys are joined by '-'".into());
    }
    if names.split('-').count() > MAX_KEYS {
        return Err(format!("at most {MAX_KEYS} keys are pressed at once"));
    }
    let one = |name| key(name).ok_or_else(|| format!("unknown key: '{}'", shown(name)));
    Ok((names.split('-').map(one).collect::<Result<_, _>>()?, hold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::input::scancode::sequence;

    #[test]
    fn names_and_numbers_are_scan_codes() {
        assert_eq!(parse("ctrl-alt-f1"), Ok((vec![0x1d, 0x38, 0x3b], HOLD)));
        assert_eq!(parse(" sysrq-kp_0  5"), Ok((vec![0x54, 0x52], 5)));
        assert_eq!(parse("0x1e-0xcb-delete-pause"), Ok((vec![0x1e, 0xe04b, 0xe053, PAUSE], HOLD)));
        let names = PLAIN.split_ascii_whitespace().chain(OTHERS.iter().map(|o| o.0)).chain(["pause"]);
        for name in names {
            let k = key(name).expect(name);
            assert!([1, 2].into_iter().all(|set| sequence(k, true, set).is_some()), "{name}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let says = |args: &str| parse(args).expect_err(args);
        assert_eq!(says("ctrl-nosuch"), "unknown key: 'nosuch'");
        assert_eq!(says("a-\x1b[2J"), "unknown key: '?[2J'");
        assert!(says("").contains("named") && says("a b").contains("ms") && says("a 60001").contains("60000"));
        assert!(says("a 1 2").contains("joined") && says(&["a"; 17].join("-")).contains("16"));
        assert!(["-", "a-", "0x80", "0x100", "0x", "A"].iter().all(|a| says(a).starts_with("unknown key")));
    }
}
