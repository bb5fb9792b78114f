//! Numbers, durations and sizes in words, and the nearest of several names.

use std::time::Duration;

/// Formats an integer with commas as thousands separators.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a count with a noun whose plural ends in s: `1 row`, `1,200 rows`.
#[must_use]
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Formats a duration with a suitable precision: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let rounded = seconds.round() as u64;
    match rounded {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{rounded} s"),
        60..3600 => format!("{} min {:02} s", rounded / 60, rounded % 60),
        _ => format!("{} h {:02} min", rounded / 3600, rounded % 3600 / 60),
    }
}

/// Formats a size in bytes with a suitable unit: `812 bytes`, `4.5 KB`, `45 MB`, `2.1 GB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1000 => return counted(bytes, "byte"),
        1000..1_000_000 => (1e3, "KB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    let n = bytes as f64 / unit;
    let digits = usize::from(n < 9.95);
    format!("{n:.digits$} {name}")
}

/// Returns the candidate most similar to a word, if one is similar enough.
pub fn closest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // With this bound, Jaro-Winkler matches `max_len` to `max_length` and `fp32` to `f32`, but not `gpu` to `cpu`.
    const NEAR: f64 = 0.85;
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(likeness, _)| likeness >= NEAR)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(12_345_678)], ["0", "999", "1,000", "12,345,678"]);
        let texts = [0.84, 42.4, 185.0, 7800.0].map(|s| format_duration(Duration::from_secs_f64(s)));
        assert_eq!(texts, ["0.8 s", "42 s", "3 min 05 s", "2 h 10 min"]);
        let sizes = [1, 812, 4512, 9999, 45_000_000, 2_100_000_000].map(size);
        assert_eq!(sizes, ["1 byte", "812 bytes", "4.5 KB", "10 KB", "45 MB", "2.1 GB"]);
    }
}
