//! Values of options: sizes, numbers, switches, ranges and dates, in QEMU's notation. Nothing here can overflow.

use std::ops::Range;

/// Parses a size: decimal (with a fraction if a suffix follows) or 0x hex, with suffix B K M G T P or E of either case;
/// without a suffix it is counted in `unit` bytes.
pub fn size(s: &str, unit: u64) -> Result<u64, String> {
    let (digits, unit) = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
        Some(_) => return number(s)?.checked_mul(unit).ok_or_else(|| "too large".into()),
        None => match s.char_indices().last() {
            Some((i, c)) if c.is_ascii_alphabetic() => (&s[..i], suffix(c).ok_or("unknown suffix, not one of B K M G T P E")?),
            _ => (s, unit),
        },
    };
    let (whole, frac) = digits.split_once('.').unwrap_or((digits, ""));
    let digits_only = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits_only(whole) || !digits_only(frac) || frac.len() > 12 {
        return Err("not a size".into());
    }
    let whole: u64 = whole.parse().map_err(|_| "too large")?;
    let scale = 10u128.pow(frac.len() as u32);
    let frac: u128 = if frac.is_empty() { 0 } else { frac.parse().map_err(|_| "not a size")? };
    let bytes = u128::from(whole) * u128::from(unit) + frac * u128::from(unit) / scale;
    u64::try_from(bytes).map_err(|_| "too large".into())
}

fn suffix(c: char) -> Option<u64> {
    let power = "BKMGTPE".find(c.to_ascii_uppercase())?;
    Some(1 << (10 * power))
}

/// Parses an unsigned number, decimal or 0x hex.
pub fn number(s: &str) -> Result<u64, String> {
    let (digits, radix) = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
        Some(d) => (d, 16),
        None => (s, 10),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("not a number".into());
    }
    u64::from_str_radix(digits, radix).map_err(|e| match e.kind() {
        std::num::IntErrorKind::PosOverflow => "too large".into(),
        _ => "not a number".into(),
    })
}

/// Parses a switch: on, yes, true, y; off, no, false, n.
pub fn switch(s: &str) -> Result<bool, String> {
    match s {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err("neither 'on' nor 'off'".into()),
    }
}

/// Parses `LO..HI` into a half-open range; LO must not be above HI.
pub fn span(s: &str) -> Result<Range<u64>, String> {
    let (lo, hi) = s.split_once("..").ok_or("not a range LO..HI")?;
    let (lo, hi) = (number(lo)?, number(hi)?);
    if lo > hi { Err("the range runs backwards".into()) } else { Ok(lo..hi) }
}

/// Parses one range of `-dfilter`: start..end (end included), start+length or start-length (ending at start).
pub fn address_range(s: &str) -> Result<Range<u64>, String> {
    let (first, last) = if let Some((a, b)) = s.split_once("..") {
        (number(a)?, number(b)?)
    } else if let Some((a, len)) = s.split_once('+') {
        let (a, len) = (number(a)?, number(len)?);
        (a, a.saturating_add(len.checked_sub(1).ok_or("the range is empty")?))
    } else if let Some((a, len)) = s.split_once('-') {
        let (a, len) = (number(a)?, number(len)?);
        (a.saturating_sub(len.checked_sub(1).ok_or("the range is empty")?), a)
    } else {
        return Err("not a range (start..end, start+length or start-length)".into());
    };
    if first > last { Err("the range runs backwards".into()) } else { Ok(first..last.saturating_add(1)) }
}

/// Parses `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS` (UTC) into seconds since 1970.
pub fn date(s: &str) -> Result<i64, String> {
    let bad = || String::from("not a date (YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS)");
    let field = |t: Option<&str>, len: usize, range: std::ops::RangeInclusive<i64>| {
        let t = t.filter(|t| t.len() == len && t.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad)?;
        let n: i64 = t.parse().map_err(|_| bad())?;
        if range.contains(&n) { Ok(n) } else { Err(bad()) }
    };
    let (day, time) = s.split_once('T').unwrap_or((s, "00:00:00"));
    let mut d = day.split('-');
    let (y, m) = (field(d.next(), 4, 1970..=9999)?, field(d.next(), 2, 1..=12)?);
    let dd = field(d.next(), 2, 1..=days_in_month(y, m))?;
    let mut t = time.split(':');
    let (hh, mm, ss) = (field(t.next(), 2, 0..=23)?, field(t.next(), 2, 0..=59)?, field(t.next(), 2, 0..=59)?);
    if d.next().is_some() || t.next().is_some() {
        return Err(bad());
    }
    let days: i64 = (1970..y).map(|y| if leap(y) { 366 } else { 365 }).sum::<i64>()
        + (1..m).map(|m| days_in_month(y, m)).sum::<i64>()
        + (dd - 1);
    Ok(days * 86400 + hh * 3600 + mm * 60 + ss)
}

fn leap(y: i64) -> bool {
    y % 4 == 0 && (y % 100 != 0 || y % 400 == 0)
}

fn days_in_month(y: i64, m: i64) -> i64 {
    match m {
        2 => 28 + i64::from(leap(y)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_never_overflow() {
        let m = |s| size(s, 1 << 20);
        assert_eq!(m("128"), Ok(128 << 20));
        assert_eq!(m("1T"), Ok(1 << 40));
        assert_eq!(m("1.5g"), Ok(3 << 29));
        assert_eq!(m("0x10"), Ok(16 << 20));
        assert_eq!(m("4096b"), Ok(4096));
        for bad in
            ["", "G", "-1", "1Q", "1.G.", "16E", "99999999999999999999", "18446744073709551615", "0xffffffffffffffff", "1é", "é"]
        {
            assert!(m(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn address_ranges_have_inclusive_ends() {
        assert_eq!(address_range("0x1000..0x1fff"), Ok(0x1000..0x2000));
        assert_eq!(address_range("0x1000+0x200"), Ok(0x1000..0x1200));
        assert_eq!(address_range("0x1000-0x200"), Ok(0xe01..0x1001));
        assert_eq!(address_range("0xffffffffffffffff+1"), Ok(u64::MAX..u64::MAX));
        for bad in ["", "5", "5+0", "5-0", "6..5", "a..b", "1+", "+1"] {
            assert!(address_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_are_real_days() {
        assert_eq!(date("1970-01-01"), Ok(0));
        assert_eq!(date("2006-06-17T16:01:21"), Ok(1_150_560_081));
        assert_eq!(date("2000-02-29"), Ok(951_782_400));
        for bad in
            ["", "2001-02-29", "2001-13-01", "1969-12-31", "2001-1-1", "2001-01-01T24:00:00", "2001-01-01T", "2001-01-01-01"]
        {
            assert!(date(bad).is_err(), "{bad}");
        }
    }
}
