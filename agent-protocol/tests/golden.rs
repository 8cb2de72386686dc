//! Pins the encoding: a change here is a change of the protocol and must raise `VERSION`.

use agent_protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn boot() -> Boot {
    Boot {
        realtime_ns: 1_700_000_000_000_000_000,
        entropy: [0x11; 32],
        hostname: "c0ffee".into(),
        hosts: b"127.0.0.1 localhost\n".to_vec(),
        resolv_conf: Vec::new(),
        root: Root {
            image_device: "vda".into(),
            writable_device: "vdb".into(),
            read_only: false,
            ephemeral: true,
        },
        mounts: vec![Mount::Tmpfs {
            target: b"/t".to_vec(),
            flags: 6,
            data: b"size=1m".to_vec(),
        }],
        cpu_limit_milli: Some(500),
        process: Process {
            args: vec![b"sh".to_vec(), vec![0xff, 0xfe]],
            env: vec![b"A=b".to_vec()],
            cwd: b"/".to_vec(),
            user: "1000:1000".into(),
            capabilities: 0xa80425fb,
            stdio: Stdio::Pipes {
                stdin: None,
                stdout: Token::from_random([0x22; 16]),
                stderr: Token::from_random([0x33; 16]),
            },
        },
    }
}

fn guest_frames() -> Vec<(GuestFrame, &'static str)> {
    vec![
        (
            GuestFrame::Hello(Hello {
                version: 1,
                kernel_release: "6.12".into(),
                now_ns: 300,
                init_ns: 2,
            }),
            "0a000000000104362e3132ac0202",
        ),
        (
            GuestFrame::Started(Started {
                mounted_ns: 1,
                executed_ns: 2,
            }),
            "03000000010102",
        ),
        (
            GuestFrame::Exited(Exited {
                status: ExitStatus::Code(42),
                oom: false,
                exited_ns: 3,
                synced_ns: 4,
            }),
            "0600000002002a000304",
        ),
        (
            GuestFrame::Exited(Exited {
                status: ExitStatus::Signal(9),
                oom: true,
                exited_ns: 3,
                synced_ns: 4,
            }),
            "06000000020109010304",
        ),
        (
            GuestFrame::Error(StartError {
                stage: Stage::Execute,
                errno: 2,
                text: "sh".into(),
            }),
            "06000000030604027368",
        ),
        (
            GuestFrame::Log {
                level: Level::Warn,
                text: "x".into(),
            },
            "0400000004000178",
        ),
    ]
}

fn host_frames() -> Vec<(HostFrame, &'static str)> {
    vec![
        (HostFrame::Signal { signal: 15 }, "02000000010f"),
        (
            HostFrame::Resize(WindowSize {
                rows: 24,
                columns: 300,
            }),
            "040000000218ac02",
        ),
        (HostFrame::Boot(Box::new(boot())), BOOT_GOLDEN),
    ]
}

const BOOT_GOLDEN: &str = "a1000000008080a8b1e39fe7cb17111111111111111111111111111111111111111111111111111111111111\
     111106633066666565143132372e302e302e31206c6f63616c686f73740a0003766461037664620001010002\
     2f74060773697a653d316d01f4030202736802fffe0103413d62012f09313030303a31303030fbcb90c00a00\
     002222222222222222222222222222222233333333333333333333333333333333";

#[test]
fn guest_frames_keep_their_bytes() {
    for (message, golden) in guest_frames() {
        let frame = encode(&message).unwrap();
        assert_eq!(hex(&frame), golden, "{message:?}");
        assert_eq!(frame::decode::<GuestFrame>(&frame[4..]).unwrap(), message);
    }
}

#[test]
fn host_frames_keep_their_bytes() {
    for (message, golden) in host_frames() {
        let frame = encode(&message).unwrap();
        assert_eq!(hex(&frame), golden, "{message:?}");
        assert_eq!(frame::decode::<HostFrame>(&frame[4..]).unwrap(), message);
    }
}

#[test]
fn a_newer_hello_still_tells_its_version() {
    let mut body = encode(&guest_frames()[0].0).unwrap().split_off(4);
    body[1] = 9;
    body.extend_from_slice(b"fields of the future");
    assert_eq!(Hello::peek_version(&body), Some(9));
    assert_eq!(Hello::peek_version(&[1, 1]), None);
    assert_eq!(Hello::peek_version(&[]), None);
}
