//! Tests of blkdebug.

use std::cell::RefCell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use engine::device::{Port, RamDevice, drive};

use super::*;

fn filter(text: &str) -> (Filter, Port, Rc<RefCell<Vec<String>>>) {
    limited(text, BlockLimits::default())
}

fn limited(text: &str, limits: BlockLimits) -> (Filter, Port, Rc<RefCell<Vec<String>>>) {
    let config = Config::of_file(text).unwrap();
    let heard = Rc::new(RefCell::new(Vec::new()));
    let list = Rc::clone(&heard);
    let filter = Filter::new(
        Rc::new(RamDevice::default()),
        config,
        limits,
        move |notice| {
            list.borrow_mut().push(notice.to_string());
        },
    );
    (filter.clone(), Port::new(Rc::new(filter)), heard)
}

fn write(port: &Port, event: Event) -> Result<(), Cause> {
    drive(port.at(event).write(0, vec![1; 512]))
        .unwrap()
        .map_err(|error| error.cause)
}

fn flush(port: &Port, event: Event) -> Result<(), Cause> {
    drive(port.at(event).flush())
        .unwrap()
        .map_err(|error| error.cause)
}

#[test]
fn an_event_arms_what_follows_it() {
    let (_, port, _) = filter("[inject-error]\nevent = \"l2_update\"\niotype = \"flush\"\n");
    assert_eq!(flush(&port, Event::FlushToDisk), Ok(()));
    assert_eq!(write(&port, Event::L2Update), Ok(()));
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
    assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::IO));
    assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::IO));
}

#[test]
fn the_event_none_is_met_at_open_and_never_again() {
    let (_, port, _) = filter(
        "[inject-error]\nevent = \"none\"\nonce = \"on\"\nerrno = \"28\"\n\
         [set-state]\nevent = \"none\"\nnew_state = \"7\"\n\
         [inject-error]\nevent = \"none\"\nstate = \"7\"\n",
    );
    assert_eq!(write(&port, Event::None), Err(Cause::NO_SPACE));
    assert_eq!(write(&port, Event::None), Ok(()));
}

#[test]
fn the_first_rule_that_fits_wins_and_another_event_replaces_all() {
    let (_, port, _) = filter(
        "[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nonce = \"on\"\n\
         [inject-error]\nevent = \"write_aio\"\nerrno = \"5\"\n\
         [inject-error]\nevent = \"l1_update\"\nerrno = \"1\"\nsector = \"9\"\n",
    );
    assert_eq!(write(&port, Event::WriteAio), Err(Cause::NO_SPACE));
    assert_eq!(write(&port, Event::WriteAio), Err(Cause::IO));
    assert_eq!(write(&port, Event::None), Err(Cause::IO));
    assert_eq!(write(&port, Event::L1Update), Ok(()));
    assert_eq!(write(&port, Event::None), Ok(()));
}

#[test]
fn a_rule_waits_for_its_state_and_the_state_moves_after_the_rules() {
    let (_, port, _) = filter(
        "[set-state]\nevent = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n\
         [inject-error]\nevent = \"write_aio\"\nstate = \"2\"\nonce = \"on\"\n",
    );
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
    assert_eq!(write(&port, Event::WriteAio), Err(Cause::IO));
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
}

#[test]
fn a_sector_must_be_within_the_request() {
    let (_, port, _) = filter("[inject-error]\nevent = \"none\"\nsector = \"2\"\n");
    drive(port.at(Event::None).set_len(4096)).unwrap().unwrap();
    let at = |offset, len| drive(port.at(Event::None).read(offset, len)).unwrap();
    assert!(at(0, 1024).is_ok());
    assert!(at(512, 1024).is_err());
    assert!(at(1536, 512).is_ok());
    assert_eq!(flush(&port, Event::None), Ok(()));
}

#[test]
fn a_breakpoint_parks_one_caller_until_it_is_resumed() {
    let (filter, port, heard) = filter("");
    filter.set_breakpoint(Event::WriteAio, "A");
    let mut context = Context::from_waker(Waker::noop());
    let mut parked = pin!(port.at(Event::WriteAio).write(0, vec![1; 512]));
    assert!(parked.as_mut().poll(&mut context).is_pending());
    assert!(filter.is_parked("A"));
    assert_eq!(port.len(), 0, "a parked request has not happened");
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
    assert!(filter.resume("A"));
    assert!(!filter.resume("A"));
    assert_eq!(parked.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    assert_eq!(
        *heard.borrow(),
        [
            "blkdebug: Suspended request 'A'",
            "blkdebug: Resuming request 'A'"
        ]
    );
}

#[test]
fn breakpoints_of_one_event_park_one_caller_together() {
    let (filter, port, heard) = filter("");
    filter.set_breakpoint(Event::Pwritev, "A");
    filter.set_breakpoint(Event::Pwritev, "B");
    let mut context = Context::from_waker(Waker::noop());
    let mut parked = pin!(port.at(Event::WriteAio).write(0, vec![1; 512]));
    assert!(parked.as_mut().poll(&mut context).is_pending());
    assert!(filter.resume("A"));
    assert!(parked.as_mut().poll(&mut context).is_pending());
    assert!(filter.resume("B"));
    assert!(parked.as_mut().poll(&mut context).is_ready());
    assert_eq!(heard.borrow()[0], "blkdebug: Suspended request 'B'");
}

#[test]
fn removing_a_breakpoint_frees_who_waits_there() {
    let (filter, port, _) = filter("");
    filter.set_breakpoint(Event::ClusterAlloc, "A");
    let mut context = Context::from_waker(Waker::noop());
    let mut parked = pin!(port.at(Event::ClusterAlloc).reach());
    assert!(parked.as_mut().poll(&mut context).is_pending());
    assert!(!filter.remove_breakpoints("A"), "it was spent");
    assert!(parked.as_mut().poll(&mut context).is_ready());
    filter.set_breakpoint(Event::ClusterAlloc, "A");
    assert!(filter.remove_breakpoints("A"));
    assert!(drive(port.at(Event::ClusterAlloc).reach()).is_some());
}

/// What a breakpoint-free device is asked, told by one below that writes it down.
mod limits {
    use engine::device::{Completion, Device, Op, Outcome, Request};

    use super::*;

    #[derive(Debug, Default)]
    struct Scribe {
        ram: RamDevice,
        asked: RefCell<Vec<String>>,
    }

    impl Device for Scribe {
        fn submit(&self, request: Request) -> Completion {
            let (offset, len_bytes) = request.op.range();
            let kind = request.op.kind().name();
            let text = format!("{kind} {offset} {len_bytes}");
            self.asked.borrow_mut().push(text);
            self.ram.submit(request)
        }

        fn len(&self) -> u64 {
            self.ram.len()
        }
    }

    /// What a request becomes behind these limits, on a device of a MiB; `text` are rules.
    fn becomes(limits: BlockLimits, text: &str, op: Op) -> (Outcome, Vec<String>) {
        let scribe = Rc::new(Scribe::default());
        let event = Event::WriteAio;
        let len = Op::SetLen { len_bytes: 1 << 20 };
        drive(scribe.submit(Request { event, op: len }))
            .unwrap()
            .unwrap();
        scribe.asked.borrow_mut().clear();
        let config = Config::of_file(text).unwrap();
        let filter = Filter::new(scribe.clone(), config, limits, |_| {});
        let outcome = drive(filter.submit(Request { event, op })).unwrap();
        (outcome, scribe.asked.take())
    }

    fn asked(limits: BlockLimits, op: Op) -> Vec<String> {
        let (outcome, asked) = becomes(limits, "", op);
        outcome.unwrap();
        asked
    }

    fn aligned(align: u64) -> BlockLimits {
        BlockLimits {
            align,
            ..BlockLimits::default()
        }
    }

    fn write(offset: u64, len: usize) -> Op {
        let data = vec![1; len];
        let fua = false;
        Op::Write { offset, data, fua }
    }

    fn zeroes(offset: u64, len_bytes: u64) -> Op {
        let unmap = false;
        Op::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        }
    }

    #[test]
    fn requests_are_rounded_to_units_and_what_stands_beside_them_stays() {
        let read = |offset, len_bytes| asked(aligned(512), Op::Read { offset, len_bytes });
        assert_eq!(read(100, 1), ["read 0 512"]);
        assert_eq!(read(511, 2), ["read 0 1024"]);
        let write = |offset, len| asked(aligned(512), write(offset, len));
        assert_eq!(write(512, 512), ["write 512 512"]);
        assert_eq!(write(10, 20), ["read 0 512", "write 0 512"]);
        assert_eq!(write(10, 1000), ["read 0 1024", "write 0 1024"]);
        assert_eq!(
            write(10, 2000),
            ["read 0 512", "read 1536 512", "write 0 2048"]
        );
        assert_eq!(write(0, 700), ["read 512 512", "write 0 1024"]);
        let zero = |offset, len| asked(aligned(512), zeroes(offset, len));
        assert_eq!(zero(10, 20), ["read 0 512", "write 0 512"]);
        assert_eq!(
            zero(10, 2000),
            [
                "read 0 512",
                "read 1536 512",
                "write 0 512",
                "write-zeroes 512 1024",
                "write 1536 512"
            ]
        );
    }

    #[test]
    fn a_length_between_two_units_is_set() {
        let len = |len_bytes| asked(aligned(512), Op::SetLen { len_bytes });
        assert_eq!(len(3000), ["set-len 3000 0"]);
        assert_eq!(len(3072), ["set-len 3072 0"]);
        let (_, port, _) = limited("", aligned(512));
        drive(port.at(Event::None).set_len(3000)).unwrap().unwrap();
        assert_eq!(port.len(), 3000);
    }

    #[test]
    fn a_part_of_a_unit_keeps_its_neighbours() {
        let (_, port, _) = limited("", aligned(4096));
        let at = || port.at(Event::WriteAio);
        drive(at().set_len(16384)).unwrap().unwrap();
        drive(at().write(0, vec![1; 16384])).unwrap().unwrap();
        drive(at().write(1000, vec![2; 7000])).unwrap().unwrap();
        drive(at().write_zeroes(5000, 10000, false))
            .unwrap()
            .unwrap();
        let mut wanted = vec![1; 16384];
        wanted[1000..8000].fill(2);
        wanted[5000..15000].fill(0);
        assert!(drive(at().read(0, 16384)).unwrap().unwrap() == wanted);
        assert!(drive(at().read(999, 2)).unwrap().unwrap() == [1, 2]);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let limits = BlockLimits {
            align: 512,
            max_transfer: 1024,
            ..BlockLimits::default()
        };
        let read = Op::Read {
            offset: 100,
            len_bytes: 2000,
        };
        assert_eq!(
            asked(limits, read),
            ["read 0 1024", "read 1024 1024", "read 2048 512"]
        );
        assert_eq!(
            asked(limits, write(0, 1536)),
            ["write 0 1024", "write 1024 512"]
        );
    }

    #[test]
    fn zeroes_and_discards_are_cut_at_their_units() {
        let limits = BlockLimits {
            opt_write_zero: 4096,
            max_write_zero: 8192,
            opt_discard: 4096,
            max_discard: 12288,
            ..BlockLimits::default()
        };
        assert_eq!(
            asked(limits, zeroes(1024, 20480)),
            [
                "write 1024 3072",
                "write-zeroes 4096 8192",
                "write-zeroes 12288 8192",
                "write 20480 1024"
            ]
        );
        let discard = Op::Discard {
            offset: 1024,
            len_bytes: 20480,
        };
        assert_eq!(
            asked(limits, discard),
            [
                "discard 1024 3072",
                "discard 4096 12288",
                "discard 16384 4096",
                "discard 20480 1024"
            ]
        );
        let limits = BlockLimits {
            align: 512,
            ..limits
        };
        let discard = Op::Discard {
            offset: 100,
            len_bytes: 5000,
        };
        assert_eq!(
            asked(limits, discard),
            ["discard 512 3584", "discard 4096 512"]
        );
    }

    #[test]
    fn an_answer_that_says_not_supported_is_no_failure_of_zeroes_and_discards() {
        let rule = "[inject-error]\nevent = \"none\"\nerrno = \"95\"\n";
        let limits = BlockLimits::default();
        let text = format!("{rule}iotype = \"write-zeroes\"\n");
        let (outcome, asked) = becomes(limits, &text, zeroes(0, 4096));
        assert_eq!(
            (outcome.is_ok(), asked),
            (true, vec!["write 0 4096".to_owned()])
        );
        let discard = Op::Discard {
            offset: 0,
            len_bytes: 4096,
        };
        let (outcome, asked) = becomes(limits, rule, discard);
        assert_eq!((outcome.is_ok(), asked.len()), (true, 0));
        assert!(becomes(limits, rule, write(0, 512)).0.is_err());
    }
}

#[test]
fn the_edges_of_a_write_have_their_events() {
    let limits = BlockLimits {
        align: 4096,
        ..BlockLimits::default()
    };
    for (event, offset, len, meets) in [
        ("pwritev_rmw_head", 512, 512, true),
        ("pwritev_rmw_after_head", 512, 512, true),
        ("pwritev_rmw_tail", 512, 512, true),
        ("pwritev_rmw_after_tail", 512, 512, true),
        ("pwritev_rmw_head", 0, 512, false),
        ("pwritev_rmw_tail", 512, 3584, false),
        ("pwritev_rmw_after_tail", 512, 12288, true),
        ("pwritev_rmw_head", 0, 4096, false),
        ("pwritev_done", 0, 4096, true),
    ] {
        let (filter, port, _) = limited("", limits);
        filter.set_breakpoint(Event::from_name(event).unwrap(), "A");
        let mut context = Context::from_waker(Waker::noop());
        let mut write = pin!(port.at(Event::WriteAio).write(offset, vec![1; len]));
        let pending = write.as_mut().poll(&mut context).is_pending();
        assert_eq!(pending, meets, "{event} at {offset}, {len} bytes");
    }
}

#[test]
fn nothing_else_touches_a_range_that_is_read_and_written_back() {
    let limits = BlockLimits {
        align: 4096,
        ..BlockLimits::default()
    };
    let (filter, port, _) = limited("", limits);
    drive(port.at(Event::None).set_len(8192)).unwrap().unwrap();
    filter.set_breakpoint(Event::PwritevRmwAfterTail, "A");
    let mut context = Context::from_waker(Waker::noop());
    let mut first = pin!(port.at(Event::WriteAio).write(512, vec![1; 512]));
    assert!(first.as_mut().poll(&mut context).is_pending());
    let mut second = pin!(port.at(Event::WriteAio).write(0, vec![2; 4096]));
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert!(drive(port.at(Event::WriteAio).write(4096, vec![3; 4096])).is_some());
    filter.resume("A");
    assert!(first.as_mut().poll(&mut context).is_ready());
    assert!(second.as_mut().poll(&mut context).is_ready());
    let read = drive(port.at(Event::None).read(0, 8192)).unwrap().unwrap();
    assert!(read[..4096].iter().all(|byte| *byte == 2));
}

#[test]
fn a_flush_meets_its_rules_only_when_something_changed() {
    let (_, port, _) =
        filter("[inject-error]\nevent = \"none\"\niotype = \"flush\"\nonce = \"on\"\n");
    assert_eq!(flush(&port, Event::FlushToDisk), Ok(()));
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
    assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::IO));
    assert_eq!(flush(&port, Event::FlushToDisk), Ok(()));
}

#[test]
fn the_first_of_several_transitions_counts() {
    let (_, port, _) = filter(
        "[set-state]\nevent = \"write_aio\"\nnew_state = \"5\"\n\
         [set-state]\nevent = \"write_aio\"\nnew_state = \"6\"\n\
         [inject-error]\nevent = \"l2_load\"\nstate = \"5\"\n",
    );
    assert_eq!(write(&port, Event::WriteAio), Ok(()));
    assert_eq!(write(&port, Event::L2Load), Err(Cause::IO));
}

#[test]
fn pwritev_done_is_met_after_a_failure_too() {
    let (_, port, _) = filter(
        "[inject-error]\nevent = \"pwritev\"\nonce = \"on\"\n\
         [inject-error]\nevent = \"pwritev_done\"\niotype = \"flush\"\nerrno = \"28\"\n",
    );
    assert_eq!(write(&port, Event::WriteAio), Err(Cause::IO));
    assert_eq!(flush(&port, Event::FlushToDisk), Err(Cause::NO_SPACE));
}

#[test]
fn questions_what_is_there_have_rules_of_their_own() {
    let (plain, port, _) = filter("[inject-error]\nevent = \"none\"\n");
    assert_eq!(plain.ask_status(0, 512), Ok(()));
    assert_eq!(write(&port, Event::None), Err(Cause::IO));
    let (asking, port, _) =
        filter("[inject-error]\nevent = \"none\"\niotype = \"block-status\"\nsector = \"1\"\n");
    assert_eq!(asking.ask_status(0, 512), Ok(()));
    assert_eq!(asking.ask_status(0, 1024), Err(Cause::IO));
    assert_eq!(write(&port, Event::None), Ok(()));
}

#[test]
fn a_write_whose_edges_cannot_be_read_fails_and_changes_nothing() {
    let limits = BlockLimits {
        align: 4096,
        ..BlockLimits::default()
    };
    for event in [
        "pwritev_rmw_head",
        "pwritev_rmw_tail",
        "pwritev_rmw_after_head",
    ] {
        let text =
            format!("[inject-error]\nevent = \"{event}\"\niotype = \"read\"\nonce = \"on\"\n");
        let (_, port, _) = limited(&text, limits);
        let at = || port.at(Event::WriteAio);
        drive(at().write(0, vec![1; 12288])).unwrap().unwrap();
        // Two units apart, so that each edge has a read of its own.
        let written = drive(at().write(100, vec![2; 10000])).unwrap();
        assert_eq!(written.unwrap_err().cause, Cause::IO, "{event}");
        let held = drive(at().read(0, 12288)).unwrap().unwrap();
        assert!(held.iter().all(|byte| *byte == 1), "{event}");
    }
}
