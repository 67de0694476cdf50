//! Images that were made elsewhere, in a form that threads can share: a [`PageImage`] belongs to one thread.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use engine::device::{ContentHash, PageImage};

/// An image that was made elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    /// Where it came from, for messages and for traces that do not hold its bytes.
    pub path: String,
    len: u64,
    hash: ContentHash,
    /// What is not zero, and where it stands.
    pages: Arc<Pages>,
}

type Pages = Vec<(u64, [u8; 4096])>;

thread_local! {
    /// The one that a run started with last: to make it again hashes all of it.
    static LAST: RefCell<PageImage> = RefCell::default();
}

impl Given {
    /// The image that came from there.
    pub fn new(path: String, image: &PageImage) -> Self {
        let pages = image.pages().map(|(offset, bytes)| (offset, *bytes));
        Self {
            path,
            len: image.len(),
            hash: image.content_hash(),
            pages: Arc::new(pages.collect()),
        }
    }

    /// The length in bytes.
    #[allow(
        clippy::len_without_is_empty,
        reason = "what is empty is no image of a disk"
    )]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The hash of content and length.
    pub fn content_hash(&self) -> ContentHash {
        self.hash
    }

    /// The image.
    pub fn image(&self) -> PageImage {
        let last = LAST.with_borrow(PageImage::clone);
        if last.content_hash() == self.hash {
            return last;
        }
        let mut image = PageImage::default();
        for (offset, bytes) in &*self.pages {
            image.write(*offset, bytes);
        }
        image.set_len(self.len);
        LAST.replace(image.clone());
        image
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("path", &self.path)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_on_another_thread() {
        let mut image = PageImage::zeroed(70_000);
        image.write(3, &[1; 5000]);
        image.write(69_990, &[2; 10]);
        let one = Given::new("one".into(), &image);
        image.write(8192, &[3; 4096]);
        let other = Given::new("other".into(), &image);
        let there = std::thread::spawn(move || {
            // One after the other, and once more: what was remembered is of these bytes.
            [&one, &one, &other, &one].map(|given| {
                let image = given.image();
                assert_eq!(image.content_hash(), given.content_hash());
                (image.len(), image.read_vec(0, 70_000))
            })
        });
        let there = there.join().expect("each has the hash that it was given");
        let with = image.read_vec(0, 70_000);
        image.write_zeroes(8192, 4096);
        let without = image.read_vec(0, 70_000);
        for ((len, bytes), expected) in there.iter().zip([&without, &without, &with, &without]) {
            assert_eq!(*len, 70_000);
            assert!(bytes == expected);
        }
    }
}
