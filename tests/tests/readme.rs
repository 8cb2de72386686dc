//! The README, followed to the letter by somebody at a terminal: every box of `$` lines is typed into a shell, and has
//! to show what the README says it shows. Boxes called `sh` are for readers to adapt, and are not run.

use std::path::{Path, PathBuf};

use end_to_end::{Root, Running, Terminal, accelerator};

/// What the shell of the test says when it waits for a command. Nobody sees it but the test.
const PROMPT: &str = "\x1b]status $?\x07";
/// What comes before and behind the status in it.
const STATUS: (&str, &str) = ("\x1b]status ", "\x07");

/// What the shell in the image says.
const INNER_PROMPT: &str = "/ # ";

/// What stands for something that differs from run to run: in a line for a part of it, alone for any lines.
const ANYTHING: &str = "…";

fn project() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    project.expect("a folder above the tests").to_owned()
}

fn text_of(path: &str) -> String {
    let path = project().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tour shows the kernel that a host without hardware virtualization takes if it was built.
fn has_kernel_as_process() -> Result<(), String> {
    let kernel = project().join("out/share/vmm/kernels/um/vmlinux");
    match kernel.exists() {
        true => Ok(()),
        false => Err("the kernel um was not built".to_owned()),
    }
}

/// It takes what it finds, and shows the kernel of a host that has no better.
fn is_usual_host() -> Result<(), String> {
    match accelerator().as_str() {
        "kvm" => Err("the tour is one of a host without hardware virtualization".to_owned()),
        _ => Ok(()),
    }
}

#[test]
fn the_tour_shows_what_it_says() {
    end_to_end::need!(has_kernel_as_process());
    end_to_end::need!(is_usual_host());
    let readme = text_of("README.md");
    let mut boxes: Vec<&str> = boxes(&readme, "console").collect();
    // The first is there to look at before there is anything that could run.
    boxes.rotate_left(1);
    let steps: Vec<Step> = boxes.into_iter().flat_map(steps).collect();
    // A README in another layout must not pass for want of anything to run.
    assert!(steps.len() >= 15, "{} commands", steps.len());

    let root = Root::new();
    let terminal = Terminal::new(50, 1000);
    let flags = ["--noprofile", "--norc", "--noediting", "-i"];
    let bash = root.program("bash").args(flags);
    // A terminal that is dumb has no bar of progress drawn again and again.
    let bash = bash.env("PS1", PROMPT).env("TERM", "dumb");
    let bash = bash.current_dir(project());
    let mut shell = Shell {
        running: bash.start_in(&terminal),
        terminal,
    };
    shell.wait();
    let differences: Vec<String> = steps.iter().filter_map(|step| shell.run(step)).collect();
    shell.terminal.type_keys("exit\r");
    shell.running.finish().code(0);
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

#[test]
fn every_box_is_run_or_says_that_it_is_not() {
    let readme = text_of("README.md");
    let kinds = readme.lines().filter_map(|line| line.strip_prefix("```"));
    let kinds: Vec<&str> = kinds.collect();
    for kind in kinds.chunks(2) {
        assert!(matches!(kind, ["console" | "sh", ""]), "{kind:?}");
    }
}

#[test]
fn what_the_documents_point_at_is_there() {
    let documents = std::fs::read_dir(project().join("docs")).expect("a folder of documents");
    let mut documents: Vec<String> = documents
        .flatten()
        .map(|entry| format!("docs/{}", entry.file_name().display()))
        .collect();
    let others = ["README.md", "CONTRIBUTING.md", "tests/README.md"];
    documents.extend(others.map(str::to_owned));
    let makefile = text_of("Makefile");
    let mut pointers = 0;
    for document in documents {
        let text = text_of(&document);
        let folder = project().join(&document);
        let folder = folder.parent().expect("the folder of a document");
        for target in between(&text, "](", ")").filter(|target| !target.contains("://")) {
            let (path, _) = target.split_once('#').unwrap_or((target, ""));
            assert!(folder.join(path).exists(), "{document} points at {target}");
            pointers += 1;
        }
        for words in between(&text, "`make ", "`") {
            for target in words.split([' ', '|']).filter(|word| !word.contains('=')) {
                let rule = format!("\n{target}:");
                assert!(
                    makefile.contains(&rule),
                    "{document} tells to make {target}"
                );
                pointers += 1;
            }
        }
    }
    assert!(pointers >= 10, "{pointers} pointers");
}

/// The boxes of `kind` in a Markdown text.
fn boxes<'a>(text: &'a str, kind: &str) -> impl Iterator<Item = &'a str> {
    let parts: Vec<&str> = text.split("\n```").collect();
    let kind = format!("{kind}\n");
    let opened = parts.into_iter().skip(1).step_by(2);
    opened.filter_map(move |part| part.strip_prefix(&kind))
}

/// Every text between `before` and `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> impl Iterator<Item = &'a str> {
    let parts: Vec<&str> = text.split(before).skip(1).collect();
    let ends = parts.into_iter().map(move |part| part.split_once(after));
    ends.flatten().map(|(inside, _)| inside)
}

/// A command, and all that is to be seen from then on until the shell waits for the next.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    command: &'a str,
    shown: Vec<&'a str>,
}

/// The commands of a box.
fn steps(text: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step {
                command,
                shown: Vec::new(),
            }),
            (None, Some(step)) => step.shown.push(line),
            (None, None) => panic!("a box begins with {line:?} instead of a command"),
        }
    }
    steps
}

/// A shell at a terminal.
struct Shell {
    terminal: Terminal,
    running: Running,
}

impl Shell {
    /// Types a command, and all that is typed at a shell which that starts. Gives what was wrong with what was seen.
    fn run(&mut self, step: &Step) -> Option<String> {
        self.terminal.type_keys(&format!("{}\r", step.command));
        self.running.read_until("\r\n");
        let mut seen = String::new();
        for line in &step.shown {
            if let Some(keys) = line.strip_prefix(INNER_PROMPT) {
                seen += &self.running.read_until(INNER_PROMPT);
                seen += INNER_PROMPT;
                self.terminal.type_keys(&format!("{keys}\r"));
            }
        }
        let (rest, status) = self.wait();
        seen += &rest;
        let seen = plain(&seen);
        let seen: Vec<&str> = seen.lines().collect();
        let wrong = match status.as_str() {
            "0" if lines_match(&step.shown, &seen) => return None,
            "0" => "shows something else".to_owned(),
            status => format!("fails with {status}"),
        };
        Some(format!(
            "--- {wrong}\n$ {}\n{}\n--- instead of\n{}",
            step.command,
            seen.join("\n"),
            step.shown.join("\n")
        ))
    }

    /// Waits until it waits for a command. Gives what was to be seen until then, and the status of the last command.
    fn wait(&mut self) -> (String, String) {
        let (before, behind) = STATUS;
        let seen = self.running.read_until(before);
        (seen, self.running.read_until(behind))
    }
}

/// `text` without what makes a terminal do something.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    // Sequences of ECMA-48, as far as they come here: ESC [ parameters letter.
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        plain += before;
        let end = sequence.find(|c: char| c.is_ascii_alphabetic());
        rest = end.map_or("", |end| &sequence[end + 1..]);
    }
    (plain + rest).replace('\r', "")
}

fn lines_match(expected: &[&str], seen: &[&str]) -> bool {
    match (expected, seen) {
        ([], []) => true,
        ([line, expected @ ..], seen) if line.trim() == ANYTHING => {
            (0..=seen.len()).any(|skipped| lines_match(expected, &seen[skipped..]))
        }
        ([line, expected @ ..], [other, seen @ ..]) => {
            line_matches(&single_spaced(line), &single_spaced(other)) && lines_match(expected, seen)
        }
        _ => false,
    }
}

fn line_matches(expected: &str, seen: &str) -> bool {
    let Some((before, behind)) = expected.split_once(ANYTHING) else {
        return expected == seen;
    };
    let Some(rest) = seen.strip_prefix(before) else {
        return false;
    };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|at| line_matches(behind, &rest[at..]))
}

/// How wide a column is depends on what is in it.
fn single_spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn boxes_are_taken_apart() {
    let text = "text\n```console\n$ one\nshown\n\nshown\n$ two\n```\ntext\n```sh\nthree\n```\n";
    let steps: Vec<Step> = boxes(text, "console").flat_map(steps).collect();
    let expected = [
        ("one", ["shown", "", "shown"].as_slice()),
        ("two", [].as_slice()),
    ];
    let expected = expected.map(|(command, shown)| Step {
        command,
        shown: shown.to_vec(),
    });
    assert_eq!(steps, expected);
    assert_eq!(boxes(text, "sh").collect::<Vec<_>>(), ["three"]);
}

#[test]
fn only_what_is_left_open_may_differ() {
    for (expected, seen, same) in [
        ("a", "a", true),
        ("a", "b", false),
        ("a", "a\nb", false),
        ("a\nb", "a", false),
        ("", "a", false),
        ("6.12.…", "6.12.117", true),
        ("6.12.…", "6.13.117", false),
        (
            "Exited (0) … ago   web",
            "Exited (0) 2 seconds ago      web",
            true,
        ),
        (
            "Exited (0) … ago   web",
            "Exited (1) 2 seconds ago      web",
            false,
        ),
        ("a\n…\nd", "a\nb\nc\nd", true),
        ("a\n…\nd", "a\nd", true),
        ("a\n…\nd", "a\nb\nc", false),
    ] {
        let lines = |text: &'static str| text.lines().collect::<Vec<_>>();
        let is_same = lines_match(&lines(expected), &lines(seen));
        assert_eq!(is_same, same, "{expected:?} {seen:?}");
    }
    assert_eq!(plain("\x1b[2Ka\r\n\x1b[6nb\x1b[1;31m"), "a\nb");
}
