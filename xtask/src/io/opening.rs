//! Opening, closing and reopening the disk.

use engine::image::Access;
use engine::qcow2::GuestDiscards;

use super::command::{Command, Needs};
use super::report::Stopwatch;
use super::session::{Complaint, Ending, Outcome, Session};
use super::transfer::parse;
use crate::block::disk::{Disk, ReadMode};
use crate::block::options::Options;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Sharing, Spec, open};

/// How a disk is opened.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What to open, and how people call it in messages.
    pub(super) spec: Spec,
    pub(super) access: Access,
    pub(super) sharing: Sharing,
    pub(super) cache: CacheMode,
    pub(super) discards: GuestDiscards,
    pub(super) target: Target,
    pub(super) read_mode: ReadMode,
}

/// Where writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Into the image.
    Image,
    /// Into memory above it (`-s`).
    Temporary,
}

/// What is open.
pub(super) struct Opened {
    pub(super) settings: Settings,
    pub(super) node: Node,
    pub(super) disk: Disk,
    /// Since when the caches were not cleaned.
    pub(super) uncleaned: Stopwatch,
}

impl Opened {
    /// Whether the disk may be written.
    pub(super) fn is_writable(&self) -> bool {
        self.settings.target == Target::Temporary || self.settings.is_writable()
    }
}

impl Settings {
    /// The settings that hold where nothing is said: written through.
    pub(super) fn of(spec: Spec) -> Self {
        Self {
            spec,
            access: Access::ReadWrite,
            sharing: Sharing::ByFormat,
            cache: CacheMode::WriteThrough,
            discards: GuestDiscards::Obeyed,
            target: Target::Image,
            read_mode: ReadMode::Plain,
        }
    }

    fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite && !self.spec.read_only
    }

    /// Takes in an option that `open` and the program itself share. Tells whether it is one.
    pub(super) fn take(&mut self, option: char, argument: &str) -> Result<bool, Failure> {
        match option {
            'r' => self.access = Access::ReadOnly,
            's' => self.target = Target::Temporary,
            'n' => self.cache = CacheMode::WriteBack,
            'C' => self.read_mode = ReadMode::CopyOnRead,
            'U' => self.sharing = Sharing::Anyone,
            'k' | 'm' => {}
            't' => {
                self.cache = CacheMode::from_name(argument)
                    .ok_or_else(|| Failure(format!("Invalid cache option: {argument}")))?;
            }
            'd' => {
                self.discards = match argument {
                    "off" | "ignore" => GuestDiscards::Ignored,
                    "on" | "unmap" => GuestDiscards::Obeyed,
                    other => return Err(Failure(format!("Invalid discard option: {other}"))),
                };
            }
            'i' => {
                if !["threads", "native", "io_uring"].contains(&argument) {
                    return Err(Failure(format!("Invalid aio option: {argument}")));
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

pub(super) const OPEN: Command = Command {
    name: "open",
    short: Some("o"),
    takes: (1, None),
    operands: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
    about: "open the file specified by path",
    needs: Needs::Nothing,
    options: &[
        ('r', "for reading only"),
        ('s', "changes go into memory and are lost"),
        ('C', "what is read from beneath is copied into the image"),
        ('n', "short for -t none"),
        ('U', "others may write the image meanwhile"),
        ('k', "accepted, and without effect"),
        (
            'i',
            "threads, native or io_uring: accepted, and without effect",
        ),
        ('t', "the cache mode"),
        ('d', "whether discards reach the image: unmap or ignore"),
        ('o', "options of the image"),
    ],
    run: open_command,
};

pub(super) const CLOSE: Command = Command {
    name: "close",
    short: Some("c"),
    takes: (0, Some(0)),
    operands: "",
    about: "close the current open file",
    needs: Needs::Disk,
    options: &[],
    run: |session, _| session.close().map(|()| Ending::Done),
};

pub(super) const REOPEN: Command = Command {
    name: "reopen",
    short: None,
    takes: (0, None),
    operands: "[(-r|-w)] [-c cache] [-o options]",
    about: "reopens an image with new options",
    needs: Needs::Disk,
    options: &[
        ('r', "for reading only"),
        ('w', "for reading and writing"),
        ('c', "the cache mode"),
        ('o', "options of the image"),
    ],
    run: reopen,
};

/// Opens a disk. The failure names nothing.
fn opened(session: &Session, settings: Settings) -> Result<Opened, Failure> {
    let mut settings = settings;
    if settings.read_mode == ReadMode::CopyOnRead && !settings.is_writable() {
        return Err(Failure::new("Can't use copy-on-read on read-only device"));
    }
    // What is said of the image goes before what is said of the program's discards.
    let discard = &mut settings.spec.runtime.generic.discard;
    discard.get_or_insert(settings.discards);
    let access = match settings.target {
        Target::Image => settings.access,
        Target::Temporary => Access::ReadOnly,
    };
    let opening = Opening {
        access,
        sharing: settings.sharing,
        cache: settings.cache,
        depth: Depth::Chain,
        secrets: &session.secrets,
    };
    let mut node = open(&settings.spec, &opening)?;
    if settings.target == Target::Temporary {
        node = node.under_temporary()?;
    }
    let disk = Disk::new(&node, settings.cache, settings.read_mode);
    Ok(Opened {
        settings,
        node,
        disk,
        uncleaned: Stopwatch::start(),
    })
}

/// Opens the disk that a name or options mean; `path` is what the caller called it.
pub(super) fn open_named(
    session: &mut Session,
    path: Option<&str>,
    settings: Result<Settings, Failure>,
) -> Result<(), Failure> {
    if session.open.is_some() {
        return Err(Failure::new("file open already, try 'help close'"));
    }
    let opened = settings.and_then(|settings| opened(session, settings));
    session.open = Some(opened.map_err(|why| {
        Failure(match path {
            Some(path) => format!("can't open device {path}: {}", why.0),
            None => format!("can't open: {}", why.0),
        })
    })?);
    Ok(())
}

fn open_command(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("snCro:ki:t:d:U", words)?;
    let mut options: Option<Options> = None;
    let mut draft = Settings::of(Spec::from_name("", None)?);
    for (option, argument) in words.options() {
        if option == 'o' {
            options = Some(Options::from_list(argument));
        } else {
            draft.take(option, argument)?;
        }
    }
    let path = match words.operands.as_slice() {
        [] => None,
        [path] => Some(path.as_str()),
        _ => return Err(Complaint::Usage),
    };
    let spec = match (path, options) {
        (Some(path), None) => Spec::from_name(path, None),
        (None, None) => return Err(Complaint::Usage),
        (path, Some(mut options)) => {
            if let Some(path) = path {
                options.set("filename", path);
            }
            Spec::from_options(path.unwrap_or_default(), options)
        }
    };
    let settings = spec.map(|spec| Settings { spec, ..draft });
    open_named(session, path, settings)?;
    Ok(Ending::Done)
}

fn reopen(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("c:o:rw", words)?;
    let mut settings = session.opened().settings.clone();
    let mut access = None;
    let mut options = Options::default();
    for (option, argument) in words.options() {
        match option {
            'r' | 'w' if access.is_some() => {
                return Err(Complaint::Told("Only one -r/-w option may be given".into()));
            }
            'r' => access = Some(Access::ReadOnly),
            'w' => access = Some(Access::ReadWrite),
            'c' => {
                settings.cache = CacheMode::from_name(argument)
                    .ok_or_else(|| Complaint::Told(format!("Invalid cache option: {argument}")))?;
            }
            _ => options = Options::from_list(argument),
        }
    }
    if !words.operands.is_empty() {
        return Err(Complaint::Usage);
    }
    if let Some(access) = access {
        if options.get("read-only").is_some() {
            return Err(Complaint::Told(
                "Cannot set both -r/-w and 'read-only'".into(),
            ));
        }
        settings.access = access;
        settings.spec.read_only = false;
    }
    let cached = !options.take_below("cache").is_empty();
    if cached && words.has('c') {
        return Err(Complaint::Told(
            "Cannot set both -c and the cache options".into(),
        ));
    }
    if let Some(read_only) = options.take_flag("read-only")? {
        settings.spec.read_only = read_only;
        settings.access = Access::ReadWrite;
    }
    settings.spec.runtime.generic.take(&mut options)?;
    if session.opened().node.format == Format::Qcow2 {
        settings.spec.runtime.take(&mut options)?;
    }
    if let Some(key) = options.first_key() {
        return Err(Complaint::Told(format!("Cannot change the option '{key}'")));
    }
    reopened(session, settings)
}

/// Closes the disk and opens it with other settings; where that does not work, as it was.
pub(super) fn reopened(session: &mut Session, settings: Settings) -> Outcome {
    let before = session.opened().settings.clone();
    session.close()?;
    match opened(session, settings) {
        Ok(opened) => {
            session.open = Some(opened);
            Ok(Ending::Done)
        }
        Err(failure) => {
            session.open = opened(session, before).ok();
            Err(failure.into())
        }
    }
}
