//! What the tests of this crate share: images in memory, and the programs to compare with.

#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::path::Path;
use std::process::{Command, Output};
use std::rc::Rc;

use engine::device::{PageImage, Port, RamDevice, drive};

/// A device in memory, and the port to hand to the engine.
pub(crate) struct Ram {
    pub(crate) device: Rc<RamDevice>,
    pub(crate) port: Port,
}

impl Ram {
    pub(crate) fn new(image: PageImage) -> Self {
        let device = Rc::new(RamDevice::new(image));
        Self {
            port: Port::new(device.clone()),
            device,
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self::new(PageImage::from_bytes(bytes))
    }

    pub(crate) fn empty() -> Self {
        Self::new(PageImage::default())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let image = self.device.snapshot();
        image.read_vec(0, usize::try_from(image.len()).unwrap())
    }

    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    pub(crate) fn load(path: &Path) -> Self {
        Self::from_bytes(&std::fs::read(path).unwrap())
    }
}

/// Runs what needs no waiting, as everything on RAM and on files does.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    drive(future).expect("the device completes at once")
}

/// Whether `program` can be run. Without it the calling test measures nothing and says so, which in
/// continuous integration is a failure.
pub(crate) fn have(program: &str) -> bool {
    if Command::new(program).arg("--version").output().is_ok() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "a test may ask where it runs")]
    let ci = std::env::var("CI").is_ok();
    assert!(!ci, "{program} is missing, and CI promises to have it");
    eprintln!("NOT MEASURED: {program} is not installed, nothing was compared with it");
    false
}

/// Runs a program and hands back whatever came of it.
pub(crate) fn call(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// Runs a program that must succeed.
pub(crate) fn must(program: &str, arguments: &[&str]) -> String {
    let output = call(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
