//! What a stretch of a disk is made of, through a whole chain of images.

use engine::device::ExtentKind;
use engine::error::Error;
use engine::image::StatusKind;

use super::Node;
use super::open::at_once;

/// A stretch of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Where it starts.
    pub(crate) start: u64,
    /// How long it is; at least one byte.
    pub(crate) len_bytes: u64,
    /// How many images lie above the one that it comes from.
    pub(crate) depth: u64,
    /// What it is there.
    pub(crate) content: Content,
    /// Where it stands in that image's file, byte by byte.
    pub(crate) offset: Option<u64>,
    /// Whether that image's disk ends where it ends.
    pub(crate) last: bool,
}

/// What a stretch of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes of the file.
    Data,
    /// Bytes of the file where the file has a hole.
    Hole,
    /// Compressed bytes of the file.
    Compressed,
    /// Zeroes by the word of the image.
    Zero,
    /// No image of the chain has anything there.
    Nothing,
}

impl Content {
    /// Whether it is known to read as zeroes.
    pub(crate) fn reads_zero(self) -> bool {
        match self {
            Self::Data | Self::Compressed => false,
            Self::Hole | Self::Zero | Self::Nothing => true,
        }
    }
}

/// How many images of a chain are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// So many from the top, at least one: what none of them has is [`Content::Nothing`].
    Images(u64),
    /// All of them.
    Chain,
}

impl Reach {
    /// Whether what lies beneath the image at this depth is asked.
    fn goes_below(self, depth: u64) -> bool {
        match self {
            Self::Images(count) => depth + 1 < count,
            Self::Chain => true,
        }
    }
}

/// What the disk is made of from `start` on, up to `max_bytes`, within its size.
pub(crate) fn status(
    node: &Node,
    reach: Reach,
    start: u64,
    max_bytes: u64,
) -> Result<Stretch, Error> {
    let mut here = node;
    let mut depth = 0;
    let mut len_bytes = max_bytes;
    loop {
        here.ask_status(start, len_bytes)?;
        let status = at_once(here.image().status(start, len_bytes))?;
        len_bytes = status.len_bytes;
        let mut stretch = Stretch {
            start,
            len_bytes,
            depth,
            content: match status.kind {
                StatusKind::Data => Content::Data,
                StatusKind::Compressed => Content::Compressed,
                StatusKind::Zero => Content::Zero,
                StatusKind::Unallocated => Content::Nothing,
            },
            offset: status.host_offset,
            last: false,
        };
        match stretch.content {
            Content::Data => look_below(here, &mut stretch),
            Content::Nothing => {
                let beneath = here.backing.as_deref().filter(|_| reach.goes_below(depth));
                let there = beneath.map_or(0, |node| node.virtual_bytes().saturating_sub(start));
                if let Some(beneath) = beneath
                    && there > 0
                {
                    here = beneath;
                    depth += 1;
                    len_bytes = len_bytes.min(there);
                    continue;
                }
            }
            Content::Hole | Content::Compressed | Content::Zero => {}
        }
        stretch.last = start + stretch.len_bytes == here.virtual_bytes();
        return Ok(stretch);
    }
}

/// Looks whether the file has a hole where an image has data.
fn look_below(node: &Node, stretch: &mut Stretch) {
    let Some(offset) = stretch.offset else {
        return;
    };
    let extent = node.data_file().port.extent(offset);
    if extent.kind == ExtentKind::Hole {
        stretch.content = Content::Hole;
    }
    stretch.len_bytes = stretch.len_bytes.min(extent.len_bytes);
}
