//! Durations as Go writes them, sizes with their unit, and counts.

use super::{ByteRate, RateLimit};

/// The largest burst of a rate limit.
const MAX_BURST: usize = 1_000_000;

/// Bytes in a kibibyte.
pub(super) const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte.
pub(super) const MIB: u64 = 1 << 20;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// The longest duration that a flag takes: it keeps sums of several far from overflow.
const MAX_DURATION_MS: u64 = 24 * HOUR_MS;
/// The largest size that a flag takes, for the same reason.
const MAX_SIZE_BYTES: u64 = 1 << 50;

/// Reads a duration of at least `min_ms` and at most 24 hours, in milliseconds.
pub(super) fn duration(min_ms: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        let ms = duration_ms(text)?;
        if ms < min_ms {
            return Err(format!("{text:?} is too short; it must be at least {min_ms}ms"));
        }
        if ms > MAX_DURATION_MS {
            return Err(format!("{text:?} is too long; it must be at most 24h"));
        }
        Ok(ms)
    }
}

/// Reads a size of at least `min` bytes.
pub(super) fn size(min: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        let bytes = size_bytes(text)?;
        if bytes < min {
            return Err(format!("{text:?} is too little; it must be at least {}", show_bytes(min)));
        }
        if bytes > MAX_SIZE_BYTES {
            return Err(too_large(text, &show_bytes(MAX_SIZE_BYTES)));
        }
        Ok(bytes)
    }
}

/// Reads a whole number from 1 to `max`.
pub(super) fn count(max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{text:?} is not a number; write a whole number from 1 to {max}"));
        }
        match text.parse() {
            Ok(0) => Err(format!("{text:?} is too few; it must be at least 1")),
            Ok(number) if number <= max => Ok(number),
            _ => Err(too_large(text, &max.to_string())),
        }
    }
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrOff<T> {
    On(T),
    Off,
}

impl<T> OrOff<T> {
    pub(super) fn on(self) -> Option<T> {
        match self {
            Self::On(limit) => Some(limit),
            Self::Off => None,
        }
    }
}

/// Reads a whole number from 1 to `max`, or `off`.
pub(super) fn count_or_off(max: usize) -> impl Fn(&str) -> Result<OrOff<usize>, String> + Clone {
    let count = count(max);
    move |text| match text {
        "off" => Ok(OrOff::Off),
        _ => count(text).map(OrOff::On).map_err(|why| format!("{why}, or off")),
    }
}

/// Reads a burst and the time for one more, or `off`.
pub(super) fn rate(text: &str) -> Result<OrOff<RateLimit>, String> {
    const HOW: &str = "write 20/6s for 20 at once and one more every 6 seconds, or off";
    if text == "off" {
        return Ok(OrOff::Off);
    }
    let Some((burst, refill)) = text.split_once('/') else {
        return Err(format!("{text:?} has no slash; {HOW}"));
    };
    let burst = count(MAX_BURST)(burst).map_err(|why| format!("{why}; {HOW}"))?;
    let refill_ms = duration(1)(refill).map_err(|why| format!("{why}; {HOW}"))?;
    Ok(OrOff::On(RateLimit { burst: burst as u32, refill_ms }))
}

/// The least that a rate of bytes and its burst may be: with less, a message of the greatest length
/// would keep its connection waiting for longer than peers wait.
const MIN_RATE_BYTES: u64 = KIB;
/// The most: sums of thousandths of it stay far from overflow.
const MAX_RATE_BYTES: u64 = 1 << 40;

/// Reads bytes per second and a burst, by default what one second brings; or `off`.
pub(super) fn byte_rate(text: &str) -> Result<OrOff<ByteRate>, String> {
    const HOW: &str =
        "write 1MiB/s for 1 MiB a second, 1MiB/s,8MiB for as much and 8 MiB at once, or off";
    if text == "off" {
        return Ok(OrOff::Off);
    }
    let (rate, burst) = text.split_once(',').map_or((text, None), |(r, b)| (r, Some(b)));
    let Some(per_second) = rate.strip_suffix("/s") else {
        return Err(format!("{text:?} does not say how much a second; {HOW}"));
    };
    let bytes = |text: &str| {
        let bytes = size(MIN_RATE_BYTES)(text).map_err(|why| format!("{why}; {HOW}"))?;
        match bytes {
            0..=MAX_RATE_BYTES => Ok(bytes),
            _ => Err(too_large(text, "1TiB")),
        }
    };
    let bytes_per_s = bytes(per_second)?;
    let burst_bytes = burst.map_or(Ok(bytes_per_s), bytes)?;
    Ok(OrOff::On(ByteRate { bytes_per_s, burst_bytes }))
}

/// A rate of bytes as flags take it.
pub(super) fn show_byte_rate(ByteRate { bytes_per_s, burst_bytes }: ByteRate) -> String {
    let per_second = format!("{}/s", show_exact_bytes(bytes_per_s));
    if burst_bytes == bytes_per_s {
        per_second
    } else {
        format!("{per_second},{}", show_exact_bytes(burst_bytes))
    }
}

/// A size for people: in the largest binary unit that leaves at least 1, rounded down.
pub(super) fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..KIB => format!("{bytes} bytes"),
        KIB..MIB => format!("{}KiB", bytes / KIB),
        _ => format!("{}MiB", bytes / MIB),
    }
}

/// A size as flags take it, in mebibytes or kibibytes where these are exact.
pub(super) fn show_exact_bytes(bytes: u64) -> String {
    let unit = if bytes.is_multiple_of(MIB) { MIB } else { KIB };
    if bytes.is_multiple_of(unit) {
        format!("{}{}", bytes / unit, if unit == MIB { "MiB" } else { "KiB" })
    } else {
        bytes.to_string()
    }
}

/// A duration as flags take it.
pub(super) fn show_duration(ms: u64) -> String {
    let parts = [
        (ms / HOUR_MS, "h"),
        (ms % HOUR_MS / MINUTE_MS, "m"),
        (ms % MINUTE_MS / SECOND_MS, "s"),
        (ms % SECOND_MS, "ms"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let shown: String = parts.map(|(count, unit)| format!("{count}{unit}")).collect();
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

/// A rate limit as flags take it.
pub(super) fn show_rate(RateLimit { burst, refill_ms }: RateLimit) -> String {
    format!("{burst}/{}", show_duration(refill_ms))
}

fn duration_ms(text: &str) -> Result<u64, String> {
    const HOW: &str = "write 30s or 500ms";
    if text.starts_with('-') {
        return Err(format!("{text:?} is not a duration of 0 or more; {HOW}"));
    }
    if text.is_empty() {
        return Err(format!("the value is empty; {HOW}"));
    }
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_while(rest, is_number);
        let (unit, after) = split_while(after, |c| !is_number(c));
        rest = after;
        let unit_ms = match unit {
            _ if number.is_empty() => return Err(format!("{text:?} is not a duration; {HOW}")),
            "ms" => 1,
            "s" => SECOND_MS,
            "m" => MINUTE_MS,
            "h" => HOUR_MS,
            "" => return Err(format!("{text:?} has no unit; {HOW}")),
            _ => {
                return Err(format!(
                    "{text:?} has the unknown unit {unit:?}; use ms, s, m or h, as in 30s or 500ms"
                ));
            }
        };
        let part = times(number, unit_ms).map_err(|flaw| match flaw {
            Flaw::NotANumber => format!("{text:?} is not a duration; {HOW}"),
            Flaw::NotWhole => format!("{text:?} is not a whole number of milliseconds; {HOW}"),
            Flaw::TooLarge => format!("{text:?} is too long; it must be at most 24h"),
        })?;
        total_ms = total_ms.saturating_add(part);
    }
    Ok(total_ms)
}

fn size_bytes(text: &str) -> Result<u64, String> {
    const HOW: &str = "write bytes, or a unit as in 64KiB, 256MiB, 1GiB, 64kB, 256MB, 1GB";
    let (number, unit) = split_while(text, is_number);
    if number.is_empty() {
        return Err(format!("{text:?} is not a size; {HOW}"));
    }
    let unit_bytes = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => {
            let (binary, decimal) = match unit.as_bytes().first() {
                Some(b'k' | b'K') => ("KiB", "kB"),
                Some(b'm' | b'M') => ("MiB", "MB"),
                Some(b'g' | b'G') => ("GiB", "GB"),
                Some(b't' | b'T') => ("TiB", "TB"),
                _ => return Err(format!("{text:?} has the unknown unit {unit:?}; {HOW}")),
            };
            return Err(format!(
                "{text:?} has an unclear unit; write {number}{binary} or {number}{decimal}"
            ));
        }
    };
    times(number, unit_bytes).map_err(|flaw| match flaw {
        Flaw::NotANumber => format!("{text:?} is not a size; {HOW}"),
        Flaw::NotWhole => format!("{text:?} is not a whole number of bytes; {HOW}"),
        Flaw::TooLarge => too_large(text, &show_bytes(MAX_SIZE_BYTES)),
    })
}

fn too_large(text: &str, max: &str) -> String {
    format!("{text:?} is too large; it must be at most {max}")
}

enum Flaw {
    NotANumber,
    NotWhole,
    TooLarge,
}

/// `number`, which may have a decimal fraction, times `unit`; exactly or not at all.
fn times(number: &str, unit: u64) -> Result<u64, Flaw> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    if number.starts_with('.') || number.ends_with('.') || fraction.contains('.') {
        return Err(Flaw::NotANumber);
    }
    let whole: u64 = whole.parse().map_err(|_| Flaw::TooLarge)?;
    let mut total = whole.checked_mul(unit).ok_or(Flaw::TooLarge)?;
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).map_err(|_| Flaw::NotWhole)?;
        let scale = 10_u128.checked_pow(digits).ok_or(Flaw::NotWhole)?;
        let scaled = fraction.parse::<u128>().ok().and_then(|f| f.checked_mul(unit.into()));
        let scaled = scaled.filter(|f| f % scale == 0).ok_or(Flaw::NotWhole)?;
        let part = u64::try_from(scaled / scale).map_err(|_| Flaw::TooLarge)?;
        total = total.checked_add(part).ok_or(Flaw::TooLarge)?;
    }
    Ok(total)
}

fn is_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

fn split_while(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("24h", MAX_DURATION_MS),
            ("1.5s", 1_500),
            ("1.50h", 5_400_000),
            ("0.001s", 1),
            ("1h0m0s", 3_600_000),
        ] {
            assert_eq!(duration(1)(text), Ok(ms), "{text}");
        }
        assert_eq!(duration(0)("0s"), Ok(0));
    }

    #[test]
    fn refused_durations() {
        for (text, says) in [
            ("", "the value is empty"),
            ("0s", "too short"),
            ("0ms", "too short"),
            ("30", "\"30\" has no unit; write 30s or 500ms"),
            ("0", "has no unit"),
            ("1m30", "has no unit"),
            ("-5s", "of 0 or more"),
            ("s", "not a duration"),
            ("+5s", "not a duration"),
            (" 5s", "not a duration"),
            ("1..5s", "not a duration"),
            (".5s", "not a duration"),
            ("5.s", "not a duration"),
            ("1.2.3s", "not a duration"),
            ("5s ", "unknown unit \"s \""),
            ("5d", "unknown unit \"d\""),
            ("5S", "unknown unit"),
            ("5us", "unknown unit"),
            ("٣s", "not a duration"),
            ("0.5ms", "whole number of milliseconds"),
            ("0.00000000000000000000000000000000000000000001s", "whole number"),
            ("24h1ms", "too long"),
            ("99999999999999999999h", "too long"),
            ("18446744073709551615h", "too long"),
            ("18446744073709551615ms1h", "too long"),
        ] {
            let refusal = duration(1)(text).unwrap_err();
            assert!(refusal.contains(says), "{text:?}: {refusal}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1048576", MIB),
            ("2097152B", 2 * MIB),
            ("256MiB", 256 * MIB),
            ("2048KiB", 2 * MIB),
            ("1GiB", 1 << 30),
            ("1TiB", 1 << 40),
            ("1.5GiB", 3 << 29),
            ("2000kB", 2_000_000),
            ("256MB", 256_000_000),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(size(MIB)(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refused_sizes() {
        for (text, says) in [
            ("", "not a size"),
            ("0", "too little; it must be at least 1MiB"),
            ("1023KiB", "too little"),
            ("-1MiB", "not a size"),
            ("MiB", "not a size"),
            ("1.MiB", "not a size"),
            ("0.3B", "whole number of bytes"),
            ("256M", "write 256MiB or 256MB"),
            ("64K", "write 64KiB or 64kB"),
            ("64KB", "write 64KiB or 64kB"),
            ("1gib", "write 1GiB or 1GB"),
            ("1Ti", "write 1TiB or 1TB"),
            ("256 MiB", "unknown unit"),
            ("10%", "unknown unit"),
            ("99999999TiB", "too large"),
            ("99999999999999999999999", "too large"),
        ] {
            let refusal = size(MIB)(text).unwrap_err();
            assert!(refusal.contains(says), "{text:?}: {refusal}");
        }
    }

    #[test]
    fn counts() {
        assert_eq!(count(16)("1"), Ok(1));
        assert_eq!(count(16)("16"), Ok(16));
        for (text, says) in [
            ("", "not a number"),
            ("0", "too few"),
            ("-1", "not a number"),
            ("+1", "not a number"),
            ("1.5", "not a number"),
            ("four", "not a number"),
            ("17", "too large; it must be at most 16"),
            ("99999999999999999999999", "too large"),
        ] {
            let refusal = count(16)(text).unwrap_err();
            assert!(refusal.contains(says), "{text:?}: {refusal}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for ms in [1, 999, 1000, 61_001, 90_000, 3_600_000, MAX_DURATION_MS - 1, MAX_DURATION_MS] {
            assert_eq!(duration(1)(&show_duration(ms)), Ok(ms));
        }
        assert_eq!(show_duration(0), "0s");
        assert_eq!(show_duration(MAX_DURATION_MS), "24h");
        for bytes in [1, KIB, MIB, MIB + 1, MIB + KIB, 1 << 30, (1 << 30) + 1] {
            assert_eq!(size(1)(&show_exact_bytes(bytes)), Ok(bytes));
        }
        let limit = RateLimit { burst: 3, refill_ms: 90_001 };
        assert_eq!(rate(&show_rate(limit)), Ok(OrOff::On(limit)));
    }

    #[test]
    fn rates_of_bytes() {
        for (text, bytes_per_s, burst_bytes) in [
            ("1MiB/s", MIB, MIB),
            ("1024/s", KIB, KIB),
            ("64KiB/s,1MiB", 64 * KIB, MIB),
            ("1MB/s,1KiB", 1_000_000, KIB),
        ] {
            let read = ByteRate { bytes_per_s, burst_bytes };
            assert_eq!(byte_rate(text), Ok(OrOff::On(read)), "{text}");
            assert_eq!(byte_rate(&show_byte_rate(read)), Ok(OrOff::On(read)));
        }
        assert_eq!(byte_rate("off"), Ok(OrOff::Off));
        for (text, says) in [
            ("", "does not say how much a second"),
            ("1MiB", "does not say how much a second"),
            ("1MiB/m", "does not say how much a second"),
            ("1000/s", "too little; it must be at least 1KiB"),
            ("1MiB/s,", "is not a size"),
            ("1MiB/s,1", "too little"),
            ("1M/s", "write 1MiB or 1MB"),
            ("2TiB/s", "too large; it must be at most 1TiB"),
        ] {
            let refusal = byte_rate(text).unwrap_err();
            assert!(refusal.contains(says), "{text:?}: {refusal}");
        }
    }

    #[test]
    fn shown_sizes() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (KIB, "1KiB"),
            (MIB, "1MiB"),
            (1 << 32, "4096MiB"),
        ] {
            assert_eq!(show_bytes(bytes), shown);
        }
    }
}
