//! The protocol's clock: microseconds since 2000-01-01 00:00:00 UTC.
//!
//! Comes in: the Int64 of Begin, Commit and the frames. Goes out: the same, Unix microseconds, or RFC 3339
//! text with six digits. Always holds: every i64 has a text, equal times have equal texts, and nothing here
//! reads a clock. The calendar is the proleptic Gregorian one, as PostgreSQL's. Manual: "Date/Time Types".

use std::fmt;

/// A moment, in microseconds since 2000-01-01 00:00:00 UTC. Leap seconds do not exist here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// 2000-01-01 in Unix microseconds.
const EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;
const SECOND_MICROS: i64 = 1_000_000;
const DAY_MICROS: i64 = 86_400 * SECOND_MICROS;

impl Timestamp {
    /// Microseconds since 1970-01-01 UTC. The last 30 years before the end of i64 all give its end.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_UNIX_MICROS)
    }

    /// The moment that is `micros` after 1970-01-01 UTC. The first 30 years of i64 all give its beginning.
    pub fn from_unix_micros(micros: i64) -> Self {
        Timestamp(micros.saturating_sub(EPOCH_UNIX_MICROS))
    }

    /// Appends `2026-11-21T04:55:30.123456Z`. Years outside 0 to 9999 get a sign and as many digits as they
    /// need, at least four: `-0044-03-15T…`, `+12026-01-01T…`.
    pub fn write_rfc3339(&self, out: &mut Vec<u8>) {
        let Civil { year, month, day, hour, minute, second, micros } = self.civil();
        match year {
            0..=9999 => write_digits::<4>(out, year.unsigned_abs()),
            _ => {
                out.push(if year < 0 { b'-' } else { b'+' });
                match year.unsigned_abs() {
                    wide @ 10_000..=99_999 => write_digits::<5>(out, wide),
                    wide @ 100_000.. => write_digits::<6>(out, wide),
                    narrow => write_digits::<4>(out, narrow),
                }
            }
        }
        for (mark, value) in [(b'-', month), (b'-', day), (b'T', hour), (b':', minute), (b':', second)] {
            out.push(mark);
            write_digits::<2>(out, value);
        }
        out.push(b'.');
        write_digits::<6>(out, micros);
        out.push(b'Z');
    }

    fn civil(self) -> Civil {
        let days = self.0.div_euclid(DAY_MICROS);
        let in_day = self.0.rem_euclid(DAY_MICROS).unsigned_abs();
        let (year, month, day) = civil_from_days(days);
        let seconds = in_day / 1_000_000;
        Civil {
            year,
            month,
            day,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            micros: in_day % 1_000_000,
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Civil { year, month, day, hour, minute, second, micros } = self.civil();
        match year {
            0..=9999 => write!(f, "{year:04}")?,
            _ => write!(f, "{year:+05}")?,
        }
        write!(f, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

struct Civil {
    year: i64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    micros: u64,
}

/// Year, month and day of the day that is `days` after 2000-01-01, for the ±106 751 991 days of an i64.
///
/// Years are counted from 1 March, so that the leap day is their last and every month begins at a day which
/// a linear formula gives: (153 m + 2) / 5, for m = 0 in March.
fn civil_from_days(days: i64) -> (i64, u64, u64) {
    const ERA_DAYS: i64 = 146_097; // 400 years
    const MARCH_0000_DAYS: i64 = 730_425; // from 0000-03-01 to 2000-01-01
    let days = days + MARCH_0000_DAYS;
    let era = days.div_euclid(ERA_DAYS);
    let day_of_era = days.rem_euclid(ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA_DAYS - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let (month, next_year) = if march_month < 10 { (march_month + 3, 0) } else { (march_month - 9, 1) };
    (era * 400 + year_of_era + next_year, month.unsigned_abs(), day.unsigned_abs())
}

fn write_digits<const N: usize>(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(value % 10).expect("a remainder of ten is a digit");
        value /= 10;
    }
    out.extend_from_slice(&digits);
}

/// The clock of this machine.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(timestamp: Timestamp) -> String {
        let mut out = Vec::new();
        timestamp.write_rfc3339(&mut out);
        String::from_utf8(out).expect("digits and signs")
    }

    #[test]
    fn known_moments() {
        // The Unix seconds are those of `date -u -d ... +%s`.
        for (unix_micros, expected) in [
            (1_795_236_930_123_456, "2026-11-21T04:55:30.123456Z"),
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (4_107_542_399_000_007, "2100-02-28T23:59:59.000007Z"),
            (-62_167_219_200_000_000, "0000-01-01T00:00:00.000000Z"),
            (-62_167_219_200_000_001, "-0001-12-31T23:59:59.999999Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
            (253_402_300_800_000_000, "+10000-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(text(Timestamp::from_unix_micros(unix_micros)), expected);
        }
        assert_eq!(text(Timestamp(0)), "2000-01-01T00:00:00.000000Z");
        // PostgreSQL's own infinities: never a commit's time, but no reason to panic.
        assert_eq!(text(Timestamp(i64::MAX)), "+294277-01-09T04:00:54.775807Z");
        assert_eq!(text(Timestamp(i64::MIN)), "-290278-12-22T19:59:05.224192Z");
        assert_eq!(Timestamp(i64::MAX).unix_micros(), i64::MAX);
        assert_eq!(Timestamp::from_unix_micros(i64::MIN), Timestamp(i64::MIN));
    }

    /// Every day of 1200 years, against a calendar that only counts.
    #[test]
    fn every_day_of_three_eras() {
        let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let mut days = -365 * 600 - 145; // 1400-01-01: 600 years before, 145 of them leap
        for year in 1400..2600 {
            let february = if leap(year) { 29 } else { 28 };
            for (month, length) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
                for day in 1..=length {
                    assert_eq!(civil_from_days(days), (year, month, day));
                    days += 1;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_moment_has_the_text_that_format_gives(micros: i64) {
            prop_assert_eq!(text(Timestamp(micros)), Timestamp(micros).to_string());
        }

        #[test]
        fn text_of_four_digit_years_sorts_as_time(a in -63_113_904_000_000_000..252_455_616_000_000_000_i64, b in -63_113_904_000_000_000..252_455_616_000_000_000_i64) {
            prop_assert_eq!(text(Timestamp(a)).cmp(&text(Timestamp(b))), a.cmp(&b));
            prop_assert_eq!(text(Timestamp(a)).len(), 27);
        }

        #[test]
        fn unix_micros_round_trip(micros in i64::MIN + EPOCH_UNIX_MICROS..=i64::MAX) {
            prop_assert_eq!(Timestamp::from_unix_micros(micros).unix_micros(), micros);
        }
    }
}
