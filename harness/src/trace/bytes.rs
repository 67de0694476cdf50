//! Images inside traces: what is not zero, deflated, in base64.
//!
//! The packed form is a sequence of runs, each of two little-endian 64-bit numbers (offset and length in
//! bytes, multiples of 512) and the run's bytes.

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::device::PageImage;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

const SECTOR: u64 = 512;
/// An image inside a trace takes at most this much, deflated.
const MAX_DEFLATED_BYTES: usize = 1 << 20;
/// What a trace may make the reader hold, inflated.
const MAX_INFLATED_BYTES: u64 = 256 << 20;

/// The image as text, or `None` where that would be too long.
pub(super) fn pack(image: &PageImage) -> Option<String> {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
    for (offset, page) in image.pages() {
        for (index, sector) in (0..).zip(page.chunks(512)) {
            if sector.iter().all(|&byte| byte == 0) {
                continue;
            }
            let offset = offset + index * SECTOR;
            for word in [offset, SECTOR] {
                deflate.write_all(&word.to_le_bytes()).ok()?;
            }
            deflate.write_all(sector).ok()?;
        }
        if deflate.get_ref().len() > MAX_DEFLATED_BYTES {
            return None;
        }
    }
    let deflated = deflate.finish().ok()?;
    (deflated.len() <= MAX_DEFLATED_BYTES).then(|| STANDARD.encode(deflated))
}

/// The image of `len_bytes` bytes that was packed into `text`.
pub(super) fn unpack(text: &str, len_bytes: u64) -> Result<PageImage, String> {
    if len_bytes > PageImage::MAX_LEN {
        return Err(format!("an image of {len_bytes} bytes is too long"));
    }
    let deflated = STANDARD
        .decode(text)
        .map_err(|error| format!("not base64: {error}"))?;
    let mut packed = Vec::new();
    DeflateDecoder::new(deflated.as_slice())
        .take(MAX_INFLATED_BYTES + 1)
        .read_to_end(&mut packed)
        .map_err(|error| format!("not deflated: {error}"))?;
    if u64::try_from(packed.len()).unwrap_or(u64::MAX) > MAX_INFLATED_BYTES {
        return Err(format!("more than {MAX_INFLATED_BYTES} bytes, inflated"));
    }
    let mut image = PageImage::zeroed(len_bytes);
    let mut rest = packed.as_slice();
    while !rest.is_empty() {
        rest = lay_run(&mut image, rest)
            .ok_or_else(|| "a run of bytes is cut off or beyond the image".to_owned())?;
    }
    Ok(image)
}

/// Puts the first run of `packed` into the image and returns what follows it.
fn lay_run<'a>(image: &mut PageImage, packed: &'a [u8]) -> Option<&'a [u8]> {
    let (offset, packed) = packed.split_first_chunk::<8>()?;
    let (run_bytes, packed) = packed.split_first_chunk::<8>()?;
    let (offset, run_bytes) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*run_bytes));
    let (data, rest) = packed.split_at_checked(usize::try_from(run_bytes).ok()?)?;
    let within = offset.checked_add(run_bytes)? <= image.len().next_multiple_of(SECTOR);
    let whole = offset.is_multiple_of(SECTOR) && run_bytes.is_multiple_of(SECTOR);
    if !within || !whole || run_bytes == 0 {
        return None;
    }
    let len = image.len();
    image.write(offset, data);
    // The last sector of an image of odd length is packed whole.
    image.set_len(len);
    Some(rest)
}
