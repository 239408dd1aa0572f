//! Calendar and register encoding of the real-time clock (MC146818A "Time, Calendar and Alarm Locations").

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;

/// Data mode of register B.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub binary: bool,
    pub hours_24: bool,
}

impl Format {
    pub fn encode(self, v: u8) -> u8 {
        if self.binary { v } else { ((v / 10 % 10) << 4) | (v % 10) }
    }

    pub fn decode(self, v: u8) -> u8 {
        if self.binary { v } else { (v >> 4) * 10 + (v & 15) }
    }

    /// Hour 0..=23 as the register has it: in 12-hour mode bit 7 is PM and midnight is 12.
    pub fn encode_hour(self, h: u8) -> u8 {
        if self.hours_24 {
            return self.encode(h);
        }
        let twelve = (h + 11) % 12 + 1;
        self.encode(twelve) | if h >= 12 { 0x80 } else { 0 }
    }

    pub fn decode_hour(self, v: u8) -> u8 {
        if self.hours_24 {
            return self.decode(v);
        }
        self.decode(v & 0x7f) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
    }
}

/// The eight time registers as the guest sees them, in this order.
pub(super) const SECONDS: usize = 0;
pub(super) const MINUTES: usize = 1;
pub(super) const HOURS: usize = 2;
pub(super) const WEEKDAY: usize = 3;
pub(super) const DAY_OF_MONTH: usize = 4;
pub(super) const MONTH: usize = 5;
pub(super) const YEAR: usize = 6;
pub(super) const CENTURY: usize = 7;
pub(super) type TimeRegs = [u8; 8];

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar; months and days beyond their range carry over.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is a year's last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, y_of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let day_of_year = (153 * m + 2) / 5 + day - 1;
    era * 146_097 + y_of_era * 365 + y_of_era / 4 - y_of_era / 100 + day_of_year - 719_468
}

fn date_from_days(days: i64) -> (i64, u8, u8) {
    let z = days + 719_468;
    let (era, d) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let y = (d - d / 1460 + d / 36_524 - d / 146_096) / 365;
    let day_of_year = d - (365 * y + y / 4 - y / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * m + 2) / 5 + 1) as u8;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (era * 400 + y + i64::from(month <= 2), month as u8, day)
}

/// Day of the week, 0 is Sunday. 1970-01-01 was a Thursday.
fn weekday(days: i64) -> u8 {
    (days + 4).rem_euclid(7) as u8
}

/// Registers for Unix time `secs`; `weekday_shift` (0..=6) is how far the guest's week is from the calendar's.
pub(super) fn to_regs(secs: i64, weekday_shift: u8, f: Format) -> TimeRegs {
    let (days, of_day) = (secs.div_euclid(DAY), secs.rem_euclid(DAY));
    let (year, month, day) = date_from_days(days);
    let mut r = [0; 8];
    r[SECONDS] = f.encode((of_day % 60) as u8);
    r[MINUTES] = f.encode((of_day / 60 % 60) as u8);
    r[HOURS] = f.encode_hour((of_day / 3600) as u8);
    r[WEEKDAY] = f.encode((weekday(days) + weekday_shift) % 7 + 1);
    r[DAY_OF_MONTH] = f.encode(day);
    r[MONTH] = f.encode(month);
    r[YEAR] = f.encode(year.rem_euclid(100) as u8);
    r[CENTURY] = f.encode(year.div_euclid(100).rem_euclid(100) as u8);
    r
}

/// Unix time and weekday shift of registers. What is out of range carries over; no value is refused.
pub(super) fn from_regs(r: &TimeRegs, f: Format) -> (i64, u8) {
    let v = |i: usize| i64::from(f.decode(r[i]));
    let month = v(MONTH).clamp(1, 12);
    let days = days_from_date(v(CENTURY) * 100 + v(YEAR), month, v(DAY_OF_MONTH));
    let secs = days * DAY + i64::from(f.decode_hour(r[HOURS])) * 3600 + v(MINUTES) * 60 + v(SECONDS);
    let shift = (v(WEEKDAY) - 1 - i64::from(weekday(secs.div_euclid(DAY)))).rem_euclid(7);
    (secs, shift as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Format; 4] = [
        Format { binary: false, hours_24: true },
        Format { binary: false, hours_24: false },
        Format { binary: true, hours_24: true },
        Format { binary: true, hours_24: false },
    ];

    #[test]
    fn known_dates() {
        let r = to_regs(1_709_210_096, 0, ALL[0]); // Thursday 2024-02-29 12:34:56
        assert_eq!(r, [0x56, 0x34, 0x12, 0x05, 0x29, 0x02, 0x24, 0x20]);
        assert_eq!(to_regs(946_684_799, 0, ALL[0]), [0x59, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19]);
        assert_eq!(to_regs(0, 0, ALL[1])[HOURS], 0x12, "midnight is 12 AM");
        assert_eq!(to_regs(12 * 3600, 0, ALL[1])[HOURS], 0x92, "noon is 12 PM");
    }

    #[test]
    fn registers_and_time_convert_both_ways() {
        let mut t = -2_208_988_800; // 1900
        while t < 32_503_680_000 {
            for f in ALL {
                assert_eq!(from_regs(&to_regs(t, 3, f), f), (t, 3), "{t}");
            }
            t += 12_345_679;
        }
    }
}
