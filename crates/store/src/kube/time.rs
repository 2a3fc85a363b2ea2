//! Times as Kubernetes writes them: `2026-11-21T12:00:00Z`.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 3600;

/// Seconds since 1970.
pub(super) fn parse(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let is_date = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 60 || !text.ends_with('Z') {
        return None;
    }
    Some(days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

/// A moment, in whole seconds.
pub(super) fn format(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = date(seconds / DAY);
    let second = seconds % DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// A moment, in microseconds, as Leases and Events want it.
pub(super) fn format_micros(moment: SystemTime) -> String {
    let micros = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_micros());
    let whole = format(moment);
    format!("{}.{micros:06}Z", whole.trim_end_matches('Z'))
}

/// Days since 1970. Years begin in March here, so that a leap day is the last of its year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_years = year * 365 + year / 4 - year / 100 + year / 400;
    let of_months = (month * 153 + 2) / 5;
    // From the first of March of the year 0 to the first of January of 1970.
    of_years + of_months + day - 1 - 719_468
}

fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let century = days / 146_097;
    let of_century = days % 146_097;
    let year = (of_century - of_century / 1460 + of_century / 36_524 - of_century / 146_096) / 365;
    let of_year = of_century - (year * 365 + year / 4 - year / 100);
    let month = (of_year * 5 + 2) / 153;
    let day = of_year - (month * 153 + 2) / 5 + 1;
    let year = year + century * 400;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn known_moments() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_262_400, "2026-11-21T12:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!((format(at(seconds)).as_str(), parse(text)), (text, Some(seconds)));
        }
        assert_eq!(format_micros(at(1) + Duration::from_micros(7)), "1970-01-01T00:00:01.000007Z");
        assert_eq!(parse("2026-11-21T12:00:00.123456Z"), Some(1_795_262_400), "a fraction is passed over");
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in
            ["", "2026-11-21", "2026-13-21T12:00:00Z", "2026-11-21T12:00:00+01:00", "ä026-11-21T12:00:00Z"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(seconds in 0u64..250_000_000_000) {
            prop_assert_eq!(parse(&format(at(seconds))), Some(seconds));
        }
    }
}
