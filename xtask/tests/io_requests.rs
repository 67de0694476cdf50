//! `io`'s reads, writes and looks against qemu-io's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod io_kit;

use io_kit::Pair;

const QCOW2: &[&str] = &["-f", "qcow2", "a.qcow2", "1M"];

/// A chain of two images, and a raw file that does not end at a sector.
fn pair() -> Pair {
    let pair = Pair::new();
    pair.create(QCOW2);
    pair.create(&[
        "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "o.qcow2", "1000k",
    ]);
    pair.create(&["-f", "raw", "r.raw", "1000100"]);
    pair.write("pattern", b"abcdef");
    pair.write("empty", b"");
    pair
}

#[test]
fn reads_and_writes_say_what_qemu_io_says() {
    let pair = pair();
    pair.same_words(
        &["a.qcow2"],
        &[
            "write 0 64k",
            "write -P 0x12 100 1000",
            "read -P 0x12 100 1000",
            "read -P 0x13 100 1000",
            "read -P 0x12 -s 4 -l 10 96 40",
            "read -P 0x13 -s 4 -l 10 96 40",
            "read -v 96 40",
            "write -C 0 64k",
            "write -q 0 1k",
            "read -Cq 0 512",
            "read -vq 0 8",
            "read -vC 0 8",
            "writev -P 0x41 0 1k 10",
            "readv -v -P 0x41 1000 16 18",
            "write -f 5 1k",
            "write -z 5 100k",
            "write -zu 64k 64k",
            "write -zn 128k 1k",
            "write -s pattern 100 1k",
            "read -v 90 40",
            "discard 0 64k",
            "discard -C 64k 64k",
            "write 0 0",
            "read 0 0",
            "flush",
            "length",
            "info",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn what_is_refused_is_refused_in_qemu_ios_words() {
    let pair = pair();
    pair.same_words(
        &["a.qcow2"],
        &[
            "write 0",
            "write",
            "write a 1k",
            "write 0 b",
            "write -x 0 1k",
            "write --P 0 1k",
            "write -P zz 0 1",
            "write -P 300 0 1k",
            "write -P -1 0 1",
            "write 0 3G",
            "write 2M 1k",
            "write 1048000 1000",
            "write -1 1k",
            "write 0 1k 2k",
            "write -u 0 64k",
            "write -n 0 1k",
            "write -z -P 1 0 64k",
            "write -c 64k 1k",
            "write -c 100 64k",
            "write -fc 0 64k",
            "write -bz 0 1k",
            "write -b 100 1k",
            "write -s missing 0 1k",
            "write -s empty 0 1k",
            "write -s pattern -P 1 0 1k",
            "write -q 0 64k",
            "write -zn 0 1k",
            "write -z 4G 1k",
            "writev 0 1g 1g",
            "readv 0 3g",
            "readv 0",
            "readv a 1k",
            "readv 0 x",
            "readv 4G 1k",
            "read -s 10 0 1k",
            "read -P 0 -s 1000 -l 100 0 1k",
            "read -P 0 -s 2000 0 1k",
            "read -P 0 -l 2000 0 1k",
            "read -P q 0 1k",
            "read -P 0 -s a 0 1k",
            "read -b 0 100",
            "read 0 1kB",
            "read 0 8E",
            "discard 10M 1k",
            "discard 0 3G",
            "discard a 1",
            "discard -x 0 1",
            "alloc",
            "alloc x",
            "map x",
            "truncate",
            "truncate x",
            "truncate 1000",
            "truncate -m bogus 2M",
            "truncate -z 3M",
            "bogus",
            "",
            "sleep x",
            "sleep -5",
            "sigraise x",
            "sigraise 1000",
            "help bogus",
            "help flush",
        ],
    );
    pair.same_words(
        &["-r", "a.qcow2"],
        &[
            "write 0 1k",
            "aio_write 0 1k",
            "discard 0 64k",
            "truncate 1M",
            "flush",
            "read -q 0 1k",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn numbers_are_read_alike() {
    let pair = pair();
    let mut commands = Vec::new();
    for text in [
        "64K", "0x200", "1b", "1.5k", "010", "1s", "1KiB", "08", "+1", "1m", "1g",
    ] {
        commands.push(format!("read 0 {text}"));
    }
    for text in ["0xfff", "010", "0x41", "255", "256"] {
        commands.push(format!("read -P {text} 0 1"));
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    pair.same_words(&["a.qcow2"], &commands);
}

#[test]
fn raw_disks_take_any_byte_and_any_length() {
    let pair = pair();
    pair.same_words(
        &["-f", "raw", "r.raw"],
        &[
            "write -q 64k 64k",
            "map",
            "alloc 0 1M",
            "info",
            "read 999900 548",
            "discard 65600 5000",
            "read -v 65590 16",
            "write -z 100 1000",
            "write -zn 0 1000",
            "write -c 0 64k",
            "write -b 0 1k",
            "read -b 0 1k",
            "truncate 2M",
            "length",
            "truncate 5000",
            "length",
            "read -v 5100 20",
        ],
    );
    pair.same_image("r.raw", "raw");
}

#[test]
fn what_an_image_holds_is_told_alike() {
    let pair = pair();
    pair.same_words(
        &["o.qcow2"],
        &[
            "write -q 128k 10k",
            "write -q 192k 64k",
            "write -qz 320k 64k",
            "map",
            "alloc 64k 64k",
            "alloc 128k 256k",
            "alloc 100 1k",
            "alloc 0",
            "alloc 2M",
            "alloc 0 2M",
            "alloc 0 0",
            "length",
            "info",
        ],
    );
    pair.same_words(&["a.qcow2"], &["truncate 3M", "length", "map"]);
}

/// Small numbers from a seed; quality does not matter here, repetition does.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn command(&mut self, disk_bytes: u64) -> String {
        let unit = [1, 512, 4096, 65536][usize::try_from(self.below(4)).unwrap()];
        let offset = self.below(disk_bytes / unit) * unit;
        let len = (self.below(6) * unit + self.below(2) * 777).min(disk_bytes - offset);
        let byte = self.below(255) + 1;
        match self.below(10) {
            0..4 => format!("write -P {byte} {offset} {len}"),
            4 => format!("writev -P {byte} {offset} {} {}", len / 3, len - len / 3),
            5 => format!("write -z {offset} {len}"),
            6 => format!("write -zu {offset} {len}"),
            7 => format!("read -v {offset} {}", len.min(40)),
            8 => format!("read -P {byte} {offset} {len}"),
            _ => format!("aio_write -q -P {byte} {offset} {len}"),
        }
    }
}

#[test]
fn random_histories_leave_the_same_disk() {
    for (format, name, disk_bytes) in [
        ("qcow2", "a.qcow2", 1 << 20),
        ("qcow2", "o.qcow2", 1_024_000),
        ("raw", "r.raw", 1_000_100),
    ] {
        for seed in 0..4 {
            let pair = pair();
            let mut draw = Draw(seed);
            pair.same(
                &["-f", "qcow2", "-t", "writeback", "a.qcow2"],
                &["write -q -P 7 0 300k"],
            );
            let mut commands = Vec::new();
            for _ in 0..40 {
                commands.push(draw.command(disk_bytes));
                // What overlaps has no order of its own: each history has one.
                commands.push("aio_flush".to_owned());
            }
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            pair.same(&["-f", format, "-t", "writeback", name], &commands);
            pair.same_image(name, format);
        }
    }
}

#[test]
fn compressed_data_are_not_packed_into_a_cluster_that_was_given_back() {
    // A compressed cluster leaves room behind it for the next one. Once the first is overwritten, its
    // host cluster is free and may hold other data: qemu-io 10.0.2 packs the next compressed cluster
    // in there all the same, over the data that another write put there.
    let pair = Pair::new();
    pair.create(QCOW2);
    let commands = [
        "write -q -c -P 1 0 64k",
        "write -q -P 2 0 64k",
        "write -q -P 3 64k 64k",
        "write -q -c -P 4 128k 64k",
        "read -q -P 2 0 64k",
        "read -q -P 3 64k 64k",
        "read -q -P 4 128k 64k",
    ];
    let mut arguments = vec!["a.qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    let ended = pair.ours(&arguments, "");
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{ended:?}");
    pair.sound("a.qcow2");
}

#[test]
fn vm_state_is_written_and_read_alike() {
    let pair = pair();
    pair.same_words(
        &["a.qcow2"],
        &[
            "write -b -P 5 0 64k",
            "read -b -P 5 0 64k",
            "read -b -P 6 0 64k",
            "read -b -v 65024 1k",
            "read -b 1M 64k",
            "write -b 100 512",
            "write -b 0 100",
            "read -b 100 512",
            "write -bC 512 512",
            "read -b -P 5 -s 0 -l 512 0 64k",
            "write -bq -s pattern 10G 512",
            "read -b -v 10G 512",
            "write -b -c 64k 512",
            "write -bz 0 512",
            "write -bf 0 512",
            "read -P 0 0 1M",
        ],
    );
    pair.same_words(&["a.qcow2"], &["read -b -v 0 1k", "read -bq -v 10G 512"]);
    pair.same_image("a.qcow2", "qcow2");
    pair.sound("a.qcow2");
    pair.same_words(&["-r", "a.qcow2"], &["read -b 0 512", "write -b 0 512"]);
    pair.same_words(&["o.qcow2"], &["read -b 0 512", "write -b -P 9 0 512"]);
}
