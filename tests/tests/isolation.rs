//! A process in a container may dial every port of its host, and gets nothing from it.

use end_to_end::{Input, Root, noise};

#[test]
fn a_user_can_neither_forge_an_end_nor_read_another_stream() {
    let root = Root::new();
    let image = root.load_tools();
    // The secret waits in standard input while the attempts are made.
    let script = "vsock-probe control; vsock-probe stream 200 1; vsock-probe odd-stream; \
                  vsock-probe others; vsock-probe kinds; vsock-probe listen; vsock-probe control; \
                  read secret; echo \"$secret\"; echo err >&2; exit 7";
    let run = root.run(["--rm", "-i", "-u", "1000", image, "sh", "-c", script]);
    let run = run.input(Input::Bytes(b"the secret\nmore of it\n".to_vec()));
    run.finish().code(7).stderr("err\n").stdout(
        "control: 0 bytes\nstream: 0 bytes\nodd-stream: 0 bytes\nothers: open: []\n\
         kinds: open: []\nlisten: 0 connections\ncontrol: 0 bytes\nthe secret\n",
    );
}

#[test]
fn no_other_port_is_open() {
    let root = Root::new();
    let image = root.load_tools();
    let run = root.run([
        "--rm",
        "-u",
        "1000",
        image,
        "vsock-probe",
        "scan",
        "10000",
        "1",
    ]);
    run.finish().code(0).stdout("scan: 11999 ports, open: []\n");
}

#[test]
fn streams_are_complete_while_somebody_dials() {
    let root = Root::new();
    let image = root.load_tools();
    let data = noise(5, 5_000_000);
    let script = "while :; do vsock-probe stream 10 2; vsock-probe odd-stream; \
                  vsock-probe control; done > /dev/null & cat";
    let run = root.run(["--rm", "-i", "-u", "1000", image, "sh", "-c", script]);
    let run = run.input(Input::Bytes(data.clone()));
    run.finish().code(0).stderr("").stdout(data);
}

#[test]
fn connections_that_say_nothing_hold_up_nothing() {
    let root = Root::new();
    let image = root.load_tools();
    let script = "vsock-probe hold 2000 > /tmp/held & \
                  until grep -q hold /tmp/held; do sleep 0.1; done; cat; exit 5";
    let run = root.run(["--rm", "-i", "-u", "1000", image, "sh", "-c", script]);
    let run = run.input(Input::Bytes(b"still here\n".to_vec()));
    run.finish().code(5).stdout("still here\n");
}
