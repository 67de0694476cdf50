//! Power lost by two disks at once: an image file and its external data file, each with a cache of its
//! own. Whatever each of them kept, every sector reads its last flushed value or one written since, and a
//! raw data file by itself reads as the disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::cell::Cell;
use std::rc::Rc;

use engine::defect::Planted;
use engine::device::{Event, PageImage, Port};
use engine::error::Error;
use engine::image::{Image, Unmap};
use engine::manage::{DataFileChange, Manage, RawPromise};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, DataFileContent, NewDataFile, create_with_data_file};
use engine::qcow2::{CacheSizes, Files, OpenOptions, Qcow2};

use kit::caches::{CachedDisk, Draw};
use kit::{Ram, run};

const SECTOR: usize = 512;
/// The byte that a sector is filled with, or 0 for a sector of zeroes.
type Value = u8;

/// What the sectors of the disk may hold.
struct Ledger {
    /// What each sector held at the last flush that was answered, and all that it was given since.
    may_hold: Vec<Vec<Value>>,
    /// The sizes that the disk may have, in sectors.
    sizes: Vec<usize>,
}

impl Ledger {
    fn new(sectors: usize) -> Self {
        Self {
            may_hold: vec![vec![0]; sectors],
            sizes: vec![sectors],
        }
    }

    fn sectors(&self) -> usize {
        *self.sizes.last().unwrap()
    }

    fn give(&mut self, first: u64, count: u64, value: Value) {
        let first = usize::try_from(first).unwrap();
        let count = usize::try_from(count).unwrap();
        for sector in &mut self.may_hold[first..first + count] {
            sector.push(value);
        }
    }

    fn flushed(&mut self) {
        for sector in &mut self.may_hold {
            let last = *sector.last().unwrap();
            *sector = vec![last];
        }
    }

    fn judge(&self, shown: &[u8]) -> Result<(), String> {
        let sectors = shown.len() / SECTOR;
        if !self.sizes.contains(&sectors) {
            return Err(format!("{sectors} sectors, none of {:?}", self.sizes));
        }
        for (index, bytes) in shown.chunks(SECTOR).enumerate() {
            let may_hold = &self.may_hold[index];
            if !may_hold
                .iter()
                .any(|value| bytes.iter().all(|byte| byte == value))
            {
                return Err(format!(
                    "sector {index} holds {}, none of {may_hold:?}",
                    bytes[0]
                ));
            }
        }
        Ok(())
    }
}

/// How a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    New(DataFileContent),
    /// A raw data file whose image says "zeroes" in places, as QEMU's do.
    RawWithZeroFlags,
}

fn options(draw: &mut Draw, content: DataFileContent) -> CreateOptions {
    let (cluster_bits, extended_l2) = match draw.below(4) {
        0 => (14, true),
        1 => (12, false),
        _ => (9 + u32::try_from(draw.below(2)).unwrap(), false),
    };
    CreateOptions {
        virtual_bytes: (6 << cluster_bits) + 512 * draw.below(4),
        cluster_bits,
        extended_l2,
        lazy_refcounts: draw.below(2) == 0,
        data_file: Some(NewDataFile {
            name: "data".into(),
            content,
        }),
        ..CreateOptions::default()
    }
}

/// Both files before the run.
fn start(draw: &mut Draw, start: Start) -> [PageImage; 2] {
    let (image, data) = (Ram::empty(), Ram::empty());
    match start {
        Start::New(content) => {
            let options = options(draw, content);
            run(create_with_data_file(&image.port, &data.port, &options)).unwrap();
        }
        Start::RawWithZeroFlags => {
            let options = options(draw, DataFileContent::Raw);
            run(create_with_data_file(&image.port, &data.port, &options)).unwrap();
            let opened = open(&[image.port.clone(), data.port.clone()], Planted::NONE).unwrap();
            let change = DataFileChange {
                name: None,
                raw: RawPromise::Withdraw,
            };
            run(opened.manage(Manage::SetDataFile(change))).unwrap();
            let half = (options.virtual_bytes / 2) >> options.cluster_bits << options.cluster_bits;
            run(opened.write_zeroes(0, half, Unmap::Allow)).unwrap();
            run(opened.close()).unwrap();
            // The promise is given again: the file holds zeroes everywhere.
            let at = image.port.at(Event::None);
            let mut sector = run(at.read(0, SECTOR)).unwrap();
            sector[95] |= 2;
            run(at.write(0, sector)).unwrap();
        }
    }
    [image.device.snapshot(), data.device.snapshot()]
}

fn open(ports: &[Port; 2], planted: Planted) -> Result<Qcow2, Error> {
    let files = Files {
        image: ports[0].clone(),
        data: Some(ports[1].clone()),
        backing: None,
    };
    let options = OpenOptions {
        planted,
        caches: CacheSizes {
            l2_slices: 2,
            refcount_slices: 2,
            slice_bytes: 512,
        },
        ..OpenOptions::default()
    };
    run(Qcow2::open_files(files, &options, &[]))
}

/// One operation of the guest's or of a manager's. The ledger knows of it before it starts.
fn step(image: &Qcow2, ledger: &mut Ledger, draw: &mut Draw, value: Value) -> Result<(), Error> {
    let sectors = u64::try_from(ledger.sectors()).unwrap();
    let first = draw.below(sectors);
    let count = match draw.below(3) {
        0 => 1,
        1 => draw.below(8) + 1,
        _ => draw.below(64) + 1,
    };
    let count = count.min(sectors - first);
    let (offset, len_bytes) = (first * 512, count * 512);
    match draw.below(16) {
        0..7 => {
            ledger.give(first, count, value);
            let data = vec![value; usize::try_from(len_bytes).unwrap()];
            run(image.write(offset, data))
        }
        7 | 8 => {
            ledger.give(first, count, 0);
            let unmap = if value.is_multiple_of(2) {
                Unmap::Allow
            } else {
                Unmap::Keep
            };
            run(image.write_zeroes(offset, len_bytes, unmap))
        }
        9 | 10 => {
            // Each sector keeps its value or becomes zero; which of them the image says at once.
            for sector in first..first + count {
                let slot = &mut ledger.may_hold[usize::try_from(sector).unwrap()];
                let last = *slot.last().unwrap();
                slot.extend([0, last]);
            }
            run(image.discard(offset, len_bytes))?;
            let now = run(image.read(offset, usize::try_from(len_bytes).unwrap()))?;
            for (sector, bytes) in (first..).zip(now.chunks(SECTOR)) {
                ledger.give(sector, 1, bytes[0]);
            }
            Ok(())
        }
        11 => {
            let more = draw.below(20) + 1;
            let grown = sectors + more;
            ledger.sizes.push(usize::try_from(grown).unwrap());
            ledger
                .may_hold
                .resize(usize::try_from(grown).unwrap(), vec![0]);
            let virtual_bytes = grown * 512;
            run(image.manage(Manage::grow(virtual_bytes)))?;
            // What the disk was before is durable too.
            ledger.flushed();
            ledger.sizes = vec![usize::try_from(grown).unwrap()];
            Ok(())
        }
        _ => {
            run(image.flush())?;
            ledger.flushed();
            Ok(())
        }
    }
}

/// Runs a workload until the power goes, and judges what several losses leave. The first complaint.
fn complaint(seed: u64, from: Start, planted: Planted) -> Option<String> {
    let mut draw = Draw::new(seed);
    let images = start(&mut draw, from);
    let power = Rc::new(Cell::new(u64::MAX));
    let disks = images.map(|image| CachedDisk::new(image, &power));
    let ports = disks.clone().map(|disk| Port::new(disk));
    let image = open(&ports, planted).unwrap();
    let sectors = usize::try_from(image.virtual_bytes()).unwrap() / SECTOR;
    let mut ledger = Ledger::new(sectors);
    power.set(draw.below(60));
    for value in 1..=u8::try_from(5 + draw.below(40)).unwrap() {
        if step(&image, &mut ledger, &mut draw, value).is_err() {
            break;
        }
    }
    power.set(0);
    (0..4).find_map(|_| {
        let left = disks.clone().map(|disk| disk.after_loss(&mut draw));
        let judged = judge(left, &ledger, from);
        judged.err().map(|why| format!("seed {seed}: {why}"))
    })
}

fn judge(left: [PageImage; 2], ledger: &Ledger, from: Start) -> Result<(), String> {
    let rams = left.map(Ram::new);
    let ports = [rams[0].port.clone(), rams[1].port.clone()];
    let image = open(&ports, Planted::NONE).map_err(|error| error.to_string())?;
    let len = usize::try_from(image.virtual_bytes()).unwrap();
    let shown = run(image.read(0, len)).map_err(|error| error.to_string())?;
    ledger.judge(&shown)?;
    if from != Start::New(DataFileContent::Clusters) {
        let mut alone = rams[1].bytes();
        alone.resize(alone.len().max(len), 0);
        let differs = (0..len).find(|at| alone[*at] != shown[*at]);
        if let Some(at) = differs {
            return Err(format!(
                "the raw data file holds {} at {at:#x}, the disk {}",
                alone[at], shown[at]
            ));
        }
    }
    run(image.close()).map_err(|error| error.to_string())?;
    let report = run(check(&rams[0].port, Repair::None, &CheckOptions::default()));
    let report = report.map_err(|error| error.to_string())?;
    match report.found.corruptions {
        0 => Ok(()),
        _ => Err(format!("{:?}", report.findings)),
    }
}

fn first_complaint(seeds: u64, from: Start, planted: Planted) -> Option<String> {
    (1..=seeds).find_map(|seed| complaint(seed, from, planted))
}

#[test]
fn two_disks_that_lose_power_together_keep_what_was_flushed() {
    for from in [
        Start::New(DataFileContent::Clusters),
        Start::New(DataFileContent::Raw),
        Start::RawWithZeroFlags,
    ] {
        assert_eq!(first_complaint(600, from, Planted::NONE), None, "{from:?}");
    }
}

#[cfg(feature = "defects")]
#[test]
fn what_is_left_out_of_the_order_between_two_files_is_noticed() {
    use engine::defect::Defect;

    let clusters = Start::New(DataFileContent::Clusters);
    let raw = Start::New(DataFileContent::Raw);
    for (defect, from) in [
        (Defect::LinkBeforeDataFile, clusters),
        (Defect::FlushSkipsDataFile, clusters),
        (Defect::FlushSkipsDataFile, raw),
        (Defect::RawZeroesByFlag, raw),
        (Defect::RawDataBeforeLink, Start::RawWithZeroFlags),
    ] {
        let found = first_complaint(600, from, Planted::one(defect));
        assert!(found.is_some(), "{defect:?} {from:?}");
    }
}
