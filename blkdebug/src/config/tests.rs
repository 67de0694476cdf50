//! Tests of reading configurations.

use super::*;

#[test]
fn a_file_is_read_as_qemu_reads_it() {
    let config = Config::of_file(
        "# what goes wrong\n\
         [inject-error \"first\"]\n\
         event = \"l2_update\"\n\
         iotype = \"write\"\n\
         errno = \"28\"\n\
         sector = \"0x10\"\n\
         state = \"2\"\n\
         once = \"on\"\n\
         immediately = \"off\"\n\
         \n\
         [set-state]\n\
         event = \"l2_load\"\n\
         state = \"1\"\n\
         new_state = \"2\"\n\
         [inject-error]\n\
           event   =   \"none\"  # always\n\
           sector = \"-1\"\n\
           state = \"4294967296\"\n",
    );
    let config = config.unwrap();
    assert_eq!(
        config.injections,
        [
            Injection {
                event: Event::L2Update,
                kind: Some(IoType::Write),
                errno: 28,
                sector: Some(16),
                state: Some(State(2)),
                repeat: Repeat::Once,
            },
            Injection {
                event: Event::None,
                kind: None,
                errno: 5,
                sector: None,
                state: None,
                repeat: Repeat::Always,
            },
        ]
    );
    assert_eq!(
        config.transitions,
        [Transition {
            event: Event::L2Load,
            from: Some(State(1)),
            to: State(2),
        }]
    );
}

#[test]
fn numbers_are_those_of_c() {
    let sector = |text: &str| {
        let text = format!("[inject-error]\nevent = \"none\"\nsector = \"{text}\"\n");
        Config::of_file(&text).map(|config| config.injections[0].sector)
    };
    assert_eq!(sector("010"), Ok(Some(8)));
    assert_eq!(sector(" +0X1f"), Ok(Some(31)));
    assert_eq!(sector("-2"), Ok(Some(u64::MAX - 1)));
    assert_eq!(sector("18446744073709551615"), Ok(None));
    for text in ["", "1k", "08", "0x", "1 ", "- 1", "--1"] {
        let problem = sector(text).unwrap_err().problem;
        assert_eq!(problem, Problem::NotANumber("sector"), "{text}");
    }
    let problem = sector("18446744073709551616").unwrap_err().to_string();
    assert_eq!(
        problem,
        "Value '18446744073709551616' is too large for parameter 'sector' (line 3)"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_the_nearest_name() {
    for (text, says) in [
        ("a = \"1\"", "no group defined (line 1)"),
        ("\n[bogus]", "There is no option group 'bogus' (line 2)"),
        (
            "[inject-eror]",
            "There is no option group 'inject-eror' (line 1: did you mean 'inject-error'?)",
        ),
        (
            "[set-state]\nevent = \"none\"\nnewstate = \"1\"",
            "Invalid parameter 'newstate' (line 3: did you mean 'new_state'?)",
        ),
        (
            "[inject-error]\nevent=\"none\"",
            "Invalid parameter 'event=\"none\"' (line 2: leave a blank before the '=' behind 'event')",
        ),
        ("[inject-error]\n\n", "Missing event name for rule (line 1)"),
        (
            "[inject-error]\n\nevent = \"l2_updtae\"\n[set-state]\nevent = \"none\"",
            "invalid parameter value: l2_updtae (line 3: did you mean 'l2_update'?)",
        ),
        (
            "[inject-error]\nevent = none",
            "invalid parameter value:  (line 2: a value stands in double quotes, with a blank before the '=')",
        ),
        (
            "[inject-error]\nevent = \"none\"\nerrno = \"x\"",
            "Parameter 'errno' expects a number (line 3)",
        ),
        (
            "[inject-error]\nevent = \"none\"\nerrno = \"-5\"",
            "Parameter 'errno' expects a positive number: -5 is not an error (line 3)",
        ),
        (
            "[inject-error]\nevent = \"none\"\nonce = \"x\"",
            "Parameter 'once' expects 'on' or 'off' (line 3)",
        ),
        (
            "[inject-error]\niotype = \"reads\"\nevent = \"none\"\n",
            "invalid parameter value: reads (line 2: did you mean 'read'?)",
        ),
        (
            "[inject-error \"a\"]\nevent = \"none\"\n[inject-error \"a\"]",
            "Duplicate ID 'a' for inject-error (line 3)",
        ),
        (
            "[inject-error]\nevent = \"none\"\ndelay-ns = \"1\"",
            "Invalid parameter 'delay-ns' (line 3: QEMU has it since 10.0.13, and no request takes time here)",
        ),
    ] {
        assert_eq!(
            Config::of_file(text).unwrap_err().to_string(),
            says,
            "{text}"
        );
    }
}

#[test]
fn names_of_sections_are_identifiers_and_differ() {
    assert!(
        Config::of_file("[set-state \"a\"]\nevent = \"none\"\n[set-state]\nid = \"a\"\n").is_err()
    );
    let bad = Config::of_file("[inject-eror]")
        .unwrap_err()
        .in_file("rules");
    assert!(
        bad.ends_with("(rules, line 1: did you mean 'inject-error'?)"),
        "{bad}"
    );
    let bad = Config::of_file("[set-state \"1\"]").unwrap_err();
    assert_eq!(bad.problem, Problem::BadId);
}

#[test]
fn only_a_near_name_is_offered() {
    let events = || Event::ALL.map(Event::name);
    assert_eq!(nearest("L2_LOAD", events()), Some("l2_load"));
    assert_eq!(
        nearest("pwritev_rmw_hed", events()),
        Some("pwritev_rmw_head")
    );
    assert_eq!(nearest("write", events()), None);
    assert_eq!(nearest("", events()), None);
}

#[test]
fn keys_and_numbers_are_looked_at_before_events_and_errors_before_transitions() {
    for (text, says) in [
        (
            "[inject-error]\nevent = \"bogus\"\n[set-state]\nstate = \"x\"",
            "Parameter 'state' expects a number (line 4)",
        ),
        (
            "[set-state]\n[inject-error]\nevent = \"bogus\"\n",
            "invalid parameter value: bogus (line 3)",
        ),
    ] {
        assert_eq!(
            Config::of_file(text).unwrap_err().to_string(),
            says,
            "{text}"
        );
    }
}
