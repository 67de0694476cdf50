//! Files that people hand in, read and never written.

use std::io;
use std::path::Path;
use std::rc::Rc;

use engine::device::{
    Device, Event, FileDevice, Op, PageImage, Port, RamDevice, Reply, Request, drive,
};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::{self, Header};
use harness::trace::Trace;
use harness::workload::given::Given;

use crate::Refusal;

/// An image of more than this is refused: every byte of it is looked at in every crash state.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// A file is read so much at a time.
const STEP: u64 = 1 << 20;
/// A trace of more than this is none.
const MAX_TRACE_BYTES: u64 = 64 << 20;

/// Reads a file into memory.
pub(crate) fn load(path: &Path) -> Result<PageImage, Refusal> {
    let refuse = |error: io::Error| Refusal(format!("{}: {error}", path.display()));
    let device = FileDevice::open_read_only(path).map_err(refuse)?;
    let mut image = PageImage::zeroed(device.len());
    let mut offset = 0;
    while offset < device.len() {
        let len = STEP.min(device.len() - offset);
        let len_bytes = usize::try_from(len).expect("a step fits memory");
        let request = Request {
            event: Event::None,
            op: Op::Read { offset, len_bytes },
        };
        match drive(device.submit(request)) {
            Some(Ok(Reply::Data(data))) => image.write(offset, &data),
            Some(Err(error)) => return Err(Refusal(format!("{}: {error}", path.display()))),
            Some(Ok(Reply::Done)) | None => unreachable!("a file answers a read at once with data"),
        }
        offset += len;
    }
    Ok(image)
}

/// Reads a qcow2 image that a campaign shall start from, with the size of its disk and its geometry.
pub(crate) fn load_image(path: &Path) -> Result<(Given, u64, Geometry), Refusal> {
    let refuse = |text: String| Refusal(format!("{}: {text}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if metadata.len() > MAX_IMAGE_BYTES {
        let (len, most) = (metadata.len(), MAX_IMAGE_BYTES);
        return Err(refuse(format!(
            "{len} bytes are more than the {most} that a campaign takes"
        )));
    }
    let bytes = load(path)?;
    if !engine::qcow2::probe(&bytes.read_vec(0, 512)) {
        return Err(refuse("this is not a qcow2 image".into()));
    }
    let header = sound_header(&bytes).map_err(refuse)?;
    if header.backing_name.is_some() {
        return Err(refuse(
            "images with a backing file cannot start a campaign".into(),
        ));
    }
    let given = Given::new(path.display().to_string(), &bytes);
    Ok((given, header.virtual_bytes, header.geometry))
}

/// The header of an image that is sound, or that its dirty bit promises to repair at the next open: on a
/// copy in memory, that is tried.
fn sound_header(bytes: &PageImage) -> Result<Header, String> {
    let port = Port::new(Rc::new(RamDevice::new(bytes.clone())));
    let at_once = "memory answers at once";
    let header = drive(header::read(&port))
        .expect(at_once)
        .map_err(|error| error.to_string())?;
    let repair = if header.is_dirty() {
        Repair::All
    } else {
        Repair::None
    };
    let report = drive(check(&port, repair, &CheckOptions::default())).expect(at_once);
    let report = report.map_err(|error| error.to_string())?;
    let errors = report.errors_remaining();
    if errors == 0 {
        return Ok(header);
    }
    let first = report
        .findings
        .first()
        .map_or_else(String::new, ToString::to_string);
    Err(format!(
        "the image is damaged ({errors} errors, the first: {first}); repair a copy with `check --repair \
         all` and start from that"
    ))
}

/// Reads a trace.
pub(crate) fn load_trace(path: &Path) -> Result<Trace, Refusal> {
    let refuse = |text: String| Refusal(format!("{}: {text}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if metadata.len() > MAX_TRACE_BYTES {
        return Err(refuse(format!("{} bytes are no trace", metadata.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let loader = |name: &str| load(Path::new(name)).map_err(|Refusal(text)| text);
    Trace::from_json(&text, &loader).map_err(|error| refuse(error.to_string()))
}

/// Makes a directory, and proves that files can be made in it.
pub(crate) fn writable_directory(path: &Path) -> Result<(), Refusal> {
    let refuse = |error: io::Error| Refusal(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(path).map_err(refuse)?;
    let probe = path.join(".qrash-can-write");
    std::fs::write(&probe, b"").map_err(refuse)?;
    std::fs::remove_file(&probe).map_err(refuse)
}
