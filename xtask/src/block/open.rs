//! Opening what a [`Spec`] describes, with everything beneath it.

use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use blkdebug::config::{Config, Sections};
use blkdebug::filter::Filter;
use blkdebug::verify::{Mismatch, Verify};
use engine::device::{
    Claim, Device, DeviceError, Event, FileClaims, FileDevice, Op, Port, RamDevice, SECTOR_BYTES,
    drive,
};
use engine::error::{Error, Problem, Refused};
use engine::image::{Access, Image};
use engine::luks::Secret;
use engine::qcow2::Encryption;
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header::{self, Header};
use engine::qcow2::snapshot::{self, Snapshot};
use engine::qcow2::{BitmapInfo, Files, OpenOptions, Qcow2, list_bitmaps};
use engine::raw::Raw;

use super::behind::WriteBehind;
use super::beneath::ImageDevice;
use super::claims::{self, Locking, Role, in_use};
use super::device::CachedFile;
use super::direct::{Below, Direct, Top};
use super::failure::{engine_text, os_text};
use super::filters::BlkdebugOptions;
use super::runtime::Generic;
use super::secret::Secrets;
use super::spec::FileSpec;
use super::{CacheMode, Failure, Format, Spec};
use crate::img::{print, say_error};

/// A chain of more images than this is refused.
const MAX_CHAIN: usize = 200;
/// So many bytes tell a format.
const PROBE_LEN: usize = 512;

/// How to open an image.
#[derive(Clone, Debug)]
pub(crate) struct Opening<'a> {
    /// Whether it may be written; what lies beneath never is.
    pub(crate) access: Access,
    /// Whether others may write it meanwhile.
    pub(crate) sharing: Sharing,
    /// When written data must be on the medium.
    pub(crate) cache: CacheMode,
    /// How much is opened.
    pub(crate) depth: Depth,
    /// What options may refer to.
    pub(crate) secrets: &'a Secrets,
}

/// Whether others may use an image meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Others may read it, and write it if it is raw.
    ByFormat,
    /// Others may read it, whatever it is.
    Readers,
    /// Others may do what they like (`-U`).
    Anyone,
    /// The same, and nobody is asked whether this may be read.
    Unasked,
}

/// How much of an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The file and its header.
    Header,
    /// The same, and as little of everything beneath: it takes no secret, and shows no data.
    Headers,
    /// The file, its header, and everything beneath, but not the image itself.
    HeaderAndBacking,
    /// The image, and nothing beneath: what is not in it reads as zeroes.
    Alone,
    /// The image and everything beneath.
    Chain,
}

/// The file that an image stands in.
#[derive(Clone, Debug)]
pub(crate) struct FileNode {
    /// What it is.
    pub(crate) spec: FileSpec,
    /// The local file at the bottom.
    pub(crate) path: String,
    /// The device that the format sees.
    pub(crate) port: Port,
    /// What is claimed on the local file; none where the caller turned locks off.
    claims: Option<Rc<FileClaims>>,
    /// The topmost device of the kind that knows breakpoints, where there is one.
    pub(crate) filter: Option<Filter>,
    /// What stands before the local file, where something does.
    below: Option<Below>,
}

/// Something open.
#[derive(Clone)]
pub(crate) struct Node {
    /// The name in output.
    pub(crate) filename: String,
    /// Its format.
    pub(crate) format: Format,
    /// Its file.
    pub(crate) file: FileNode,
    /// Its header, where its format has one.
    pub(crate) header: Option<Header>,
    /// The file of its guest data, where that is another and more than the header was asked for.
    data_file: Option<FileNode>,
    /// The image, where it was asked for.
    image: Option<Rc<dyn Image>>,
    /// The same, where it is qcow2.
    pub(crate) qcow2: Option<Rc<Qcow2>>,
    /// What lies beneath, where it was asked for and there is something.
    pub(crate) backing: Option<Rc<Node>>,
    /// When written data must be on the medium.
    pub(crate) cache: CacheMode,
    /// What discards and zeroes do to it.
    pub(crate) generic: Generic,
    /// The way to a raw disk over a filter.
    pub(crate) direct: Option<Direct>,
}

impl FileNode {
    /// Puts a claim in the place of what was claimed before.
    fn claim(&self, claim: Claim) -> Result<(), Failure> {
        let claim = match &self.spec {
            FileSpec::Blkdebug { options, .. } if claim != Claim::NONE => options.claim(claim),
            FileSpec::Blkdebug { .. }
            | FileSpec::Local { .. }
            | FileSpec::Blkverify { .. }
            | FileSpec::Image(_) => claim,
        };
        match &self.claims {
            Some(claims) => claims
                .take(claim)
                .map_err(|error| claims::refusal(&self.path, error)),
            None => Ok(()),
        }
    }

    /// Refuses a file that ends within a unit of its requests: a write there would make it longer.
    fn must_end_aligned(&self) -> Result<(), Failure> {
        let end = self.port.len().next_multiple_of(SECTOR_BYTES);
        let mut spec = &self.spec;
        while let FileSpec::Blkdebug { options, below } = spec {
            if !end.is_multiple_of(options.limits.align.max(1)) {
                return Err(Failure::new(
                    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
                ));
            }
            spec = below;
        }
        Ok(())
    }
}

impl Node {
    /// Claims the length of the file too, where opening it did not.
    pub(crate) fn claim_resize(&self) -> Result<(), Failure> {
        match &self.file.claims {
            Some(claims) => self.file.claim(claims::with_resize(claims.held())),
            None => Ok(()),
        }
    }

    /// Claims nothing any more, for one who is going to open the same file anew.
    pub(crate) fn release(&self) -> Result<(), Failure> {
        self.file.claim(Claim::NONE)
    }

    /// The open image.
    ///
    /// # Panics
    /// Where it was opened to less than [`Depth::Alone`].
    pub(crate) fn image(&self) -> &Rc<dyn Image> {
        self.image.as_ref().expect("the image was asked for")
    }

    /// Takes the length of a raw disk over a filter for what it is by now, and tells whether this is one. It has been
    /// written, or its length would be the same.
    pub(crate) fn measured_again(&mut self) -> bool {
        let Some(direct) = &self.direct else {
            return false;
        };
        self.image = Some(Rc::new(Raw::open(direct.port(), Access::ReadWrite)));
        true
    }

    /// A writable image in memory over this one, which is not written.
    pub(crate) fn under_temporary(self) -> Result<Self, Failure> {
        let port = Port::new(Rc::new(RamDevice::default()));
        let options = CreateOptions {
            virtual_bytes: self.virtual_bytes(),
            ..CreateOptions::default()
        };
        let failed = |error: &Error| Failure(engine_text(error));
        at_once(create(&port, &options)).map_err(|error| failed(&error))?;
        let header = at_once(header::read(&port)).map_err(|error| failed(&error))?;
        let beneath: Rc<dyn Image> = Rc::clone(self.image());
        let defaults = OpenOptions::default();
        let opened = Qcow2::open(port.clone(), Some(beneath), &defaults);
        let qcow2 = Rc::new(at_once(opened).map_err(|error| failed(&error))?);
        Ok(Self {
            filename: self.filename.clone(),
            format: Format::Qcow2,
            file: FileNode {
                port,
                ..self.file.clone()
            },
            header: Some(header),
            data_file: None,
            image: Some(qcow2.clone()),
            qcow2: Some(qcow2),
            cache: self.cache,
            generic: self.generic,
            direct: None,
            backing: Some(Rc::new(self)),
        })
    }

    /// The file that guest data stand in.
    pub(crate) fn data_file(&self) -> &FileNode {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// The files that this image is made of, without what lies beneath.
    pub(crate) fn files(&self) -> impl Iterator<Item = &FileNode> {
        std::iter::once(&self.file).chain(&self.data_file)
    }

    /// The size of the guest's disk.
    pub(crate) fn virtual_bytes(&self) -> u64 {
        if let Some(direct) = &self.direct {
            return direct.virtual_bytes();
        }
        match (&self.image, &self.header) {
            (Some(image), _) => image.virtual_bytes(),
            (None, Some(header)) => header.virtual_bytes,
            (None, None) => self.file.port.len().next_multiple_of(SECTOR_BYTES),
        }
    }

    /// Asks a filter below a raw disk whether it says what a stretch is made of.
    pub(crate) fn ask_status(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        let filter = self.direct.as_ref().and_then(Direct::filter);
        let asked = filter.map_or(Ok(()), |filter| filter.ask_status(offset, len_bytes));
        asked.map_err(|cause| {
            let op = Op::Read {
                offset,
                len_bytes: usize::try_from(len_bytes).unwrap_or(usize::MAX),
            };
            DeviceError::new(Event::None, &op, cause).into()
        })
    }

    /// The internal snapshots.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        match &self.header {
            Some(header) => at_once(snapshot::list(self.file.port.clone(), header))
                .map_err(|error| qcow2_failure(&error)),
            None => Ok(Vec::new()),
        }
    }

    /// The persistent dirty bitmaps, as the file has them.
    pub(crate) fn bitmaps(&self) -> Result<Vec<BitmapInfo>, Failure> {
        match &self.header {
            Some(header) => at_once(list_bitmaps(&self.file.port, header))
                .map_err(|error| qcow2_failure(&error)),
            None => Ok(Vec::new()),
        }
    }

    /// What lies beneath by the word of the image.
    pub(crate) fn backing_spec(&self) -> Result<Option<Spec>, Failure> {
        match &self.header {
            Some(header) => Spec::beneath(&self.file.spec, header),
            None => Ok(None),
        }
    }
}

/// Runs an operation of the engine on files, which answer at once.
pub(crate) fn at_once<T>(operation: impl Future<Output = T>) -> T {
    drive(operation).expect("a file completes every request at once")
}

/// Opens what `spec` describes. The failure does not repeat the name of `spec` itself.
pub(crate) fn open(spec: &Spec, opening: &Opening<'_>) -> Result<Node, Failure> {
    Opener {
        opening: opening.clone(),
        may_resize: false,
        above: Vec::new(),
    }
    .open(spec)
}

/// The same for one who is going to change the length of a raw file.
pub(crate) fn open_to_resize(spec: &Spec, opening: &Opening<'_>) -> Result<Node, Failure> {
    Opener {
        opening: opening.clone(),
        may_resize: true,
        above: Vec::new(),
    }
    .open(spec)
}

/// The opening of one chain, from the top down.
struct Opener<'a> {
    opening: Opening<'a>,
    /// Whether a raw file may become longer; that of another format always may.
    may_resize: bool,
    /// The files above, by device and inode.
    above: Vec<(u64, u64)>,
}

impl Opener<'_> {
    fn open(&mut self, spec: &Spec) -> Result<Node, Failure> {
        let access = if spec.read_only {
            Access::ReadOnly
        } else {
            self.opening.access
        };
        if spec.force_share {
            self.opening.sharing = Sharing::Anyone;
        }
        if access == Access::ReadWrite && self.opening.sharing == Sharing::Anyone {
            return Err(Failure::new(
                "force-share=on can only be used with read-only images",
            ));
        }
        let file = self.open_file(&spec.file, access)?;
        let start = first_bytes(spec.format, &file.port)?;
        let format = spec.format.unwrap_or_else(|| Format::probe(&start));
        if spec.format.is_none() && format == Format::Raw && access == Access::ReadWrite {
            warn_of_probed_raw(&spec.called);
        }
        file.claim(claims::claim(Role::Image(format), access, &self.opening))?;
        if access == Access::ReadWrite && format == Format::Raw && !self.may_resize {
            file.must_end_aligned()?;
        }
        let mut node = Node {
            filename: filename(spec),
            format,
            header: read_header(format, &file.port, &start)?,
            file,
            data_file: None,
            image: None,
            qcow2: None,
            backing: None,
            cache: self.opening.cache,
            generic: spec.runtime.generic,
            direct: None,
        };
        node.direct = direct(spec, &node);
        if !matches!(self.opening.depth, Depth::Header | Depth::Headers) {
            node.data_file = self.open_data_file(spec, &node, access)?;
        }
        match self.opening.depth {
            Depth::Header => {}
            Depth::Headers => {
                node.backing = self.open_backing(spec, &node, Depth::Headers)?;
            }
            Depth::HeaderAndBacking => {
                let depth = Depth::Chain;
                self.key(spec, &node)?;
                node.backing = self.open_backing(spec, &node, depth)?;
            }
            Depth::Alone => self.open_image(spec, &mut node, access)?,
            Depth::Chain => {
                node.backing = self.open_backing(spec, &node, Depth::Chain)?;
                self.open_image(spec, &mut node, access)?;
            }
        }
        Ok(node)
    }

    fn open_file(&mut self, spec: &FileSpec, access: Access) -> Result<FileNode, Failure> {
        match spec {
            FileSpec::Local { path, locking } => {
                let device = open_local(path, access)?;
                self.must_be_new(path)?;
                let claims = match locking {
                    Locking::Auto => device.claims().map(|claims| Some(Rc::new(claims))),
                    Locking::Off => Ok(None),
                };
                let claims = claims.map_err(|error| cannot_open(path, &os_text(&error)))?;
                let cache = self.opening.cache;
                let device: Rc<dyn Device> = match (cache, access) {
                    (CacheMode::Unsafe, Access::ReadWrite) => Rc::new(WriteBehind::new(device)),
                    _ => Rc::new(CachedFile::new(device, cache)),
                };
                Ok(FileNode {
                    spec: spec.clone(),
                    path: path.clone(),
                    filter: None,
                    below: None,
                    port: Port::new(device),
                    claims,
                })
            }
            FileSpec::Blkdebug { options, below } => {
                let rules = all_rules(options)?;
                if access == Access::ReadOnly && options.takes_writing() {
                    return Err(Failure::new("Block node is read-only"));
                }
                let below = self.open_file(below, access)?;
                let filter = Filter::new(below.port.device(), rules, options.limits, |notice| {
                    print(&format!("{notice}\n"));
                });
                Ok(FileNode {
                    spec: spec.clone(),
                    port: Port::new(Rc::new(filter.clone())),
                    below: Some(Below::Blkdebug(filter.clone())),
                    filter: Some(filter),
                    ..below
                })
            }
            FileSpec::Blkverify { raw, test } => self.open_verified(raw, test, access),
            FileSpec::Image(image) => self.open_beneath(image, access),
        }
    }

    /// Opens an image and the raw file that it is compared with.
    fn open_verified(
        &mut self,
        raw: &FileSpec,
        test: &FileSpec,
        access: Access,
    ) -> Result<FileNode, Failure> {
        let raw = self.open_file(raw, access)?;
        let role = Role::Image(Format::Raw);
        raw.claim(claims::claim(role, access, &self.opening))?;
        if access == Access::ReadWrite {
            raw.must_end_aligned()?;
        }
        // As in QEMU the length of the image is blkverify's to change, and only that of the raw file is not.
        let may_resize = std::mem::replace(&mut self.may_resize, true);
        let test = self.open_file(test, access);
        self.may_resize = may_resize;
        let test = test?;
        let spec = FileSpec::Blkverify {
            raw: Box::new(raw.spec.clone()),
            test: Box::new(test.spec.clone()),
        };
        let (test, reference) = (test.port.device(), raw.port.device());
        let verify = Verify::new(test, reference, end_with);
        Ok(FileNode {
            spec,
            port: Port::new(Rc::new(verify.clone())),
            below: Some(Below::Blkverify(verify)),
            ..raw
        })
    }

    /// Opens an image that a filter stands before.
    fn open_beneath(&mut self, image: &Spec, access: Access) -> Result<FileNode, Failure> {
        let before = self.opening.clone();
        self.opening.depth = Depth::Chain;
        self.opening.access = access;
        let opened = self.open(image);
        self.opening = before;
        let node = opened?;
        let found = Spec {
            format: Some(node.format),
            ..image.clone()
        };
        let (path, filter) = (node.file.path.clone(), node.file.filter.clone());
        let port = Port::new(Rc::new(ImageDevice::new(node)));
        Ok(FileNode {
            spec: FileSpec::Image(Box::new(found)),
            path,
            // The image claimed what it needs.
            claims: None,
            filter,
            below: Some(Below::Image(port.clone())),
            port,
        })
    }

    /// Opens the file of guest data, where that is another.
    fn open_data_file(
        &mut self,
        spec: &Spec,
        node: &Node,
        access: Access,
    ) -> Result<Option<FileNode>, Failure> {
        let header = node.header.as_ref();
        let header = header.filter(|header| header.geometry.has_external_data());
        let file = match (header, &spec.data_file) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(Failure::new(
                    "'data-file' can only be set for images with an external data file",
                ));
            }
            (Some(_), Some(given)) => given.clone(),
            (Some(header), None) => FileSpec::of_image_data(header)?,
        };
        let path = file.path();
        if identity(path).is_ok_and(|identity| self.above.contains(&identity)) {
            // A data file that is an image of this chain would be written twice, or read as what it is not.
            return Err(in_use(path, "shared \"resize\""));
        }
        let file = self.open_file(&file, access)?;
        file.claim(claims::claim(Role::Data, access, &self.opening))?;
        Ok(Some(file))
    }

    fn must_be_new(&mut self, path: &str) -> Result<(), Failure> {
        let identity = identity(path).map_err(|error| cannot_open(path, &os_text(&error)))?;
        if self.above.contains(&identity) {
            return Err(Failure(format!(
                "The backing chain comes back to '{path}': it is a loop"
            )));
        }
        if self.above.len() >= MAX_CHAIN {
            return Err(Failure(format!(
                "The backing chain has more than {MAX_CHAIN} images"
            )));
        }
        self.above.push(identity);
        Ok(())
    }

    fn open_backing(
        &mut self,
        spec: &Spec,
        node: &Node,
        depth: Depth,
    ) -> Result<Option<Rc<Node>>, Failure> {
        let failed = |why: Failure| Failure(format!("Could not open backing file: {}", why.0));
        let beneath = spec
            .backing
            .resolve(|| node.backing_spec().map_err(failed))?;
        let Some(beneath) = beneath else {
            return Ok(None);
        };
        let (access, above) = (self.opening.access, self.opening.depth);
        self.opening.access = Access::ReadOnly;
        self.opening.depth = depth;
        let opened = self.open(&beneath);
        self.opening.access = access;
        self.opening.depth = above;
        Ok(Some(Rc::new(opened.map_err(failed)?)))
    }

    fn open_image(&self, spec: &Spec, node: &mut Node, access: Access) -> Result<(), Failure> {
        let key = self.key(spec, node)?;
        match node.format {
            Format::Raw => {
                spec.runtime.generic.check()?;
                let port = node.direct.as_ref().map(Direct::port);
                let port = port.unwrap_or_else(|| node.file.port.clone());
                node.image = Some(Rc::new(Raw::open(port, access)));
            }
            Format::Qcow2 => {
                let header = node.header.as_ref().expect("the format has a header");
                let options = OpenOptions {
                    access,
                    snapshot: spec.snapshot.clone(),
                    ..spec.runtime.open_options(header)?
                };
                let backing = node.backing.as_ref().map(|node| Rc::clone(node.image()));
                let files = Files {
                    image: node.file.port.clone(),
                    data: node.data_file.as_ref().map(|file| file.port.clone()),
                    backing,
                };
                let opened = at_once(Qcow2::open_files(files, &options, key.as_slice()));
                let qcow2 = Rc::new(opened.map_err(|error| qcow2_failure(&error))?);
                node.image = Some(qcow2.clone());
                node.qcow2 = Some(qcow2);
            }
        }
        Ok(())
    }
}

impl Opener<'_> {
    /// The secret that opens the image, where it is encrypted.
    fn key(&self, spec: &Spec, node: &Node) -> Result<Option<Secret>, Failure> {
        let key = match &spec.key_secret {
            Some(id) => Some(Secret::new(self.opening.secrets.get(id)?.to_vec())),
            None => None,
        };
        let method = node.header.as_ref().and_then(|header| header.encryption);
        let method = method.map(|method| match method {
            Encryption::Aes => "aes",
            Encryption::Luks { .. } => "luks",
        });
        match (method, spec.encryption.as_deref()) {
            (None, Some(asked)) => Err(Failure(format!(
                "No encryption in image header, but options specified format '{asked}'"
            ))),
            (Some(method), Some(asked)) if method != asked => Err(Failure(format!(
                "Header reported '{method}' encryption format but options specify '{asked}'"
            ))),
            (Some(_), _) if key.is_none() => Err(Failure::new(
                "Parameter 'encrypt.key-secret' is required for cipher",
            )),
            (Some(_), _) => Ok(key),
            (None, None) => Ok(None),
        }
    }
}

/// Tells how an image differs from its reference and ends the program, as QEMU's do.
#[expect(
    clippy::disallowed_methods,
    reason = "the commands end their process like this"
)]
fn end_with(mismatch: &Mismatch) {
    say_error(&format!("{mismatch}\n"));
    std::process::exit(1);
}

/// The rules of a configuration file, where there is one, before those of the options.
fn all_rules(options: &BlkdebugOptions) -> Result<Config, Failure> {
    let mut all = Sections::default();
    if !options.config.is_empty() {
        let bytes = fs::read(&options.config).map_err(|error| {
            let doing = if error.kind() == ErrorKind::IsADirectory {
                "Cannot read config file"
            } else {
                "Could not read blkdebug config file"
            };
            Failure(format!("{doing}: {}", os_text(&error)))
        })?;
        let added = all.add_file(&String::from_utf8_lossy(&bytes));
        added.map_err(|bad| Failure(bad.in_file(&options.config)))?;
    }
    all.append(options.rules.clone());
    all.config()
        .map_err(|bad| Failure(bad.in_file(&options.config)))
}

/// The way to a raw disk over a filter; over anything else there is none.
fn direct(spec: &Spec, node: &Node) -> Option<Direct> {
    let below = node.file.below.clone()?;
    let top = match (node.format, spec.format) {
        (Format::Qcow2, _) => return None,
        (Format::Raw, _) if spec.is_bare => Top::Nothing,
        (Format::Raw, None) => Top::Probed,
        (Format::Raw, Some(_)) => Top::Named,
    };
    Some(Direct::new(below, top))
}

/// What tells a format, where it is to be told or checked.
fn first_bytes(format: Option<Format>, port: &Port) -> Result<Vec<u8>, Failure> {
    if format == Some(Format::Raw) {
        return Ok(Vec::new());
    }
    let read = at_once(port.at(Event::None).read(0, PROBE_LEN));
    read.map_err(|error| {
        let text = engine_text(&error.into());
        Failure(match format {
            None => format!("Could not read image for determining its format: {text}"),
            Some(_) => format!("Could not read qcow2 header: {text}"),
        })
    })
}

/// The name in output: a description where a plain name would not open the image again.
fn filename(spec: &Spec) -> String {
    match (&spec.key_secret, &spec.file) {
        (Some(id), FileSpec::Local { path, .. }) => {
            let quoted = |text: &str| serde_json::Value::from(text).to_string();
            format!(
                "json:{{\"encrypt.key-secret\": {}, \"driver\": \"qcow2\", \"file\": {{\"driver\": \"file\", \"filename\": {}}}}}",
                quoted(id),
                quoted(path)
            )
        }
        (Some(_) | None, file) => file.filename(),
    }
}

fn open_local(path: &str, access: Access) -> Result<FileDevice, Failure> {
    let opened = match access {
        Access::ReadOnly => FileDevice::open_read_only(Path::new(path)),
        Access::ReadWrite => FileDevice::open_unclaimed(Path::new(path)),
    };
    opened.map_err(|error| {
        if error.kind() == ErrorKind::InvalidInput {
            Failure(format!(
                "'file' driver requires '{path}' to be a regular file"
            ))
        } else {
            cannot_open(path, &os_text(&error))
        }
    })
}

/// The device and the inode of a local file.
pub(crate) fn identity(path: impl AsRef<Path>) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn cannot_open(path: &str, why: &str) -> Failure {
    Failure(format!("Could not open '{path}': {why}"))
}

fn read_header(format: Format, port: &Port, start: &[u8]) -> Result<Option<Header>, Failure> {
    match format {
        Format::Raw => Ok(None),
        Format::Qcow2 => {
            if !start.starts_with(b"QFI\xfb") {
                return Err(Failure::new("Image is not in qcow2 format"));
            }
            let header = at_once(header::read(port)).map_err(|error| qcow2_failure(&error))?;
            Ok(Some(header))
        }
    }
}

fn qcow2_failure(error: &Error) -> Failure {
    if let Error::BadImage(bad) = error
        && bad.problem == Problem::MarkedCorrupt
    {
        return Failure::new("qcow2: Image is corrupt; cannot be opened read/write");
    }
    if *error == Refused::WrongSecret.into() {
        return Failure::new("Invalid password, cannot unlock any keyslot");
    }
    Failure(engine_text(error))
}

#[expect(
    clippy::print_stderr,
    reason = "a warning for the person at the terminal"
)]
fn warn_of_probed_raw(name: &str) {
    eprintln!(
        "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 \
         will be restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions."
    );
}
