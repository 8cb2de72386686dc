//! What the next word of a command line could be, by the definitions that the command line is parsed with.

use std::ffi::{OsStr, OsString};

use anyhow::Result;
use clap::{Arg, Command};

/// Things whose names are not known before somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Containers,
    Images,
}

/// A word that is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    word: String,
    meaning: String,
}

impl Candidate {
    fn new(word: impl Into<String>, meaning: impl ToString) -> Self {
        Self {
            word: word.into(),
            meaning: meaning.to_string(),
        }
    }

    /// As the scripts read it.
    pub fn line(self) -> String {
        match self.meaning.is_empty() {
            true => format!("{}\n", self.word),
            false => format!("{}\t{}\n", self.word, self.meaning),
        }
    }
}

/// What the last of `words` could be; none if only the shell can tell, as with files. `known` gives the names in a
/// root, if one was named. What it cannot find it cannot offer.
pub fn find(
    commands: &Command,
    words: &[OsString],
    known: impl Fn(Names, Option<&OsStr>) -> Result<Vec<String>>,
) -> Vec<Candidate> {
    let Some((current, before)) = words.split_last() else {
        return Vec::new();
    };
    let mut place = Place::at_the_start(commands);
    for word in before {
        place.pass(word);
    }
    let current = current.to_string_lossy();
    let names = |names| known(names, place.root).unwrap_or_default();
    let mut found = place.candidates(&current, names);
    found.retain(|candidate| candidate.word.starts_with(&*current));
    found
}

/// How far a command line has come.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value is next.
    option: Option<&'a Arg>,
    /// How many positional arguments the command has had.
    positionals: usize,
    /// The value of `--root`.
    root: Option<&'a OsStr>,
}

impl<'a> Place<'a> {
    fn at_the_start(command: &'a Command) -> Self {
        Self {
            command,
            option: None,
            positionals: 0,
            root: None,
        }
    }

    fn pass(&mut self, word: &'a OsStr) {
        let text = word.to_string_lossy();
        if let Some(option) = self.option.take() {
            if option.get_id() == "root" {
                self.root = Some(word);
            }
        } else if self.is_in_the_container() {
        } else if let Some(long) = text.strip_prefix("--") {
            // With a = its value is no other word.
            self.option = self.long(long).filter(|arg| takes_value(arg));
        } else if text.starts_with('-') && text.len() > 1 {
            self.option = self.last_short(&text);
        } else if let Some(command) = self.subcommand(&text) {
            self.command = command;
        } else {
            self.positionals += 1;
        }
    }

    fn candidates(&self, current: &str, names: impl Fn(Names) -> Vec<String>) -> Vec<Candidate> {
        if let Some(option) = self.option {
            return values(option, names);
        }
        if self.is_in_the_container() {
            return Vec::new();
        }
        if let Some((flag, _)) = current.split_once('=') {
            let option = flag.strip_prefix("--").and_then(|long| self.long(long));
            let mut values = option.map_or_else(Vec::new, |option| values(option, names));
            for value in &mut values {
                value.word = format!("{flag}={}", value.word);
            }
            return values;
        }
        if current.starts_with('-') {
            return self.flags();
        }
        let commands = self.command.get_subcommands();
        let commands = commands.filter(|command| self.positionals == 0 && !command.is_hide_set());
        let commands = commands
            .map(|command| Candidate::new(command.get_name(), first_line(command.get_about())));
        let values = self.positional().map(|arg| values(arg, names));
        commands.chain(values.into_iter().flatten()).collect()
    }

    /// Long ones, and short ones that have no long name.
    fn flags(&self) -> Vec<Candidate> {
        let args = self.command.get_arguments();
        let args = args.filter(|arg| !arg.is_hide_set() && !arg.is_positional());
        args.filter_map(|arg| {
            let word = match (arg.get_long(), arg.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, Some(short)) => format!("-{short}"),
                (None, None) => return None,
            };
            Some(Candidate::new(word, first_line(arg.get_help())))
        })
        .collect()
    }

    fn long(&self, name: &str) -> Option<&'a Arg> {
        let mut args = self.command.get_arguments();
        args.find(|arg| arg.get_long() == Some(name))
    }

    /// The last of several short flags in one word, if its value is the next word.
    fn last_short(&self, word: &str) -> Option<&'a Arg> {
        let by_letter = |letter| {
            let mut args = self.command.get_arguments();
            args.find(|arg| arg.get_short() == Some(letter))
        };
        let (at, arg) = word
            .char_indices()
            .skip(1)
            .filter_map(|(at, letter)| Some((at, by_letter(letter)?)))
            .find(|(_, arg)| takes_value(arg))?;
        let is_last = word[at..].chars().count() == 1;
        is_last.then_some(arg)
    }

    fn subcommand(&self, name: &str) -> Option<&'a Command> {
        let command = self.command.find_subcommand(name)?;
        (self.positionals == 0).then_some(command)
    }

    /// The positional argument that is next.
    fn positional(&self) -> Option<&'a Arg> {
        let mut args = self.command.get_positionals();
        let many = |arg: &&Arg| {
            arg.get_num_args()
                .is_some_and(|range| range.max_values() > 1)
        };
        let last = self.command.get_positionals().last().filter(many);
        args.nth(self.positionals).or(last)
    }

    /// Whether the next word is one of a container's command, of which we know nothing.
    fn is_in_the_container(&self) -> bool {
        let next = self.positional();
        self.positionals > 0 && next.is_some_and(Arg::is_trailing_var_arg_set)
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.min_values() > 0)
}

fn values(arg: &Arg, names: impl Fn(Names) -> Vec<String>) -> Vec<Candidate> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let shown = possible.iter().filter(|value| !value.is_hide_set());
        return shown
            .map(|value| Candidate::new(value.get_name(), first_line(value.get_help())))
            .collect();
    }
    let kind = arg.get_value_names().and_then(|names| names.first());
    let names = match kind.map(|name| name.as_str()) {
        Some("CONTAINER") => names(Names::Containers),
        Some("IMAGE") => names(Names::Images),
        _ => Vec::new(),
    };
    names
        .into_iter()
        .map(|name| Candidate::new(name, ""))
        .collect()
}

/// One line, since the scripts take a line for a candidate.
fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Arguments;

    fn words(line: &str) -> Vec<String> {
        let mut commands = Arguments::command();
        commands.build();
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let known = |names, root: Option<&OsStr>| {
            let names = match names {
                Names::Containers => ["web", "worker"],
                Names::Images => ["busybox", "registry:5000/a:1"],
            };
            let prefix = root.map(|root| root.to_string_lossy().into_owned());
            let prefix = prefix.unwrap_or_default();
            Ok(names.map(|name| format!("{prefix}{name}")).to_vec())
        };
        let found = find(&commands, &words, known);
        found.into_iter().map(|candidate| candidate.word).collect()
    }

    #[test]
    fn commands_are_found_and_hidden_ones_are_not() {
        assert_eq!(words("ru"), ["run"]);
        assert_eq!(words("image l"), ["ls", "load"]);
        assert_eq!(words("help ru"), ["run"]);
        let all = words("");
        assert!(all.contains(&"ps".to_owned()), "{all:?}");
        assert!(!all.contains(&"supervise".to_owned()), "{all:?}");
        assert!(!all.contains(&"complete".to_owned()), "{all:?}");
    }

    #[test]
    fn flags_are_found_where_they_count() {
        assert_eq!(words("run --r"), ["--rm", "--read-only", "--root"]);
        assert_eq!(words("--ro"), ["--root"]);
        let all = words("run -");
        assert!(all.contains(&"--interactive".to_owned()), "{all:?}");
        assert!(words("run --rm busybox --r").is_empty());
        assert!(words("run --rm busybox sh r").is_empty());
    }

    #[test]
    fn names_are_found_where_they_are_wanted() {
        assert_eq!(words("rm w"), ["web", "worker"]);
        assert_eq!(words("rm web wo"), ["worker"]);
        assert_eq!(words("run b"), ["busybox"]);
        assert_eq!(words("run registry:5000/"), ["registry:5000/a:1"]);
        assert_eq!(words("run -it --rm -e A=1 -m 1g b"), ["busybox"]);
        assert_eq!(words("run -itw /tmp b"), ["busybox"]);
        assert_eq!(words("run -w/tmp b"), ["busybox"]);
        assert_eq!(words("--root /r rm /"), ["/rweb", "/rworker"]);
        // It is the name's value that is next.
        assert!(words("run --name b").is_empty());
        assert!(words("run -itw b").is_empty());
    }

    #[test]
    fn values_that_are_known_are_found() {
        assert_eq!(words("ps --format "), ["table", "json"]);
        assert_eq!(words("ps --format=j"), ["--format=json"]);
        assert_eq!(
            words("run --timings="),
            ["--timings=text", "--timings=json"]
        );
        assert_eq!(words("completion "), ["bash", "zsh", "fish"]);
        // A file is the shell's to find.
        assert!(words("run --kernel v").is_empty());
        assert!(words("image load ").is_empty());
    }

    #[test]
    fn a_line_is_a_candidate() {
        assert_eq!(Candidate::new("a", "b c").line(), "a\tb c\n");
        assert_eq!(Candidate::new("a", "").line(), "a\n");
    }
}
