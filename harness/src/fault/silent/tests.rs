use std::rc::Rc;

use blkdebug::record::{Effect, Entry, RecordedOp, RequestId, Tick};
#[cfg(feature = "defects")]
use engine::defect::Defect;
use engine::device::{Event, SECTOR_BYTES, SectorRun};
use engine::qcow2::OverlapChecks;

use super::*;
use crate::oracle::structure::{Owner, owners};
#[cfg(feature = "defects")]
use crate::run::replay;
use crate::workload::ops::OperationId;
use crate::workload::stamp::{Writer, stamp};

#[cfg(feature = "defects")]
#[test]
fn whoever_takes_garbage_for_unallocated_is_found_out_and_the_trace_shows_it_again() {
    let flaw = Flaw::Defect(Defect::BadEntryUnallocated);
    let report = |flaw| silent(1, 12, Pins::default(), flaw, 1).unwrap();
    assert_eq!(report(None).violations(), 0);
    let found = report(Some(flaw));
    let first = &found.at_rest[0];
    let text = first.trace.to_json();
    let trace = Trace::from_json(&text, &|_| Err("no file".into())).unwrap();
    let replayed = replay(&trace).unwrap();
    assert!(replayed.is_as(&trace.expected), "{:?}", replayed.verdict);
    assert_eq!(replayed.same_run, Some(true));
    // Without the flaw the same damage is dealt with as it should be.
    let mut honest = trace;
    honest.scenario.flaw = None;
    assert_eq!(replay(&honest).unwrap().verdict, Verdict::Survived);
}

const WRITES: [Operation; 2] = [
    Operation::Write {
        offset: 0,
        len_bytes: 4096,
    },
    Operation::Write {
        offset: 8192,
        len_bytes: 4096,
    },
];

fn case(operations: &[Operation], faults: Vec<Rule>) -> Case {
    let pins = "version=3,cluster_size=4k,refcount_bits=16,lazy_refcounts=off,backing=none,size=64k,concurrency=1,\
                overlap=off,snapshots=off,bitmaps=off,encrypt=off,compression=off,options=off,manage=off,abandoned=off,\
                data_file=off,preallocation=off,shrink=off,room=any,chain=off,kill=off,extended_l2=off";
    let drawn = generate::scenario(&Prng::from_seed(1), &Pins::parse(pins).unwrap());
    Case {
        scenario: Scenario {
            operations: operations.to_vec(),
            faults,
            ..drawn
        },
        schedule: Schedule::Given(Vec::new()),
    }
}

/// What an engine is blamed for that writes the stamp of a guest sector to a host cluster of an image.
fn blamed(
    truth: &PageImage,
    image: &PageImage,
    cluster: u64,
    guest: u64,
    checks: OverlapChecks,
) -> Trespasses {
    let bytes = stamp(Writer::Operation(OperationId(0)), guest).to_vec();
    let entry = Entry {
        id: RequestId(0),
        disk: Disk::Image,
        event: Event::WriteAio,
        ordinal: 0,
        op: RecordedOp::Write {
            run: Rc::new(SectorRun::new(cluster * 8, bytes)),
            fua: false,
        },
        submitted: Tick(1),
        completed: Some((Tick(2), Ok(()))),
        effect: Effect::Whole,
        repeats: None,
    };
    let recording = Recording {
        bases: Disks::one(image.clone()),
        entries: vec![entry],
    };
    trespasses(&Land::of(truth), &recording, checks)
}

#[test]
fn a_write_to_what_is_anothers_is_seen() {
    let life = live(&case(&WRITES, Vec::new())).unwrap();
    let image = life.last.image();
    let of = |wanted: fn(Owner) -> bool| {
        let owned = owners(image);
        owned
            .into_iter()
            .find(|(_, owner, _)| wanted(*owner))
            .unwrap()
            .0
    };
    let table = of(|owner| matches!(owner, Owner::L2Table(_)));
    let first = of(|owner| owner == Owner::Data(0));
    let block = of(|owner| matches!(owner, Owner::RefcountBlock(_)));
    let cached = OverlapChecks::cached();
    let class = |found: Trespasses| found.violation.map(|it| it.class.to_string());
    let over = |cluster, guest| class(blamed(image, image, cluster, guest, cached));
    assert_eq!(
        over(table, 0).unwrap(),
        "structure/wrong-owner/data-over-l2-table"
    );
    assert_eq!(
        over(block, 0).unwrap(),
        "structure/wrong-owner/data-over-refcount-block"
    );
    assert_eq!(
        over(first, 16).unwrap(),
        "structure/wrong-owner/data-over-data"
    );
    // Its own, and nobody's.
    assert_eq!(over(first, 3), None);
    assert_eq!(over(image.len() / 4096 + 1, 0), None);
    // Who asked for no checks of metadata is not told.
    let unchecked = blamed(image, image, table, 0, OverlapChecks::none());
    assert!(unchecked.violation.is_none());
    assert_eq!(unchecked.blind[&Blind::Unchecked], 1);
    // With refcounts of zero data cannot be known to be in use; metadata can all the same.
    let mut uncounted = image.clone();
    uncounted.write_zeroes(block * 8 * SECTOR_BYTES, 4096);
    let data = blamed(image, &uncounted, first, 16, cached);
    assert!(data.violation.is_none());
    assert_eq!(data.blind[&Blind::Uncounted], 1);
    assert!(class(blamed(image, &uncounted, table, 0, cached)).is_some());
}

/// Two writes, of which a bit of the first's data goes wrong, and a read of both.
fn lied_to(read: u64) -> Life {
    let rule = Rule {
        event: Some(Event::WriteAio),
        ..Rule::new(Fault::Flip(9))
    };
    let read = Operation::Read {
        offset: read,
        len_bytes: 4096,
    };
    live(&case(&[WRITES[0], WRITES[1], read], vec![rule])).unwrap()
}

#[test]
fn a_read_that_is_wrong_hangs_on_what_went_wrong() {
    let told = live::judge(&lied_to(0));
    assert_eq!(told.readings.undetectable[&Class::Data], 1);
    assert_eq!(told.readings.right, 7);
    assert!(told.unexplained.is_none());
    // The same bytes, read where nothing went wrong.
    let mut life = lied_to(8192);
    assert!(life.violations().is_empty());
    life.lived.reads[0].data[512] ^= 1;
    let violations = life.violations();
    assert_eq!(violations.len(), 1);
    assert!(violations[0].class.to_string().ends_with("/silent-read"));
    // A table that went wrong explains only what another wrote over, where it does not map it.
    life.injected[0].1.event = Event::RefblockUpdatePart;
    assert_eq!(life.violations().len(), 1);
    life.lived.reads[0].data[512..1024]
        .copy_from_slice(&stamp(Writer::Operation(OperationId(0)), 0));
    assert_eq!(life.violations(), []);
}

/// Two writes, of which the device carries the first out once more when another has been answered.
fn repeated() -> Life {
    let rule = Rule {
        event: Some(Event::WriteAio),
        ..Rule::new(Fault::Duplicate(1))
    };
    live(&case(&WRITES, vec![rule])).unwrap()
}

/// Lets a write of data go to where the L2 table stands.
fn move_to_the_table(life: &mut Life, is_it: fn(&Entry) -> bool) {
    let owned = owners(life.last.image()).into_iter();
    let mut tables = owned.filter(|(_, owner, _)| matches!(owner, Owner::L2Table(_)));
    let (table, ..) = tables.next().unwrap();
    let mut entries = life.lived.recordings[0].entries.iter_mut();
    let entry = entries.find(|entry| is_it(entry)).unwrap();
    entry.op = RecordedOp::Write {
        run: Rc::new(SectorRun::new(table * 8, vec![7; 512])),
        fua: false,
    };
}

#[test]
fn nobody_is_blamed_for_what_the_device_repeats_and_everybody_for_the_rest() {
    let is_data = |entry: &Entry| entry.event == Event::WriteAio && entry.repeats.is_none();
    assert_eq!(repeated().violations(), []);
    let mut life = repeated();
    let first = life.injected[0].1.request;
    move_to_the_table(&mut life, |entry| entry.repeats.is_some());
    assert_eq!(
        first,
        Some(
            life.lived.recordings[0]
                .entries
                .iter()
                .find(|it| is_data(it))
                .unwrap()
                .id
        )
    );
    assert!(live::judge(&life).trespasses.violation.is_none());
    let mut life = repeated();
    move_to_the_table(&mut life, |entry| {
        entry.event == Event::WriteAio && entry.repeats.is_none() && entry.ordinal > 0
    });
    let found = live::judge(&life).trespasses.violation.unwrap();
    assert_eq!(
        found.class.to_string(),
        "structure/wrong-owner/data-over-l2-table"
    );
}

/// Bytes need not say whose they are.
#[test]
fn data_are_of_whom_they_were_written_for() {
    let mut life = repeated();
    let owned = owners(life.last.image()).into_iter();
    let mut first = owned.filter(|(_, owner, _)| *owner == Owner::Data(0));
    let (first, ..) = first.next().unwrap();
    let entries = &mut life.lived.recordings[0].entries;
    let is_second = |it: &&mut Entry| it.event == Event::WriteAio && it.ordinal == 1;
    let second = entries.iter_mut().find(is_second).unwrap();
    second.op = RecordedOp::Write {
        run: Rc::new(SectorRun::new(first * 8, vec![7; 512])),
        fua: false,
    };
    let found = live::judge(&life).trespasses;
    let found = found.violation.unwrap();
    assert_eq!(
        found.class.to_string(),
        "structure/wrong-owner/data-over-data"
    );
}

#[test]
fn a_length_is_damaged_too() {
    let case = case(&WRITES, Vec::new());
    let life = live(&case).unwrap();
    let len = life.last.image().len();
    let cut = Wound::Length {
        len_bytes: len - 4096,
    };
    let judged = judge(&case, &life, cut).unwrap();
    assert_eq!(judged.verdict, Verdict::Survived);
    assert!(judged.readings.undetectable[&Class::Data] > 0, "{judged:?}");
    let longer = Wound::Length {
        len_bytes: len + 8192,
    };
    let judged = judge(&case, &life, longer).unwrap();
    assert_eq!(
        (judged.verdict, judged.standing),
        (Verdict::Survived, Standing::Right)
    );
    assert!(judge(&case, &life, Wound::Length { len_bytes: len }).is_none());
}
