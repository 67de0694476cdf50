//! What compressed bytes hold.
//!
//! The same compressed cluster stands in thousands of crash states, and to inflate it costs as much as all else
//! that is judged of a small image; so what was inflated lately is remembered. That changes no result: it is a
//! function of the bytes alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use flate2::{Decompress, FlushDecompress};
use xxhash_rust::xxh3::xxh3_128;
use zstd::zstd_safe;

/// Clusters of so many bytes are remembered, on each thread.
const MOST_BYTES: usize = 8 << 20;

/// How a cluster is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Method {
    /// A raw deflate stream that ends where the cluster is full.
    Deflate,
    /// Zstandard frames that fill the cluster.
    Zstd,
}

/// A cluster that was inflated.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) bytes: Rc<[u8]>,
    /// A hash of the compressed bytes, and so of these.
    pub(super) hash: u128,
}

#[derive(Default)]
struct Known {
    /// By method, length of the cluster, and digest of the compressed bytes.
    clusters: BTreeMap<(Method, usize, u128), Option<Cluster>>,
    bytes: usize,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// The cluster of `full` bytes that `input` starts with; bytes behind it are ignored. `None` where it does not
/// fill the cluster. Specification: "Compressed clusters".
pub(super) fn inflated(method: Method, input: &[u8], full: usize) -> Option<Cluster> {
    let hash = xxh3_128(input);
    let key = (method, full, hash);
    KNOWN.with_borrow_mut(|known| {
        if let Some(cluster) = known.clusters.get(&key) {
            return cluster.clone();
        }
        if known.bytes >= MOST_BYTES {
            *known = Known::default();
        }
        let bytes = inflate(method, input, full).map(Into::into);
        let cluster = bytes.map(|bytes| Cluster { bytes, hash });
        known.bytes += full;
        known.clusters.insert(key, cluster.clone());
        cluster
    })
}

fn inflate(method: Method, input: &[u8], full: usize) -> Option<Vec<u8>> {
    let mut output = Vec::with_capacity(full);
    match method {
        Method::Deflate => {
            Decompress::new(false)
                .decompress_vec(input, &mut output, FlushDecompress::Finish)
                .ok()?;
        }
        Method::Zstd => {
            let mut rest = input;
            while output.len() < full {
                let len = zstd_safe::find_frame_compressed_size(rest).ok()?;
                let part = zstd::bulk::decompress(rest.get(..len)?, full - output.len()).ok()?;
                output.extend_from_slice(&part);
                rest = &rest[len..];
            }
        }
    }
    (output.len() == full).then_some(output)
}
