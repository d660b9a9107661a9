//! URIs: what is read, what is refused and how, and that writing undoes reading.

use super::*;
use proptest::prelude::*;

fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Uri);
    let message = error.to_string();
    assert!(message.contains(&format!("{text:?}")), "{message} does not name {text}");
    message
}

#[test]
fn documented_forms_are_read() {
    let geometry = Geometry { block_size: 4096, blocks: BlockCount(262_144) };
    assert_eq!(parse("mem://?size=1GiB").unwrap(), DeviceUri::Mem(geometry));
    assert_eq!(parse("null://?size=1073741824").unwrap(), DeviceUri::Null(geometry));
    assert_eq!(
        parse("file:///a%20b?size=512&block_size=512").unwrap(),
        DeviceUri::File { path: "/a b".into(), size: Some(ByteCount(512)), block_size: 512 }
    );
    assert_eq!(
        parse("disk:///dev/disk/by-id/x").unwrap(),
        DeviceUri::Disk { path: "/dev/disk/by-id/x".into(), block_size: 4096 }
    );
    assert_eq!(
        parse("nvme+tcp://[::1]/nqn.2014-08.org.nvmexpress:uuid:1?nsid=7").unwrap(),
        DeviceUri::NvmeTcp {
            host: "::1".into(),
            port: 4420,
            nqn: "nqn.2014-08.org.nvmexpress:uuid:1".into(),
            nsid: 7
        }
    );
    let DeviceUri::Fault { of, rules } =
        parse("fault://?of=mem://?size=1MiB&rule=fail:media-write,on:write+flush,lba:3-9,times:1&rule=hang")
            .unwrap()
    else {
        panic!("not a fault device")
    };
    assert_eq!(of.to_string(), "mem://?size=1MiB");
    assert_eq!(rules[0].lbas, Some(3..=9));
    assert_eq!(rules[0].ops, [Op::Write, Op::Flush]);
    assert_eq!(rules[1], Rule::every(Effect::Hang));
}

#[test]
fn refusals_say_what_to_do() {
    for (text, cause) in [
        ("/dev/sdb", "it has no scheme"),
        ("md://x", "not a known scheme"),
        ("mem://", "say how large"),
        ("mem://?size=1.5GiB", "is not a size"),
        ("mem://?size=0", "above zero"),
        ("mem://?size=4097", "multiple of 4096"),
        ("mem://?size=99999999999TiB", "is not a size"),
        ("mem://?size=1GiB&size=1GiB", "more than once"),
        ("mem://?size=1GiB&colour=red", "not known"),
        ("mem://?size", "no value"),
        ("mem://x?size=1GiB", "takes no path"),
        ("mem://?size=1GiB&block_size=1024", "512 or 4096"),
        ("file://relative/path", "must be absolute"),
        ("file:///a%2", "without two hexadecimal digits"),
        ("file:///a%+2", "without two hexadecimal digits"),
        ("file:///a%00", "zero byte"),
        ("disk:///dev/sda?size=1GiB", "not known"),
        ("nvme+tcp://host:4420", "write nvme+tcp"),
        ("nvme+tcp://host:0/nqn.x", "not a port"),
        ("nvme+tcp://::1/nqn.x", "not a host"),
        ("nvme+tcp://[::g]/nqn.x", "not an IPv6 address"),
        ("nvme+tcp:///nqn.x", "not a host"),
        ("nvme+tcp://host/iqn.x", "not an NQN"),
        ("nvme+tcp://host/nqn.x?nsid=0", "not a namespace"),
        ("fault://", "over which device"),
        ("fault://?of=mem://", "inside of=\"mem://\""),
        ("fault://?of=mem://?size=1MiB&rule=explode", "must begin with"),
        ("fault://?of=mem://?size=1MiB&rule=fail:bored", "not one of"),
        ("fault://?of=mem://?size=1MiB&rule=hang,lba:9-3", "behind the last"),
        ("fault://?of=mem://?size=1MiB&rule=hang,times:1,times:2", "more than once"),
    ] {
        let message = refused(text);
        assert!(message.contains(cause), "{message} does not say {cause:?}");
    }
}

#[test]
fn nesting_is_bounded() {
    let mut text = "mem://?size=4KiB".to_string();
    for _ in 0..DEPTH_MAX {
        text = format!("fault://?of={}", encode(text.as_bytes()));
        parse(&text).unwrap();
    }
    assert!(refused(&format!("fault://?of={}", encode(text.as_bytes()))).contains("nested"));
}

fn some_path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec(1..=255_u8, 0..20).prop_map(|mut bytes| {
        bytes.insert(0, b'/');
        PathBuf::from(OsString::from_vec(bytes))
    })
}

fn block_size() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![Just(512_u32), Just(4096)]
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let status = proptest::sample::select(&STATUSES[..]).prop_map(|(_, status)| status);
    let effect = prop_oneof![
        status.clone().prop_map(Effect::Fail),
        status.prop_map(Effect::FailAfter),
        any::<u32>().prop_map(|ms| Effect::Delay(Duration::from_millis(u64::from(ms)))),
        Just(Effect::Hang),
    ];
    let ops = proptest::sample::subsequence(&Op::ALL[..], 0..=5);
    let lbas = proptest::option::of((any::<u64>(), any::<u64>()).prop_map(|(a, b)| a.min(b)..=a.max(b)));
    (effect, ops, lbas, any::<u64>(), any::<Option<u64>>(), 0..=1000_u16).prop_map(
        |(effect, ops, lbas, skip, times, permille)| Rule { effect, ops, lbas, skip, times, permille },
    )
}

fn some_uri() -> impl Strategy<Value = DeviceUri> {
    let geometry = (block_size(), 1..1_u64 << 40)
        .prop_map(|(block_size, blocks)| Geometry { block_size, blocks: BlockCount(blocks) });
    let file = (some_path(), proptest::option::of(1..1_u64 << 40), block_size()).prop_map(
        |(path, blocks, block_size)| DeviceUri::File {
            path,
            size: blocks.map(|blocks| ByteCount(blocks * u64::from(block_size))),
            block_size,
        },
    );
    let host = prop_oneof![any::<Ipv6Addr>().prop_map(|a| a.to_string()), "[a-z0-9.-]{1,20}"];
    let nvme = (host, 1..=u16::MAX, "nqn\\.[!-~]{0,200}", 1..u32::MAX)
        .prop_map(|(host, port, nqn, nsid)| DeviceUri::NvmeTcp { host, port, nqn, nsid });
    let leaf = prop_oneof![
        (geometry, any::<bool>()).prop_map(|(geometry, mem)| if mem {
            DeviceUri::Mem(geometry)
        } else {
            DeviceUri::Null(geometry)
        }),
        file,
        (some_path(), block_size()).prop_map(|(path, block_size)| DeviceUri::Disk { path, block_size }),
        nvme,
    ];
    leaf.prop_recursive(3, 4, 1, |inner| {
        (inner, proptest::collection::vec(some_rule(), 0..3))
            .prop_map(|(of, rules)| DeviceUri::Fault { of: Box::new(of), rules })
    })
}

proptest! {
    #[test]
    fn writing_undoes_reading(uri in some_uri()) {
        let text = uri.to_string();
        prop_assert!(text.is_ascii());
        prop_assert_eq!(parse(&text).unwrap(), uri);
    }

    #[test]
    fn no_text_panics(text in "(mem|null|file|disk|nvme\\+tcp|fault)://.{0,40}") {
        drop(parse(&text));
    }

    #[test]
    fn no_rule_panics(text in "[a-z:,+0-9-]{0,40}") {
        drop(rule(&text));
    }
}
