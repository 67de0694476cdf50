use proptest::prelude::*;

use super::*;

/// A log with these entries and their data, as its bytes.
fn log_of(sector: SectorSize, entries: &[(Logged, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = u64::try_from(entries.len()).unwrap();
    write_super(&mut bytes, &SuperBlock::new(count, sector)).unwrap();
    for (entry, data) in entries {
        write_entry(&mut bytes, sector, entry, data).unwrap();
    }
    bytes
}

fn sample() -> Vec<u8> {
    log_of(
        SectorSize::SMALL,
        &[
            (Logged::write(256, 2), vec![7; 1024]),
            (Logged::flush(), Vec::new()),
            (Logged::discard(8, 1 << 40), Vec::new()),
            (Logged::mark("fsync 3"), Vec::new()),
            (
                Logged::write(1, 1).flagged(Flags::FUA.with(Flags::METADATA)),
                vec![9; 512],
            ),
        ],
    )
}

fn read(bytes: &[u8]) -> Result<Vec<Logged>, BadLog> {
    let log = Log::open(bytes)?;
    log.entries()
        .map(|read| read.map(|(_, entry)| entry))
        .collect()
}

fn problem(bytes: &[u8]) -> (u64, Problem) {
    let BadLog { offset, problem } = read(bytes).expect_err("the log is damaged");
    (offset, problem)
}

fn copied(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    copy(&Log::open(bytes).unwrap(), &mut out).unwrap();
    out
}

/// The layout byte by byte, as Linux documents it, and as QEMU writes a flush.
#[test]
fn the_bytes_are_those_of_the_format() {
    let bytes = sample();
    assert_eq!(bytes[..8], *b"rhswfsj\0");
    assert_eq!(word_at(&bytes, 8), 1);
    assert_eq!(word_at(&bytes, 16), 5);
    assert_eq!(bytes[24..28], [0, 2, 0, 0]);
    let heads: Vec<[u64; 4]> = [512, 2048, 2560, 3072, 3584]
        .into_iter()
        .map(|at| [0, 8, 16, 24].map(|word| word_at(&bytes, at + word)))
        .collect();
    let expected = [
        [256, 2, 0, 0],
        [0, 0, 1, 0],
        [8, 1 << 40, 4, 0],
        [0, 0, 8, 7],
        [1, 1, 18, 0],
    ];
    assert_eq!(heads, expected);
    assert_eq!(bytes[3072 + 32..3072 + 40], *b"fsync 3\0");
    assert_eq!(bytes.len(), 3584 + 1024);
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    entry::word(bytes, at)
}

#[test]
fn what_was_written_is_read() {
    let bytes = sample();
    let log = Log::open(bytes.as_slice()).unwrap();
    let all: Vec<(Place, Logged)> = log.entries().map(Result::unwrap).collect();
    assert_eq!(all[3].1.name(), "fsync 3");
    assert_eq!(all[2].0.data_bytes, 0);
    let mut data = [0; 512];
    log.read_data(&all[0].0, 512, &mut data).unwrap();
    assert_eq!(data, [7; 512]);
    assert_eq!(all[4].1.flags.to_string(), "fua,metadata");
    assert_eq!(copied(&bytes), bytes);
}

/// QEMU counts its entries at a flush and now and then: after a kill there are more than are counted. And a disk that
/// held another log before has anything behind the end.
#[test]
fn what_is_not_counted_is_kept_and_read_on_demand() {
    let mut bytes = sample();
    bytes[16] = 2;
    assert_eq!(read(&bytes).unwrap().len(), 2);
    let log = Log::open(bytes.as_slice()).unwrap();
    assert_eq!(log.entries().and_beyond().count(), 5);
    assert_eq!(log.entries().and_beyond().at_most(3).count(), 3);
    assert_eq!(copied(&bytes), bytes);
    for rest in [vec![0; 5000], vec![0xa5; 700]] {
        let longer: Vec<u8> = bytes.iter().copied().chain(rest).collect();
        let log = Log::open(longer.as_slice()).unwrap();
        assert_eq!(log.entries().and_beyond().count(), 5);
        assert_eq!(copied(&longer), longer);
    }
}

#[test]
fn padding_that_is_not_zero_is_kept() {
    let mut bytes = sample();
    for at in [40, 511, 512 + 100, 2048 + 511, 3072 + 300] {
        bytes[at] = 0xee;
    }
    assert_eq!(read(&bytes).unwrap()[3].name(), "fsync 3");
    assert_eq!(copied(&bytes), bytes);
}

#[test]
fn a_log_that_is_cut_off_says_where_and_what_is_left() {
    let bytes = sample();
    for (len, at, left) in [
        (4607, 3584, 4),
        (4000, 3584, 4),
        (1000, 512, 0),
        (2100, 2048, 1),
    ] {
        let (offset, problem) = problem(&bytes[..len]);
        assert_eq!(offset, at);
        let text = problem.to_string();
        assert!(
            matches!(problem, Problem::CutOff { whole, .. } if whole == left),
            "{text}"
        );
        assert!(text.contains(&format!("--entries {left}")), "{text}");
    }
    assert!(matches!(problem(&bytes[..20]), (0, Problem::NoSuper(20))));
    assert!(matches!(
        problem(&bytes[..100]),
        (0, Problem::CutOff { .. })
    ));
}

#[test]
fn damage_is_named_with_its_place() {
    let damaged = |at: usize, value: u8| {
        let mut bytes = sample();
        bytes[at] = value;
        problem(&bytes)
    };
    assert!(matches!(damaged(0, 0), (0, Problem::NoLog(_))));
    assert!(matches!(damaged(8, 2), (8, Problem::Version(2))));
    assert!(matches!(
        damaged(24, 1),
        (24, Problem::Sector(BadSize(513)))
    ));
    assert!(matches!(damaged(26, 255), (24, Problem::Sector(_))));
    assert!(matches!(
        damaged(2048 + 16, 0x21),
        (
            2048,
            Problem::Flags {
                index: 1,
                flags: 0x21
            }
        )
    ));
    assert!(matches!(
        damaged(3072 + 25, 2),
        (
            3072,
            Problem::Mark {
                index: 3,
                name_bytes: 519,
                room: 480
            }
        )
    ));
    assert!(matches!(
        damaged(2560 + 15, 255),
        (2560, Problem::Place { index: 2, .. })
    ));
    let mut bytes = sample();
    bytes[..512].fill(0);
    assert!(matches!(problem(&bytes), (0, Problem::Unfinished)));
}

/// Whoever reads on behind a damaged entry would take data for entries.
#[test]
fn nothing_is_read_behind_an_error() {
    let mut bytes = sample();
    bytes[2048 + 16] = 0xff;
    let log = Log::open(bytes.as_slice()).unwrap();
    let results: Vec<bool> = log.entries().map(|read| read.is_ok()).collect();
    assert_eq!(results, [true, false]);
}

#[test]
fn sectors_have_a_power_of_two_of_bytes() {
    for bytes in [32, 512, 4096, 1 << 23] {
        assert_eq!(SectorSize::new(bytes).unwrap().bytes(), u64::from(bytes));
    }
    for bytes in [0, 1, 16, 513, 1 << 24, u32::MAX] {
        assert_eq!(SectorSize::new(bytes), Err(BadSize(bytes)));
    }
}

fn any_entry(sector: SectorSize) -> impl Strategy<Value = (Logged, Vec<u8>)> {
    let bytes = usize::try_from(sector.bytes()).unwrap();
    (
        0u64..1 << 40,
        0usize..4,
        0u64..32,
        any::<u64>(),
        prop::collection::vec(any::<u8>(), 0..bytes - 31),
    )
        .prop_map(move |(first, count, flags, data_len, rest)| {
            let flags = Flags::from_bits(flags).unwrap();
            let entry = Logged {
                sector: first,
                sector_count: u64::try_from(count).unwrap(),
                flags,
                data_len: if flags.has(Flags::MARK) {
                    data_len % (sector.bytes() - 31)
                } else {
                    data_len
                },
                rest: entry::without_zeroes(&rest),
            };
            let len = usize::try_from(entry.data_sectors() * sector.bytes()).unwrap();
            (entry, vec![0x5a; len])
        })
}

fn any_log() -> impl Strategy<Value = (SectorSize, Vec<(Logged, Vec<u8>)>)> {
    prop::sample::select(vec![32u32, 512, 4096]).prop_flat_map(|bytes| {
        let sector = SectorSize::new(bytes).unwrap();
        (Just(sector), prop::collection::vec(any_entry(sector), 0..8))
    })
}

proptest! {
    #[test]
    fn any_log_comes_back((sector, entries) in any_log(), rest in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut bytes = log_of(sector, &entries);
        bytes.extend(rest);
        let expected: Vec<Logged> = entries.into_iter().map(|(entry, _)| entry).collect();
        prop_assert_eq!(read(&bytes).unwrap(), expected);
        prop_assert_eq!(copied(&bytes), bytes);
    }

    /// Whatever stands there, reading ends, and what could be read as a whole is written as it was.
    #[test]
    fn no_bytes_are_too_much(
        (sector, entries) in any_log(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = log_of(sector, &entries);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        let Ok(log) = Log::open(bytes.as_slice()) else { return Ok(()) };
        let beyond = log.entries().and_beyond().take_while(Result::is_ok).count();
        prop_assert!(beyond <= bytes.len() / 32);
        let mut out = Vec::new();
        if copy(&log, &mut out).is_ok() {
            prop_assert_eq!(out, bytes);
        }
    }
}
