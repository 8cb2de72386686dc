//! Fragments of a kernel configuration: options, each with the reason why it is set.
//!
//! A fragment is a text of one option a line in Kconfig's own words, followed by the reason: `CONFIG_FUTEX=y # locks`.
//! `CONFIG_X=n` asks for an option to be off. Lines that begin with `#` are comments.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::Error;

/// An option that a fragment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The value, as Kconfig writes it: `y`, `n`, a number, or a string in quotes.
    pub value: String,
    /// The fragment that asks.
    pub fragment: String,
}

/// What the fragments of a variant ask for, by the name of the option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, Wanted>);

impl Options {
    /// Merges the fragments called `names` in `directory`. Where two differ, the later one wins, so that a variant can
    /// change what its base says.
    ///
    /// # Errors
    /// A fragment cannot be read, or a line of it is malformed.
    pub fn read(directory: &Path, names: &[String]) -> Result<Self, Error> {
        let mut options = Self::default();
        for name in names {
            let path = directory.join(format!("{name}.config"));
            let text =
                std::fs::read_to_string(&path).map_err(|source| Error::read(&path, source))?;
            let fragment =
                parse(&text).map_err(|(line, reason)| Error::Line { path, line, reason })?;
            for (option, value) in fragment {
                let fragment = name.clone();
                options.0.insert(option, Wanted { value, fragment });
            }
        }
        Ok(options)
    }

    /// The options in Kconfig's own form, in the order of their names.
    pub fn to_config(&self) -> String {
        let mut text = String::new();
        for (option, wanted) in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{option}={}", wanted.value);
        }
        text
    }

    /// The options that `config`, a complete `.config`, has otherwise, a line each that says so.
    pub fn lost_in(&self, config: &str) -> Vec<String> {
        let values: BTreeMap<&str, &str> = config
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split_once('='))
            .collect();
        let lost = self.0.iter().filter_map(|(option, wanted)| {
            // What is off, or does not exist, is not in the file.
            let value = values.get(option.as_str()).copied().unwrap_or("n");
            let Wanted {
                value: asked,
                fragment,
            } = wanted;
            (value != asked).then(|| format!("{option}={asked} ({fragment}) came out as {value}"))
        });
        lost.collect()
    }
}

/// The options of a fragment, or the number of a line, from 1, and what is wrong with it.
fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let mut options = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let failed = |reason| (index + 1, reason);
        if let Some(comment) = line.strip_prefix('#') {
            // Kconfig's own way to say it would be taken for a comment here, and the option stay as it is.
            if comment.trim_start().starts_with("CONFIG_") {
                return Err(failed("Write CONFIG_X=n # reason, to have an option off"));
            }
            continue;
        }
        let (option, value) = parse_option(line).map_err(failed)?;
        if options
            .insert(option.to_owned(), value.to_owned())
            .is_some()
        {
            return Err(failed("The option is in this fragment twice"));
        }
    }
    Ok(options)
}

fn parse_option(line: &str) -> Result<(&str, &str), &'static str> {
    let (option, rest) = line.split_once('=').ok_or("Expected CONFIG_X=y # reason")?;
    let name = option.strip_prefix("CONFIG_").unwrap_or_default();
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.is_empty() || !is_name(name) {
        return Err("Names of options are CONFIG_ and letters, digits or _");
    }
    let end = match rest.strip_prefix('"') {
        Some(string) => 2 + string.find('"').ok_or("The string has no end")?,
        None => rest.find([' ', '\t', '#']).unwrap_or(rest.len()),
    };
    let (value, reason) = rest.split_at(end);
    if value == "m" {
        return Err("Our kernels have no modules: y or n");
    }
    if value.is_empty() {
        return Err("The option has no value");
    }
    match reason.trim_start().strip_prefix('#') {
        Some(reason) if !reason.trim().is_empty() => Ok((option, value)),
        _ => Err("Say why, after a #"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn options(fragments: &[(&str, &str)]) -> Result<Options, Error> {
        let folder = Folder::new("fragments");
        for (name, text) in fragments {
            std::fs::write(folder.path().join(format!("{name}.config")), text).unwrap();
        }
        let names: Vec<String> = fragments.iter().map(|(name, _)| name.to_string()).collect();
        Options::read(folder.path(), &names)
    }

    #[test]
    fn options_are_merged_in_order_and_written_without_their_reasons() {
        let options = options(&[
            ("base", "# Head\n\nCONFIG_B=y # b\nCONFIG_A=n# a\n"),
            (
                "more",
                "CONFIG_A=y # a\nCONFIG_L=\"x # y\"  # c\nCONFIG_N=-1 # d\n",
            ),
        ]);
        let expected = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_L=\"x # y\"\nCONFIG_N=-1\n";
        assert_eq!(options.unwrap().to_config(), expected);
    }

    #[test]
    fn reasons_do_not_change_what_is_asked_for() {
        let texts = ["CONFIG_A=y # one\n", "# Another head\nCONFIG_A=y # two\n"];
        let texts = texts.map(|text| options(&[("a", text)]).unwrap().to_config());
        assert_eq!(texts[0], texts[1]);
    }

    #[test]
    fn what_does_not_survive_is_named_with_its_fragment() {
        let text = "CONFIG_A=y # a\nCONFIG_B=y # b\nCONFIG_C=n # c\nCONFIG_D=n # d\nCONFIG_E=\"e\" # e\nCONFIG_F=7 # f\n";
        let options = options(&[("base", text)]).unwrap();
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_E=\"e\"\nCONFIG_F=8\n";
        assert_eq!(
            options.lost_in(config),
            [
                "CONFIG_B=y (base) came out as n",
                "CONFIG_C=n (base) came out as y",
                "CONFIG_F=7 (base) came out as 8",
            ]
        );
        let kept = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_D is not set\nCONFIG_E=\"e\"\nCONFIG_F=7\n";
        assert!(options.lost_in(kept).is_empty());
    }

    #[test]
    fn malformed_lines_are_refused_by_number() {
        let rows = [
            ("CONFIG_A=y", "Say why"),
            ("CONFIG_A=y #  ", "Say why"),
            ("CONFIG_A=y because", "Say why"),
            ("CONFIG_A=m # a", "no modules"),
            ("CONFIG_A= # a", "no value"),
            ("CONFIG_A=\"x # a", "no end"),
            ("CONFIG_=y # a", "Names"),
            ("CONFIG_A-B=y # a", "Names"),
            ("A=y # a", "Names"),
            ("CONFIG_A # a", "Expected"),
            ("# CONFIG_A is not set", "=n"),
            ("CONFIG_B=y # again", "twice"),
        ];
        for (line, reason) in rows {
            let text = format!("# Head\nCONFIG_B=y # b\n{line}\n");
            let error = options(&[("bad", &text)]).unwrap_err().to_string();
            assert!(error.contains("bad.config, line 3"), "{error}");
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
    }

    #[test]
    fn a_missing_fragment_is_named() {
        let error = Options::read(Path::new("/nonexistent"), &["gone".into()]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/gone.config"));
    }
}
