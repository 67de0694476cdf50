//! What is to be opened: the description that a name or a set of options stands for.

use engine::qcow2::header::Header;

use super::claims::Locking;
use super::filters::BlkdebugOptions;
use super::options::Options;
use super::runtime::Runtime;
use super::{Failure, Format, name};

/// An image: a format over a file, over whatever lies beneath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// What the caller called it.
    pub(crate) called: String,
    /// Its format; probed where it is not given.
    pub(crate) format: Option<Format>,
    /// The file that it stands in.
    pub(crate) file: FileSpec,
    /// What lies beneath it.
    pub(crate) backing: BackingSpec,
    /// The file of its guest data where the caller names one; otherwise the image does.
    pub(crate) data_file: Option<FileSpec>,
    /// Whether the caller wants it read-only whatever the command would need.
    pub(crate) read_only: bool,
    /// Whether the caller wants others to do what they like meanwhile.
    pub(crate) force_share: bool,
    /// What holds while it is open.
    pub(crate) runtime: Runtime,
    /// The name of the secret that decrypts it.
    pub(crate) key_secret: Option<String>,
    /// The method that encrypts it, in the caller's word.
    pub(crate) encryption: Option<String>,
    /// The id of the internal snapshot that is shown in the place of its disk.
    pub(crate) snapshot: Option<String>,
    /// Whether it is its file itself, with no format above.
    pub(crate) is_bare: bool,
}

/// Where an image finds what lies beneath it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackingSpec {
    /// Where the image says.
    FromImage,
    /// Where the image says, and besides as the caller says.
    Adjusted(Options),
    /// The caller wants nothing there.
    Nothing,
    /// Where the caller says.
    Given(Box<Spec>),
}

impl BackingSpec {
    /// What is to be opened, where `by_image` is what the image says of it.
    pub(crate) fn resolve(
        &self,
        by_image: impl FnOnce() -> Result<Option<Spec>, Failure>,
    ) -> Result<Option<Spec>, Failure> {
        match self {
            Self::Nothing => Ok(None),
            Self::Given(given) => Ok(Some(given.as_ref().clone())),
            Self::FromImage => by_image(),
            Self::Adjusted(options) => by_image()?
                .map(|spec| spec.adjusted(options.clone()))
                .transpose(),
        }
    }
}

/// A file, or a device that misbehaves before one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileSpec {
    /// A local file.
    Local { path: String, locking: Locking },
    /// blkdebug before a file.
    Blkdebug {
        options: BlkdebugOptions,
        below: Box<FileSpec>,
    },
    /// blkverify: an image, and the raw file that it is compared with.
    Blkverify {
        raw: Box<FileSpec>,
        test: Box<FileSpec>,
    },
    /// An image, as its guest sees it.
    Image(Box<Spec>),
}

impl FileSpec {
    /// The name that stands for this in output.
    pub(crate) fn filename(&self) -> String {
        match self {
            Self::Local { path, .. } => path.clone(),
            Self::Blkdebug { options, below } => {
                format!("blkdebug:{}:{}", options.config, below.filename())
            }
            Self::Blkverify { raw, test } => {
                format!("blkverify:{}:{}", raw.filename(), test.filename())
            }
            Self::Image(spec) => spec.file.filename(),
        }
    }

    /// The local file at the bottom.
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Local { path, .. } => path,
            Self::Blkdebug { below, .. } | Self::Blkverify { test: below, .. } => below.path(),
            Self::Image(spec) => spec.file.path(),
        }
    }

    /// A local file, locked as QEMU locks unasked.
    fn local(path: &str) -> Self {
        Self::Local {
            path: path.to_owned(),
            locking: Locking::Auto,
        }
    }

    /// The same file, locked as the caller says; what stands before one says so itself.
    fn with_locking(self, locking: Locking) -> Self {
        match self {
            Self::Local { path, .. } => Self::Local { path, locking },
            other @ (Self::Blkdebug { .. } | Self::Blkverify { .. } | Self::Image(_)) => other,
        }
    }

    fn from_name(text: &str) -> Result<Self, Failure> {
        match name::parse(text) {
            // Behind `file:`, a name may look like one with a protocol: told as a path, it does not.
            name::Name::Plain(path) if name::has_protocol(path) => {
                Ok(Self::local(&format!("./{path}")))
            }
            name::Name::Plain(path) => Ok(Self::local(path)),
            name::Name::Blkdebug(_) | name::Name::Blkverify(_) | name::Name::Json(_) => {
                let mut options = Self::options_of_name(text)?;
                let file = Self::from_options(&mut options)?;
                refuse_rest("file", &options)?;
                Ok(file)
            }
            name::Name::Protocol(protocol) => Err(unknown_protocol(protocol)),
        }
    }

    /// The file that options describe; what it does not know stays behind in them.
    fn from_options(options: &mut Options) -> Result<Self, Failure> {
        // The host's page cache is always used.
        for ignored in ["aio", "node-name", "auto-read-only", "read-only", "discard"] {
            options.take(ignored);
        }
        drop(options.take_below("cache"));
        let locking = options.take("locking");
        let locking = locking.map_or(Ok(Locking::Auto), |name| Locking::from_name(&name))?;
        let driver = options.take("driver");
        match driver.as_deref() {
            None => {
                let filename = options.take("filename");
                let filename =
                    filename.ok_or_else(|| Failure::new("Must specify either driver or file"))?;
                if filename.is_empty() {
                    return Err(Failure::new("The 'file' block driver requires a file name"));
                }
                Ok(Self::from_name(&filename)?.with_locking(locking))
            }
            Some("file") => {
                let filename = options
                    .take("filename")
                    .ok_or_else(|| Failure::new("The 'file' block driver requires a file name"))?;
                Ok(Self::local(&filename).with_locking(locking))
            }
            Some("blkdebug") => {
                if let Some(name) = options.take("image") {
                    return Err(no_such_node(&name));
                }
                let below = Self::from_below("image", options.take_below("image"))?;
                Ok(Self::Blkdebug {
                    options: BlkdebugOptions::take(std::mem::take(options))?,
                    below: Box::new(below),
                })
            }
            Some("blkverify") => {
                if let Some(name) = options.take("raw").or_else(|| options.take("test")) {
                    return Err(no_such_node(&name));
                }
                let raw = Self::from_below("raw", options.take_below("raw"))?;
                let test = options.take_below("test");
                if test.is_empty() {
                    return Err(no_device("test"));
                }
                let called = test.get("filename").unwrap_or_default().to_owned();
                if let Some(key) = options.first_key() {
                    return Err(Failure(format!(
                        "Block protocol 'blkverify' doesn't support the option '{key}'"
                    )));
                }
                Ok(Self::Blkverify {
                    raw: Box::new(raw),
                    test: Box::new(Self::Image(Box::new(Spec::from_options(&called, test)?))),
                })
            }
            Some(format) if Format::from_name(format).is_some_and(|it| it != Format::Raw) => {
                options.set("driver", format);
                let image = Spec::from_options("", std::mem::take(options))?;
                Ok(Self::Image(Box::new(image)))
            }
            // The same bytes, one layer up.
            Some("raw") => Self::from_below("file", options.take_below("file")),
            Some(other) => Err(unknown_driver(other)),
        }
    }

    /// The file that options below `key` describe; none may be left over.
    fn from_below(key: &str, mut below: Options) -> Result<Self, Failure> {
        if below.is_empty() {
            return Err(no_device(key));
        }
        let file = Self::from_options(&mut below)?;
        refuse_rest("file", &below)?;
        Ok(file)
    }

    /// The options that a name stands for.
    fn options_of_name(text: &str) -> Result<Options, Failure> {
        let mut options = Options::default();
        match name::parse(text) {
            name::Name::Json(text) => return Options::from_json(text),
            name::Name::Blkdebug(rest) => {
                let (config, below) = rest.split_once(':').ok_or_else(|| {
                    Failure("blkdebug requires both config file and image path".into())
                })?;
                options.set("driver", "blkdebug");
                options.set("config", config);
                options.set("image.filename", below);
            }
            name::Name::Blkverify(rest) => {
                let (raw, test) = rest.split_once(':').ok_or_else(|| {
                    Failure("blkverify requires raw copy and original image path".into())
                })?;
                options.set("driver", "blkverify");
                options.set("raw.filename", raw);
                options.set("test.filename", test);
            }
            name::Name::Plain(_) | name::Name::Protocol(_) => options.set("filename", text),
        }
        Ok(options)
    }
}

impl FileSpec {
    /// The file of an image's guest data, by the word of its header: a local file, and nothing else.
    /// A relative name starts at the working directory, as QEMU has it.
    pub(crate) fn of_image_data(header: &Header) -> Result<Self, Failure> {
        let bytes = header
            .data_file_name()
            .ok_or_else(|| Failure::new("'data-file' is required for this image"))?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Failure::new("The data file's name is not UTF-8"))?;
        if name::has_protocol(text) {
            return Err(Failure(format!(
                "The image names '{text}', and only local files are opened on an image's word: name the \
                 data file yourself with --image-opts and data-file.* options"
            )));
        }
        Ok(Self::local(text))
    }
}

impl Spec {
    /// The image of that name, in that format or in the one that is found.
    pub(crate) fn from_name(called: &str, format: Option<&str>) -> Result<Self, Failure> {
        let format = format.map(Format::to_open).transpose()?;
        if let name::Name::Json(text) = name::parse(called) {
            let mut options = Options::from_json(text)?;
            if let Some(format) = format {
                options.set("driver", format.name());
            }
            return Self::from_options(called, options);
        }
        Ok(Self::new(called, format, FileSpec::from_name(called)?))
    }

    /// The image that a `--image-opts` argument describes.
    pub(crate) fn from_image_opts(called: &str) -> Result<Self, Failure> {
        if !called.contains('=') {
            return Err(Failure(format!(
                "Cannot find device='{called}' nor node-name='{called}'"
            )));
        }
        Self::from_options(called, Options::from_list(called))
    }

    /// What lies beneath the image `above`, by the word of its header: a local file, and nothing else.
    pub(crate) fn beneath(above: &FileSpec, header: &Header) -> Result<Option<Self>, Failure> {
        let Some(bytes) = &header.backing_name else {
            return Ok(None);
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Failure::new("The backing file's name is not UTF-8"))?;
        let format = match header.extension(engine::qcow2::extension::BACKING_FORMAT) {
            None => None,
            Some(bytes) => Some(Format::to_open(&String::from_utf8_lossy(bytes))?),
        };
        if name::has_protocol(text) {
            return Err(Failure(format!(
                "The image names '{text}', and only local files are opened on an image's word: name \
                 the backing file yourself with --image-opts and backing.* options"
            )));
        }
        let FileSpec::Local { path: here, .. } = above else {
            return Err(Failure::new(
                "Cannot use a relative backing file behind blkdebug: name it with backing.* options",
            ))
            .or_else(|refused| {
                if text.starts_with('/') {
                    Ok(Some(Self::new(text, format, FileSpec::local(text))))
                } else {
                    Err(refused)
                }
            });
        };
        let path = name::beside(here, text);
        Ok(Some(Self::new(&path, format, FileSpec::local(&path))))
    }

    fn new(called: &str, format: Option<Format>, file: FileSpec) -> Self {
        Self {
            called: called.to_owned(),
            format,
            file,
            backing: BackingSpec::FromImage,
            data_file: None,
            read_only: false,
            force_share: false,
            runtime: Runtime::default(),
            key_secret: None,
            encryption: None,
            snapshot: None,
            is_bare: false,
        }
    }

    /// The image that options describe.
    pub(crate) fn from_options(called: &str, mut options: Options) -> Result<Self, Failure> {
        if let Some(name::Name::Json(text)) = options.get("filename").map(name::parse) {
            let named = Options::from_json(text)?;
            options.take("filename");
            options.add(named);
        }
        if matches!(
            options.get("driver"),
            Some("file" | "blkdebug" | "blkverify")
        ) {
            // A file without a format of its own shows its bytes.
            let file = FileSpec::from_options(&mut options)?;
            refuse_rest("file", &options)?;
            return Ok(Self {
                is_bare: true,
                ..Self::new(called, Some(Format::Raw), file)
            });
        }
        let format = options.take("driver");
        let format = format.as_deref().map(Format::to_open).transpose()?;
        let file = match options.take("file") {
            Some(name) => return Err(no_such_node(&name)),
            None => {
                let mut below = options.take_below("file");
                if let Some(name) = options.take("filename") {
                    below.add(FileSpec::options_of_name(&name)?);
                }
                FileSpec::from_below("file", below)?
            }
        };
        let mut spec = Self::new(called, format, file);
        spec.take_format_options(&mut options)?;
        refuse_rest(format.map_or("raw", Format::name), &options)?;
        Ok(spec)
    }

    /// The same file, with options of the caller's.
    fn adjusted(self, mut options: Options) -> Result<Self, Failure> {
        let mut named = Options::default();
        named.set("file.filename", self.file.path());
        if let Some(format) = self.format {
            named.set("driver", format.name());
        }
        options.add(named);
        Self::from_options(&self.called, options)
    }

    fn take_format_options(&mut self, options: &mut Options) -> Result<(), Failure> {
        self.read_only = options.take_flag("read-only")?.unwrap_or(false);
        self.force_share = options.take_flag("force-share")?.unwrap_or(false);
        // Neither changes what is read or written.
        for ignored in ["node-name", "auto-read-only"] {
            options.take(ignored);
        }
        drop(options.take_below("cache"));
        self.runtime.generic.take(options)?;
        if self.format == Some(Format::Raw) {
            return Ok(());
        }
        self.runtime.take(options)?;
        let mut encrypt = options.take_below("encrypt");
        self.key_secret = encrypt.take("key-secret");
        self.encryption = encrypt.take("format");
        refuse_rest("qcow2", &encrypt)?;
        if let Some(node) = options.take("data-file") {
            return Err(Failure(format!(
                "Cannot find device='{node}' nor node-name='{node}'"
            )));
        }
        let mut data_file = options.take_below("data-file");
        if !data_file.is_empty() {
            self.data_file = Some(FileSpec::from_options(&mut data_file)?);
            refuse_rest("file", &data_file)?;
        }
        if options.take("backing").is_some_and(|name| name.is_empty()) {
            self.backing = BackingSpec::Nothing;
        }
        let backing = options.take_below("backing");
        if !backing.is_empty() {
            self.backing = if backing.has_below("file") || backing.get("filename").is_some() {
                let called = backing
                    .get("file.filename")
                    .or_else(|| backing.get("filename"))
                    .unwrap_or_default()
                    .to_owned();
                BackingSpec::Given(Box::new(Self::from_options(&called, backing)?))
            } else {
                BackingSpec::Adjusted(backing)
            };
        }
        Ok(())
    }
}

fn refuse_rest(driver: &str, options: &Options) -> Result<(), Failure> {
    match options.first_key() {
        None => Ok(()),
        Some(key) => Err(Failure(format!(
            "Block format '{driver}' does not support the option '{key}'"
        ))),
    }
}

fn no_device(key: &str) -> Failure {
    Failure(format!("A block device must be specified for \"{key}\""))
}

fn no_such_node(name: &str) -> Failure {
    Failure(format!("Cannot find device='' nor node-name='{name}'"))
}

fn unknown_driver(name: &str) -> Failure {
    Failure(if name::KNOWN_ELSEWHERE.contains(&name) {
        format!("The '{name}' driver is not supported yet")
    } else {
        format!("Unknown driver '{name}'")
    })
}

fn unknown_protocol(name: &str) -> Failure {
    Failure(if name::KNOWN_ELSEWHERE.contains(&name) {
        format!("The '{name}' protocol is not supported yet")
    } else {
        format!("Unknown protocol '{name}'")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(name: &str) -> FileSpec {
        FileSpec::local(name)
    }

    #[test]
    fn three_spellings_are_one_image() {
        let by_name = Spec::from_name("a", Some("qcow2")).unwrap();
        let text = "driver=qcow2,file.driver=file,file.filename=a";
        let by_options = Spec::from_image_opts(text).unwrap();
        let text = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#;
        let by_json = Spec::from_name(text, None).unwrap();
        for spec in [by_options, by_json] {
            assert_eq!((spec.format, &spec.file), (by_name.format, &by_name.file));
        }
        assert_eq!(by_name.file, local("a"));
    }

    #[test]
    fn blkdebug_stands_before_a_file() {
        let below = Box::new(local("a"));
        let options = BlkdebugOptions {
            config: "rules".to_owned(),
            ..BlkdebugOptions::default()
        };
        let wanted = FileSpec::Blkdebug { options, below };
        let by_name = Spec::from_name("blkdebug:rules:a", None).unwrap();
        let by_options = Spec::from_image_opts(
            "driver=qcow2,file.driver=blkdebug,file.config=rules,file.image.filename=a",
        )
        .unwrap();
        assert_eq!((&by_name.file, &by_options.file), (&wanted, &wanted));
        assert_eq!(wanted.filename(), "blkdebug:rules:a");
    }

    #[test]
    fn blkverify_stands_before_an_image_and_a_file() {
        let by_name = Spec::from_name("blkverify:a:b", None).unwrap();
        let by_options =
            Spec::from_image_opts("driver=blkverify,raw.filename=a,test.filename=b").unwrap();
        assert_eq!(by_name.file, by_options.file);
        assert_eq!((by_name.is_bare, by_options.is_bare), (false, true));
        assert_eq!(by_name.file.filename(), "blkverify:a:b");
        let FileSpec::Blkverify { test, .. } = by_name.file else {
            panic!("{by_name:?}");
        };
        let FileSpec::Image(image) = *test else {
            panic!("{test:?}");
        };
        assert_eq!((image.format, image.file), (None, local("b")));
        let refused = |text: &str| Spec::from_image_opts(text).unwrap_err().0;
        assert_eq!(
            refused("driver=blkverify,raw.filename=a"),
            "A block device must be specified for \"test\""
        );
        assert_eq!(
            Spec::from_name("blkverify:a", None).unwrap_err().0,
            "blkverify requires raw copy and original image path"
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |text: &str| Spec::from_image_opts(text).unwrap_err().0;
        assert_eq!(
            refused("driver=qcow2,file.filename=a,bogus=1"),
            "Block format 'qcow2' does not support the option 'bogus'"
        );
        assert_eq!(
            refused("driver=qcow2"),
            "A block device must be specified for \"file\""
        );
        assert_eq!(
            refused("driver=bogus,file.filename=a"),
            "Unknown driver 'bogus'"
        );
        assert_eq!(
            Spec::from_name("foo:a", None).unwrap_err().0,
            "Unknown protocol 'foo'"
        );
        assert!(
            Spec::from_name("nbd://h", None)
                .unwrap_err()
                .0
                .contains("not supported yet")
        );
    }

    #[test]
    fn a_backing_file_may_be_given() {
        let spec = Spec::from_image_opts(
            "driver=qcow2,file.filename=a,backing.driver=raw,backing.file.filename=b",
        )
        .unwrap();
        let BackingSpec::Given(backing) = spec.backing else {
            panic!("{spec:?}");
        };
        assert_eq!(
            (backing.format, backing.file),
            (Some(Format::Raw), local("b"))
        );
        let spec = Spec::from_name(
            r#"json:{"driver":"qcow2","file":{"filename":"a","driver":"file"},"backing":null}"#,
            None,
        );
        assert_eq!(spec.unwrap().backing, BackingSpec::Nothing);
    }
}
