//! Programs that people run, in an image of Debian's packages: what they do in a container is what they do on the host, in
//! the same tree. `make test-work` makes the image, and runs this.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command, time::Duration};

use end_to_end::{Root, accelerator, can_mount};

/// How long a program may take on a machine that does other things besides.
const PATIENCE: Duration = Duration::from_secs(400);

/// The store in which the image is, if there is one and it can be worked in.
fn store() -> Result<PathBuf, String> {
    if accelerator() != "um" {
        return Err("emulated, or on an emulated host, it takes many times as long".to_owned());
    }
    let store = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../out/test/work");
    let missing = |_| "its image was not made: make test-work makes it".to_owned();
    store.canonicalize().map_err(missing)
}

/// Runs `script` in a container of the image, which has to print `expected` and nothing else; and on the host, where root
/// may, with the same tree as its root directory.
fn work(name: &str, script: &str, expected: &str) {
    let store = match store() {
        Ok(store) => store,
        Err(reason) => return end_to_end::skipped(&format!("real_work::{name}"), &reason),
    };
    let root = Root::new();
    fs::create_dir(root.state()).expect("a folder");
    symlink(store.join("images"), root.state().join("images")).expect("a link to images");
    let script = format!("set -e; cd /tmp; exec 2>/tmp/errors; {script}");
    let run = root.run([
        "--rm",
        "-m",
        "2g",
        "-e",
        "HOME=/tmp",
        "work",
        "sh",
        "-c",
        &script,
    ]);
    run.start().finish_within(PATIENCE).code(0).stdout(expected);
    match can_mount() {
        Ok(()) => assert_eq!(on_host(&root, &store, &script), expected, "on the host"),
        Err(reason) => end_to_end::skipped(&format!("real_work::{name} on the host"), &reason),
    }
}

/// What `script` prints on the host, in the tree of the image, with nothing else of the host's but its kernel.
fn on_host(root: &Root, store: &std::path::Path, script: &str) -> String {
    const SCRIPT: &str = "set -e; cd \"$1\"; mkdir image layer; \
        mount -o ro,loop,noload \"$2\" image; mount -t tmpfs none layer; mkdir layer/upper layer/work layer/root; \
        mount -t overlay -o lowerdir=image/rootfs,upperdir=layer/upper,workdir=layer/work none layer/root; \
        mount -t proc none layer/root/proc; mount --rbind /dev layer/root/dev; \
        exec env -i HOME=/tmp PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot layer/root sh -c \"$3\"";
    let images = fs::read_dir(store.join("images"))
        .expect("images")
        .flatten();
    let mut images = images.map(|entry| entry.path().join("rootfs.ext4"));
    let image = images.find(|path| path.exists()).expect("an image");
    let output = Command::new("timeout")
        .args(["--signal=KILL", "400"])
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-c", SCRIPT, "sh"])
        .args([root.files(), image])
        .arg(script)
        .output()
        .expect("unshare runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on the host: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_database_server_takes_a_thousand_transactions() {
    let script = r#"exec su postgres -c 'set -e; export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
        initdb -A trust -D data >/dev/null
        pg_ctl -D data -w -l log -o "-k /tmp -h \"\"" start >/dev/null
        createdb -h /tmp bench; pgbench -h /tmp -i -q bench
        pgbench -h /tmp -c 4 -t 250 bench | grep processed:
        ask() { psql -h /tmp -Atc "$1" bench; }
        ask "select count(*), sum(abalance) = (select sum(tbalance) from pgbench_tellers) from pgbench_accounts"
        ask "select count(*) from pgbench_history"
        pg_ctl -D data -m fast stop >/dev/null'"#;
    let expected = "number of transactions actually processed: 1000/1000\n100000|t\n1000\n";
    work(
        "a_database_server_takes_a_thousand_transactions",
        script,
        expected,
    );
}

#[test]
fn java_is_compiled_and_runs_in_eight_threads() {
    let script = r#"cat >A.java <<'END'
import java.util.concurrent.atomic.AtomicLong;
public class A {
    public static void main(String[] arguments) throws Exception {
        AtomicLong sum = new AtomicLong();
        Thread[] threads = new Thread[8];
        for (int i = 0; i < 8; i++) {
            threads[i] = new Thread(() -> { for (int j = 0; j < 100000; j++) sum.incrementAndGet(); });
            threads[i].start();
        }
        for (Thread thread : threads) thread.join();
        System.gc();
        System.out.println(sum);
    }
}
END
javac A.java; java A"#;
    work(
        "java_is_compiled_and_runs_in_eight_threads",
        script,
        "800000\n",
    );
}

#[test]
fn a_node_program_passes_its_tests() {
    let script = r#"mkdir program; cd program
cat >sum.test.js <<'END'
const test = require("node:test"), assert = require("node:assert"), http = require("node:http");
test("computes", () => assert.strictEqual([1, 2, 3].reduce((a, b) => a + b), 6));
test("waits", async () => { await new Promise(done => setTimeout(done, 20)); });
test("serves", async () => {
    const server = http.createServer((_, answer) => answer.end("hello"));
    await new Promise(done => server.listen(0, "127.0.0.1", done));
    const get = () => new Promise(done => http.get(server.address(), answer => {
        let text = ""; answer.on("data", part => text += part).on("end", () => done(text)); }));
    assert.strictEqual(await get(), "hello");
    server.close(); server.closeAllConnections?.();
});
END
node --test --test-reporter=tap | grep -E '^# (tests|pass|fail)'"#;
    work(
        "a_node_program_passes_its_tests",
        script,
        "# tests 3\n# pass 3\n# fail 0\n",
    );
}

#[test]
fn a_c_program_of_many_files_is_built() {
    let script = r#"tar xjf /usr/src/busybox_*.orig.tar.bz2; cd busybox-*
export KCONFIG_NOTIMESTAMP=1
make -s allnoconfig >/dev/null
for option in ASH ECHO SEQ SHA256SUM SORT; do
    sed -i "s/^# CONFIG_$option is not set/CONFIG_$option=y/" .config
done
yes '' | make -s oldconfig >/dev/null
make -s -j2 busybox >/dev/null
[ $(find . -name '*.o' | wc -l) -gt 100 ]
./busybox ash -c 'echo built'
./busybox seq 10 | ./busybox sort -r | ./busybox sha256sum"#;
    let expected = "built\nd8b3d44f96f2c2144e979795b1343ab77ec9c828f55f783151b427df52259ae6  -\n";
    work("a_c_program_of_many_files_is_built", script, expected);
}

#[test]
fn five_thousand_files_are_committed() {
    let script = "git init -q repository; cd repository; \
        export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'; \
        git config user.email a@example.org; git config user.name A; \
        i=0; while [ $i -lt 5000 ]; do echo $i >file$i; i=$((i + 1)); done; \
        git add .; git commit -q -m all; git rm -q 'file1*'; git commit -q -m some; git gc -q; git fsck --full; \
        git ls-files | wc -l; git log --format=%H";
    let expected = "3889\n3c1d3e31e96052f5fa436fb8d0657c51b2658732\n556140077130930938529fccd53e9ca5845411e8\n";
    work("five_thousand_files_are_committed", script, expected);
}

#[test]
fn a_database_in_a_file_is_whole() {
    let script = "sqlite3 data.db 'pragma journal_mode=wal; create table t(x); with recursive c(i) as \
        (select 1 union all select i + 1 from c where i < 50000) insert into t select i * i from c;'; \
        i=0; while [ $i -lt 100 ]; do echo \"insert into t values ($i);\"; i=$((i + 1)); done | sqlite3 data.db; \
        sqlite3 data.db 'select count(*), sum(x) from t; pragma integrity_check'";
    work(
        "a_database_in_a_file_is_whole",
        script,
        "wal\n50100|41667916679950\nok\n",
    );
}

#[test]
fn a_server_answers_two_thousand_requests_of_each_kind() {
    let script = "redis-server --save '' --daemonize yes >/dev/null; \
        until redis-cli ping >/dev/null; do sleep 0.1; done; \
        redis-benchmark -q -n 2000 -c 20 -t set,get,incr,lpush | tr '\\r' '\\n' | grep -c 'requests per second'; \
        redis-cli get counter:__rand_int__; redis-cli llen mylist; redis-cli shutdown nosave";
    work(
        "a_server_answers_two_thousand_requests_of_each_kind",
        script,
        "4\n2000\n2000\n",
    );
}

#[test]
fn a_go_program_is_built_and_runs() {
    let script = r#"mkdir program; cd program; echo 'module program' >go.mod
cat >main.go <<'END'
package main

import ("fmt"; "net"; "io")

func main() {
    listener, _ := net.Listen("tcp", "127.0.0.1:0")
    go func() { for { client, err := listener.Accept(); if err != nil { return }; go func() { io.Copy(client, client); client.Close() }() } }()
    sums := make(chan int)
    for i := 0; i < 50; i++ {
        go func(i int) {
            client, _ := net.Dial("tcp", listener.Addr().String())
            fmt.Fprintf(client, "%d\n", i)
            var got int
            fmt.Fscan(client, &got)
            client.Close()
            sums <- got
        }(i)
    }
    sum := 0
    for i := 0; i < 50; i++ { sum += <-sums }
    fmt.Println(sum)
}
END
go build -o program .; ./program"#;
    work("a_go_program_is_built_and_runs", script, "1225\n");
}

#[test]
fn packages_are_installed_from_a_repository_of_files() {
    let script = "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; \
        echo 'deb [trusted=yes] file:/srv/mirror ./' >/etc/apt/sources.list; \
        apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install hello tree >/dev/null; \
        hello; dpkg-query -W -f '${Package} ${Status}\\n' hello tree; dpkg --audit";
    let expected = "Hello, world!\nhello install ok installed\ntree install ok installed\n";
    work(
        "packages_are_installed_from_a_repository_of_files",
        script,
        expected,
    );
}
