//! blkverify: a device that mirrors every request to a reference and compares.
//!
//! Reads and writes go to the device under test and to the reference, which must answer alike: the same
//! error or none, and the same bytes. Flushes and the length are those of the device under test, though a
//! change of length reaches the reference alone, as QEMU has it; zeroes are written as bytes, and discards
//! go nowhere, so that both hold the same. The first mismatch is kept, and the request that showed it
//! fails: whoever wants an oracle asks for it afterwards, or listens.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use engine::device::{
    Cause, Device, DeviceError, Event, Extent, Op, OpKind, Outcome, Reply, Request,
};

use crate::config::BlockLimits;
use crate::layer::{Driver, Layer};

/// How a device and its reference differ. The text is QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What was asked: a read or a write.
    pub kind: OpKind,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len_bytes: u64,
    /// What differs.
    pub what: Difference,
}

/// What differs between a device and its reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The bytes, from this offset on.
    Contents(u64),
    /// The answers, by errno; zero is success.
    Answers {
        /// That of the device under test.
        test: i32,
        /// That of the reference.
        reference: i32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            offset,
            len_bytes,
            what,
        } = self;
        let kind = kind.name();
        write!(f, "blkverify: {kind} offset={offset} bytes={len_bytes} ")?;
        match what {
            Difference::Contents(at) => write!(f, "contents mismatch at offset {at}"),
            Difference::Answers { test, reference } => {
                write!(f, "return value mismatch {} != {}", -test, -reference)
            }
        }
    }
}

/// The device.
pub type Verify = Layer<Blkverify>;

/// What mirrors reads and writes, and compares.
pub struct Blkverify {
    test: Rc<dyn Device>,
    reference: Rc<dyn Device>,
    found: RefCell<Option<Mismatch>>,
    tell: Box<dyn Fn(&Mismatch)>,
}

impl fmt::Debug for Blkverify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blkverify")
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl Layer<Blkverify> {
    /// A device that shows what `test` holds, and compares it with `reference`; `tell` hears of each
    /// mismatch before the request that showed it fails.
    pub fn new(
        test: Rc<dyn Device>,
        reference: Rc<dyn Device>,
        tell: impl Fn(&Mismatch) + 'static,
    ) -> Self {
        Self::before(Blkverify {
            test,
            reference,
            found: RefCell::default(),
            tell: Box::new(tell),
        })
    }

    /// The first mismatch, if there was any.
    pub fn mismatch(&self) -> Option<Mismatch> {
        self.driver().found.borrow().clone()
    }
}

/// Compares what both sides answered.
fn compare(op: &Op, test: &Outcome, reference: &Outcome) -> Result<(), Mismatch> {
    let (offset, len_bytes) = op.range();
    let mismatch = |what| Mismatch {
        kind: op.kind(),
        offset,
        len_bytes,
        what,
    };
    match (test, reference) {
        (Ok(Reply::Data(test)), Ok(Reply::Data(reference))) => {
            let at = test.iter().zip(reference).position(|(a, b)| a != b);
            match at {
                None => Ok(()),
                Some(at) => {
                    let at = u64::try_from(at).expect("an index fits 64 bits");
                    Err(mismatch(Difference::Contents(offset + at)))
                }
            }
        }
        _ => {
            let (test, reference) = (errno(test), errno(reference));
            if test == reference {
                Ok(())
            } else {
                Err(mismatch(Difference::Answers { test, reference }))
            }
        }
    }
}

/// What an outcome is to a program that knows error numbers only.
fn errno(outcome: &Outcome) -> i32 {
    const NOT_PERMITTED: i32 = 1;
    const INPUT_OUTPUT: i32 = 5;
    const INVALID: i32 = 22;
    match outcome {
        Ok(_) => 0,
        Err(error) => match error.cause {
            Cause::Os(errno) => errno,
            Cause::PowerOff => INPUT_OUTPUT,
            Cause::BadRequest => INVALID,
            Cause::ReadOnly => NOT_PERMITTED,
        },
    }
}

impl Driver for Blkverify {
    fn below(&self) -> &Rc<dyn Device> {
        &self.test
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits::default()
    }

    fn writes_through(&self) -> bool {
        false
    }

    async fn meet(&self, _: Event) {}

    async fn carry_out(&self, request: Request) -> Outcome {
        let Request { event, op } = request;
        let again = Request {
            event,
            op: op.clone(),
        };
        match op.kind() {
            OpKind::WriteZeroes | OpKind::Discard => {
                const NOT_SUPPORTED: Cause = Cause::Os(95);
                return Err(DeviceError::new(event, &op, NOT_SUPPORTED));
            }
            OpKind::Flush => return self.test.submit(again).await,
            OpKind::SetLen => return self.reference.submit(again).await,
            OpKind::Read | OpKind::Write => {}
        }
        // Both are under way before either is waited for.
        let reference = self.reference.submit(again.clone());
        let test = self.test.submit(again).await;
        let reference = reference.await;
        if let Err(mismatch) = compare(&op, &test, &reference) {
            self.found.borrow_mut().get_or_insert(mismatch.clone());
            (self.tell)(&mismatch);
            return Err(DeviceError::new(event, &op, Cause::IO));
        }
        test
    }

    fn extent(&self, offset: u64) -> Extent {
        self.reference.extent(offset)
    }
}

#[cfg(test)]
mod tests {
    use engine::device::{Port, RamDevice, drive};

    use super::*;
    use crate::config::Config;
    use crate::filter::Filter;

    fn ram(bytes: u64) -> Rc<dyn Device> {
        let port = Port::new(Rc::new(RamDevice::default()));
        drive(port.at(Event::None).set_len(bytes)).unwrap().unwrap();
        port.device()
    }

    fn failing(below: &Rc<dyn Device>, errno: i32) -> Rc<dyn Device> {
        let text = format!("[inject-error]\nevent = \"none\"\nerrno = \"{errno}\"\n");
        let config = Config::of_file(&text).unwrap();
        Rc::new(Filter::new(
            Rc::clone(below),
            config,
            BlockLimits::default(),
            |_| {},
        ))
    }

    fn put(device: &Rc<dyn Device>, offset: u64, data: Vec<u8>) {
        let port = Port::new(Rc::clone(device));
        drive(port.at(Event::None).write(offset, data))
            .unwrap()
            .unwrap();
    }

    fn verify(test: &Rc<dyn Device>, reference: &Rc<dyn Device>) -> (Verify, Port) {
        let verify = Verify::new(Rc::clone(test), Rc::clone(reference), |_| {});
        (verify.clone(), Port::new(Rc::new(verify)))
    }

    #[test]
    fn both_get_what_is_written_and_answer_alike() {
        let (test, reference) = (ram(4096), ram(4096));
        let (verify, port) = verify(&test, &reference);
        let at = || port.at(Event::WriteAio);
        drive(at().write(100, vec![7; 1000])).unwrap().unwrap();
        drive(at().write_zeroes(200, 50, true)).unwrap().unwrap();
        drive(at().discard(0, 4096)).unwrap().unwrap();
        drive(at().flush()).unwrap().unwrap();
        let shown = drive(at().read(0, 4096)).unwrap().unwrap();
        let held = drive(Port::new(reference).at(Event::None).read(0, 4096));
        assert_eq!(shown, held.unwrap().unwrap());
        assert_eq!((shown[199], shown[200], shown[250]), (7, 0, 7));
        assert_eq!(verify.mismatch(), None);
    }

    #[test]
    fn a_change_of_length_is_the_references_alone() {
        let (test, reference) = (ram(4096), ram(4096));
        let (verify, port) = verify(&test, &reference);
        drive(port.at(Event::None).set_len(8192)).unwrap().unwrap();
        assert_eq!(
            (port.len(), test.len(), reference.len()),
            (4096, 4096, 8192)
        );
        assert_eq!(verify.mismatch(), None);
    }

    #[test]
    fn other_bytes_are_found_at_their_offset() {
        let (test, reference) = (ram(4096), ram(4096));
        put(&test, 1000, vec![1]);
        let (verify, port) = verify(&test, &reference);
        assert!(drive(port.at(Event::None).read(0, 512)).unwrap().is_ok());
        assert!(
            drive(port.at(Event::None).read(512, 1024))
                .unwrap()
                .is_err()
        );
        assert_eq!(
            verify.mismatch().unwrap().to_string(),
            "blkverify: read offset=512 bytes=1024 contents mismatch at offset 1000"
        );
    }

    #[test]
    fn other_answers_are_a_mismatch_and_the_same_error_is_an_error() {
        let (one, other) = (ram(4096), ram(4096));
        let write = |port: &Port| drive(port.at(Event::None).write(0, vec![1; 512])).unwrap();
        let (found, port) = verify(&failing(&one, 5), &other);
        assert!(write(&port).is_err());
        assert_eq!(
            found.mismatch().unwrap().to_string(),
            "blkverify: write offset=0 bytes=512 return value mismatch -5 != 0"
        );
        let (alike, port) = verify(&failing(&one, 28), &failing(&other, 28));
        assert_eq!(write(&port).unwrap_err().cause, Cause::NO_SPACE);
        assert_eq!(alike.mismatch(), None);
        let (unlike, port) = verify(&failing(&one, 28), &failing(&other, 5));
        assert!(write(&port).is_err());
        assert!(unlike.mismatch().is_some());
    }
}
