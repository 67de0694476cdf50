//! What compressed clusters are made of: one cluster in, fewer bytes out, and back.
//!
//! Specification: "Compressed clusters", and byte 104 of the header. Nothing here knows of an image,
//! so that a caller with threads can compress many clusters at once and hand in what came of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};
use xxhash_rust::xxh3::xxh3_64;

/// How the compressed clusters of an image are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compression {
    /// A raw deflate stream with a window of 4 KiB; windows of 32 KiB are read as well.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// The window of the deflate streams that are written: readers may have no larger one.
const WINDOW_BITS: u8 = 12;
/// The level that the zstd command line chooses.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// Both types.
    pub const ALL: [Self; 2] = [Self::Zlib, Self::Zstd];

    /// The name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The number in the header.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }
}

// Contexts are memory without meaning, and to make one costs more than to inflate a small cluster.
thread_local! {
    static DEFLATE: RefCell<Compress> =
        RefCell::new(Compress::new_with_window_bits(Level::default(), false, WINDOW_BITS));
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static PACK_ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> =
        RefCell::new(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok());
    static UNPACK_ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        RefCell::new(zstd::bulk::Decompressor::new().ok());
    static LATELY: RefCell<Lately> = RefCell::default();
}

/// Clusters that were decompressed lately: guests read one in pieces. What packed bytes hold depends on nothing but the
/// bytes, so that nobody needs to know when they are given up or written over.
#[derive(Default)]
struct Lately {
    /// By the hash of the packed bytes.
    known: BTreeMap<u64, Unpacked>,
    bytes: usize,
}

struct Unpacked {
    kind: Compression,
    packed: Vec<u8>,
    cluster: Rc<Vec<u8>>,
}

impl Lately {
    /// As much is remembered on each thread, packed and unpacked.
    const MOST_BYTES: usize = 8 << 20;

    fn find(&self, hash: u64, kind: Compression, packed: &[u8], len: usize) -> Option<Rc<Vec<u8>>> {
        let known = self.known.get(&hash)?;
        let same = known.kind == kind && known.cluster.len() == len && known.packed == packed;
        same.then(|| Rc::clone(&known.cluster))
    }

    fn insert(&mut self, hash: u64, unpacked: Unpacked) {
        let bytes = unpacked.packed.len() + unpacked.cluster.len();
        if self.bytes + bytes > Self::MOST_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.known.insert(hash, unpacked);
    }
}

/// Compresses a whole cluster. `None` where that takes no fewer bytes than the cluster itself.
pub fn compress(kind: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    let room = cluster.len().checked_sub(1)?;
    match kind {
        Compression::Zlib => {
            let mut packed = Vec::with_capacity(room);
            let status = DEFLATE.with_borrow_mut(|deflate| {
                deflate.reset();
                deflate.compress_vec(cluster, &mut packed, FlushCompress::Finish)
            });
            // A vector may have been given more room than it was asked for.
            (matches!(status, Ok(Status::StreamEnd)) && packed.len() <= room).then_some(packed)
        }
        Compression::Zstd => {
            let packed = PACK_ZSTD.with_borrow_mut(|zstd| match zstd {
                Some(context) => context.compress(cluster).ok(),
                None => zstd::bulk::compress(cluster, ZSTD_LEVEL).ok(),
            })?;
            (packed.len() <= room).then_some(packed)
        }
    }
}

/// The cluster of `len` bytes that `packed` starts with; bytes behind it are ignored. `None` where it does
/// not fill the cluster.
pub(crate) fn decompress(kind: Compression, packed: Vec<u8>, len: usize) -> Option<Rc<Vec<u8>>> {
    let hash = xxh3_64(&packed);
    if let Some(known) = LATELY.with_borrow(|lately| lately.find(hash, kind, &packed, len)) {
        return Some(known);
    }
    let mut cluster = vec![0; len];
    fill(kind, &packed, &mut cluster)?;
    let cluster = Rc::new(cluster);
    let unpacked = Unpacked {
        kind,
        packed,
        cluster: Rc::clone(&cluster),
    };
    LATELY.with_borrow_mut(|lately| lately.insert(hash, unpacked));
    Some(cluster)
}

/// Fills `cluster` with what `packed` starts with.
fn fill(kind: Compression, packed: &[u8], cluster: &mut [u8]) -> Option<()> {
    match kind {
        Compression::Zlib => INFLATE.with_borrow_mut(|inflate| {
            inflate.reset(false);
            let outcome = inflate.decompress(packed, cluster, FlushDecompress::Finish);
            let full = u64::try_from(cluster.len()).ok()?;
            (outcome.is_ok() && inflate.total_out() == full).then_some(())
        }),
        Compression::Zstd => decompress_frames(packed, cluster),
    }
}

/// Frame by frame into the cluster itself, so that no frame can ask for a window of its own.
fn decompress_frames(mut packed: &[u8], cluster: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while done < cluster.len() {
        let len = zstd::zstd_safe::find_frame_compressed_size(packed).ok()?;
        let frame = packed.get(..len)?;
        let rest = &mut cluster[done..];
        done += UNPACK_ZSTD.with_borrow_mut(|zstd| match zstd {
            Some(context) => context.decompress_to_buffer(frame, rest).ok(),
            None => zstd::bulk::decompress_to_buffer(frame, rest).ok(),
        })?;
        packed = &packed[len..];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| u8::try_from(i / 5 % 11 * 20).unwrap())
            .collect()
    }

    #[test]
    fn what_is_packed_comes_back_whatever_follows_it() {
        for kind in Compression::ALL {
            for len in [512, 4096, 65536, 2 << 20] {
                let cluster = text(len);
                let mut packed = compress(kind, &cluster).unwrap();
                packed.extend_from_slice(&[0x5a; 700]);
                let back = decompress(kind, packed, len).unwrap();
                assert!(*back == cluster, "{kind:?} {len}");
            }
        }
    }

    #[test]
    fn what_was_packed_before_leaves_no_trace() {
        let noise: Vec<u8> = (0..4096u64)
            .map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()[0])
            .collect();
        for kind in Compression::ALL {
            let first = std::thread::spawn(move || compress(kind, &text(4096)));
            let first = first.join().unwrap();
            // What does not fit ends in the middle of a stream.
            assert_eq!(compress(kind, &noise), None);
            assert_eq!(compress(kind, &text(4096)), first, "{kind:?}");
        }
    }

    #[test]
    fn a_zstd_cluster_may_be_of_several_frames() {
        let cluster = text(4096);
        let mut packed = zstd::bulk::compress(&cluster[..1000], 1).unwrap();
        // A frame that is skipped: specification of zstd, "Skippable Frames".
        packed.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        packed.extend(zstd::bulk::compress(&cluster[1000..], 1).unwrap());
        let back = decompress(Compression::Zstd, packed, 4096).unwrap();
        assert!(*back == cluster);
    }

    #[test]
    fn what_is_remembered_is_of_these_bytes_this_kind_and_this_length() {
        for kind in Compression::ALL {
            let other = Compression::ALL.into_iter().find(|it| *it != kind).unwrap();
            let packed = compress(kind, &text(1024)).unwrap();
            let first = decompress(kind, packed.clone(), 1024).unwrap();
            let again = decompress(kind, packed.clone(), 1024).unwrap();
            assert!(Rc::ptr_eq(&first, &again), "{kind:?}: it is remembered");
            assert_eq!(decompress(kind, packed.clone(), 2048), None);
            assert_eq!(decompress(other, packed, 1024), None);
            let lately = Lately {
                known: BTreeMap::from([(
                    7,
                    Unpacked {
                        kind,
                        packed: vec![1],
                        cluster: first,
                    },
                )]),
                bytes: 0,
            };
            assert!(lately.find(7, kind, &[1], 1024).is_some());
            assert_eq!(lately.find(7, kind, &[2], 1024), None, "hashes collide");
        }
    }

    #[test]
    fn no_more_is_remembered_than_is_meant_to_be() {
        let mut lately = Lately::default();
        for hash in 0..100 {
            let unpacked = Unpacked {
                kind: Compression::Zlib,
                packed: vec![0; 1000],
                cluster: Rc::new(vec![0; 1 << 20]),
            };
            lately.insert(hash, unpacked);
            let held = lately.known.values();
            let held = held.map(|it| it.packed.len() + it.cluster.len());
            assert_eq!(held.sum::<usize>(), lately.bytes);
            assert!(lately.bytes <= Lately::MOST_BYTES);
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_packed() {
        let noise: Vec<u8> = (0..512u64)
            .map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()[0])
            .collect();
        for kind in Compression::ALL {
            assert_eq!(compress(kind, &noise), None);
            assert_eq!(compress(kind, &[]), None);
        }
    }

    #[test]
    fn what_is_too_short_or_no_stream_is_refused() {
        for kind in Compression::ALL {
            let packed = compress(kind, &text(1024)).unwrap();
            assert_eq!(decompress(kind, packed[..10].to_vec(), 1024), None);
            assert_eq!(decompress(kind, packed, 2048), None);
            assert_eq!(decompress(kind, vec![0xff; 64], 512), None);
            assert_eq!(decompress(kind, Vec::new(), 512), None);
        }
    }

    /// What comes again after 5000 bytes is out of reach of a window of 4 KiB.
    #[test]
    fn deflate_streams_need_no_window_above_four_kib() {
        let noise: Vec<u8> = (0..5000u64)
            .map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()[0])
            .collect();
        let far = [noise.clone(), noise].concat();
        assert_eq!(compress(Compression::Zlib, &far), None);
        assert!(compress(Compression::Zstd, &far).is_some());
    }
}
