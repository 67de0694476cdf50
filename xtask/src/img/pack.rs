//! Compressing on all processors, and storing in order.
//!
//! Pieces are compressed side by side while their predecessors are stored, so that neither waits for the
//! other. Memory stays bounded: so many pieces are on their way at a time, and no more.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, sync_channel};

use engine::error::Error;
use engine::image::Image;
use engine::qcow2::Qcow2;
use engine::qcow2::packed::{Packed, pack};

use crate::block::CacheMode;
use crate::block::open::at_once;

/// What compresses whole clusters for one image.
pub(super) struct Packer {
    image: Rc<Qcow2>,
    cache: CacheMode,
    /// Pieces that are being compressed, the oldest first, by their offset on the guest's disk.
    waiting: VecDeque<(u64, Receiver<Vec<Packed>>)>,
    most: usize,
}

/// A piece that could not be stored, by its offset on the guest's disk, and why.
pub(super) type Unstored = (u64, Error);

impl Packer {
    /// A packer with at most `most` pieces on their way; without it, enough for every processor.
    pub(super) fn new(image: Rc<Qcow2>, cache: CacheMode, most: Option<usize>) -> Self {
        Self {
            image,
            cache,
            waiting: VecDeque::new(),
            most: most.unwrap_or_else(|| 2 * rayon::current_num_threads()),
        }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_bytes(&self) -> u64 {
        self.image.geometry().cluster_bytes()
    }

    /// Compresses whole clusters, and stores what is ready by then.
    pub(super) fn take(&mut self, at: u64, data: Vec<u8>) -> Result<(), Unstored> {
        let (kind, geometry) = (self.image.compression(), self.image.geometry());
        let (sender, receiver) = sync_channel(1);
        rayon::spawn(move || {
            let clusters = data.chunks(geometry.cluster_len());
            let packed = clusters.map(|cluster| pack(kind, geometry, cluster));
            // Nobody waits any more where an earlier piece could not be stored.
            let _ = sender.send(packed.collect());
        });
        self.waiting.push_back((at, receiver));
        while self.waiting.len() > self.most {
            self.store_oldest()?;
        }
        Ok(())
    }

    /// Stores everything.
    pub(super) fn finish(&mut self) -> Result<(), Unstored> {
        while !self.waiting.is_empty() {
            self.store_oldest()?;
        }
        Ok(())
    }

    fn store_oldest(&mut self) -> Result<(), Unstored> {
        let Some((at, receiver)) = self.waiting.pop_front() else {
            return Ok(());
        };
        let packed = receiver.recv().expect("what was begun is compressed");
        at_once(async {
            self.image.store(at, packed).await?;
            match self.cache {
                CacheMode::WriteThrough => self.image.flush().await,
                CacheMode::WriteBack | CacheMode::Unsafe => Ok(()),
            }
        })
        .map_err(|error| (at, error))
    }
}
