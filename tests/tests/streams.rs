//! Standard input, output and error are the container's: every byte, in order, and each by itself.

use std::{
    io::{BufRead, BufReader, Read},
    time::Duration,
};

use end_to_end::{DEADLINE, Input, Root, noise};

/// Bytes of a stream that is much larger than everything that buffers on the way.
const MUCH: usize = 20_000_000;

#[test]
fn what_goes_in_comes_out() {
    let root = Root::new();
    let data = noise(1, 100_000_000);
    let run = root.run(["--rm", "-i", "busybox", "cat"]);
    let run = run.input(Input::Bytes(data.clone())).finish();
    run.code(0).stderr("").stdout(data);
}

#[test]
fn a_file_on_standard_input_comes_out() {
    let root = Root::new();
    let data = noise(2, 1_000_003);
    let path = root.files().join("data");
    std::fs::write(&path, &data).expect("a file");
    let run = root.run(["--rm", "-i", "busybox", "cat"]);
    run.input(Input::File(path)).finish().code(0).stdout(data);
}

#[test]
fn both_outputs_are_complete_when_both_are_large() {
    let root = Root::new();
    let script = "yes out | head -c 3000000 & yes err | head -c 3000000 >&2; wait";
    let run = root.sh(script).finish();
    run.code(0);
    let repeated = |word: &str| word.repeat(3_000_000 / word.len());
    run.stdout(repeated("out\n")).stderr(repeated("err\n"));
}

#[test]
fn a_reader_that_pauses_stalls_its_stream_only() {
    let root = Root::new();
    let script = "head -c 20000000 /dev/zero & \
                  i=0; while [ $i -lt 30 ]; do echo line $i >&2; sleep 0.1; i=$((i + 1)); done; \
                  echo last >&2; wait";
    let mut run = root.sh(script).keep_output().start();
    // All of it comes while nobody reads standard output.
    run.expect_error("last\n");
    let mut output = Vec::new();
    let mut pipe = run.take_output().expect("standard output");
    pipe.read_to_end(&mut output).expect("a pipe to read");
    let lines: String = (0..30).map(|number| format!("line {number}\n")).collect();
    let run = run.finish();
    run.code(0).stderr(lines + "last\n");
    run.check(
        output.len() == MUCH,
        &format!("{MUCH} bytes, got {}", output.len()),
    );
    assert!(output.iter().all(|&byte| byte == 0));
}

#[test]
fn every_answer_arrives_before_the_next_question() {
    let root = Root::new();
    let script = "while read word; do echo got $word; done";
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    for number in 0..50 {
        run.send(format!("{number}\n"));
        run.expect(&format!("got {number}\n"));
    }
    run.end_input();
    run.finish().code(0);
}

#[test]
fn standard_input_ends_when_it_does() {
    let root = Root::new();
    let mut run = root.run(["--rm", "-i", "busybox", "sh", "-c", "cat; echo end"]);
    run = run.input(Input::Later);
    let mut run = run.start();
    run.send("first\n");
    run.expect("first\n");
    run.send("second\n");
    run.end_input();
    run.finish().code(0).stdout("first\nsecond\nend\n");
}

#[test]
fn standard_input_goes_on_when_the_output_has_ended() {
    let root = Root::new();
    let script = "exec >&-; echo closed >&2; read word; echo got $word >&2";
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    run.expect_error("closed\n");
    run.send("something\n");
    run.finish()
        .code(0)
        .stdout("")
        .stderr("closed\ngot something\n");
}

#[test]
fn input_that_nobody_reads_holds_up_nothing() {
    let root = Root::new();
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", "exec <&-; echo done"]);
    let run = run.input(Input::Bytes(noise(3, MUCH)));
    run.finish().code(0).stdout("done\n");

    // Nor does input that does not end.
    let run = root.run(["--rm", "-i", "busybox", "echo", "done"]);
    let run = run.input(Input::Later).start();
    run.finish().code(0).stdout("done\n");
}

#[test]
fn without_i_there_is_no_standard_input() {
    let root = Root::new();
    let run = root.run(["--rm", "busybox", "cat"]);
    let run = run.input(Input::Bytes(b"not for the container".to_vec()));
    run.finish().code(0).stdout("").stderr("");
}

#[test]
fn standard_input_that_has_ended_already_reads_as_that() {
    let root = Root::new();
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", "cat; echo end"]);
    run.input(Input::Null).finish().code(0).stdout("end\n");
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", "cat; echo end"]);
    let run = run.input(Input::Bytes(Vec::new()));
    run.finish().code(0).stdout("end\n");
}

#[test]
fn a_reader_that_leaves_ends_the_writer() {
    let root = Root::new();
    let mut run = root.run(["--rm", "busybox", "yes"]).keep_output().start();
    let mut reader = BufReader::new(run.take_output().expect("standard output"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a pipe to read");
    assert_eq!(line, "y\n");
    drop(reader);
    // As `yes | head -1` in a shell: how it ends does not matter, that it does does.
    let run = run.finish();
    run.check(!run.succeeded(), "yes to fail, as it always does");
    root.expect_nothing_left();
}

#[test]
fn output_just_before_the_end_arrives() {
    let root = Root::new();
    let script = "head -c 1000000 /dev/zero; echo last >&2; exit 7";
    let run = root.sh(script).finish();
    run.code(7).stdout(vec![0; 1_000_000]).stderr("last\n");
}

#[test]
fn a_process_that_outlives_the_main_one_does_not_hold_up_the_end() {
    let root = Root::new();
    let run = root.sh("sleep 1000 & echo started").start();
    let run = run.finish_within(DEADLINE.min(Duration::from_secs(30)));
    run.code(0).stdout("started\n");
}
