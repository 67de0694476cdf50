//! Sizes as people write and read them.

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSize {
    /// It is not a number with at most one suffix.
    Syntax,
    /// It does not fit 64 bits.
    TooLarge,
}

/// Reads `64k`, `1.5G`, `0x1000` or `4096`: bytes unless a suffix says otherwise, multiples of 1024. As in C, blanks
/// and a `+` may go before.
pub(crate) fn parse(text: &str) -> Result<u64, BadSize> {
    let text = text.trim_start_matches(|character: char| character.is_ascii_whitespace());
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return hexadecimal(digits);
    }
    let (number, shift) = split_suffix(text)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !fraction.is_none_or(all_digits) {
        return Err(BadSize::Syntax);
    }
    let whole: u128 = whole.parse().map_err(|_| BadSize::TooLarge)?;
    let mut bytes = whole.checked_shl(shift).ok_or(BadSize::TooLarge)?;
    if let Some(fraction) = fraction {
        if shift == 0 && fraction.bytes().any(|byte| byte != b'0') {
            return Err(BadSize::Syntax);
        }
        // More digits than these do not change a whole number of bytes.
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10u128.pow(u32::try_from(fraction.len()).expect("at most 18 digits"));
        let part: u128 = if fraction.is_empty() {
            0
        } else {
            fraction.parse().map_err(|_| BadSize::Syntax)?
        };
        bytes += ((part << shift) + scale / 2) / scale;
    }
    u64::try_from(bytes).map_err(|_| BadSize::TooLarge)
}

fn hexadecimal(digits: &str) -> Result<u64, BadSize> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(BadSize::Syntax);
    }
    u64::from_str_radix(digits, 16).map_err(|_| BadSize::TooLarge)
}

fn split_suffix(text: &str) -> Result<(&str, u32), BadSize> {
    let last = text.chars().next_back().ok_or(BadSize::Syntax)?;
    let shift = match last.to_ascii_uppercase() {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return Ok((text, 0)),
    };
    Ok((&text[..text.len() - 1], shift))
}

/// A size with three significant digits and the unit that leaves it below 1000.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000u128 << (10 * unit) {
        unit += 1;
    }
    let divisor = 1u128 << (10 * unit);
    let bytes = u128::from(bytes);
    let decimals = match bytes / divisor {
        100.. => 0,
        10.. => 1,
        1.. => 2,
        _ => 3,
    };
    let scale = 10u128.pow(decimals);
    let scaled = round_half_even(bytes * scale, divisor);
    let mut text = (scaled / scale).to_string();
    let fraction = format!(
        "{:0width$}",
        scaled % scale,
        width = usize::try_from(decimals).expect("at most 3")
    );
    let fraction = fraction.trim_end_matches('0');
    if decimals > 0 && !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    format!("{text} {}B", UNITS[unit])
}

/// A quotient as C prints it: what lies half-way goes to the even neighbour.
pub(crate) fn round_half_even(numerator: u128, divisor: u128) -> u128 {
    let (quotient, rest) = (numerator / divisor, numerator % divisor);
    let up = match (rest * 2).cmp(&divisor) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => quotient % 2,
        std::cmp::Ordering::Greater => 1,
    };
    quotient + up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("513", 513),
            ("64k", 65536),
            ("64K", 65536),
            ("1.5M", 1_572_864),
            ("1.5k", 1536),
            ("0x10", 16),
            ("1b", 1),
            (" \t+1k", 1024),
            ("7E", 7 << 60),
            ("15.9E", 18_331_451_923_248_866_918),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "", "k", "1Q", "-1", "abc", "1.5", "0x", "0x1k", "1 ", "1kk", ".5k", "+ 1", "++1",
        ] {
            assert_eq!(parse(text), Err(BadSize::Syntax), "{text}");
        }
        assert_eq!(parse("16E"), Err(BadSize::TooLarge));
        assert_eq!(parse("9000000000000000000000"), Err(BadSize::TooLarge));
    }

    #[test]
    fn sizes_are_told_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (12800, "12.5 KiB"),
            (197_120, "192 KiB"),
            (328_192, "320 KiB"),
            (2_297_856, "2.19 MiB"),
            (1 << 30, "1 GiB"),
            (1000 << 10, "0.977 MiB"),
            (102_359, "100 KiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
