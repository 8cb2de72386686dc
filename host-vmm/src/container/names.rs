//! What containers are called.

use std::io;

use super::StoreError;

/// Checks a name by Docker's rule.
///
/// # Errors
/// [`StoreError::BadName`].
pub fn check(name: &str) -> Result<(), StoreError> {
    let mut bytes = name.bytes();
    let good = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && (2..=128).contains(&name.len());
    match good {
        true => Ok(()),
        false => Err(StoreError::BadName(name.to_owned())),
    }
}

/// A random name.
///
/// # Errors
/// The host has no random numbers.
pub fn random() -> io::Result<String> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let [a, b, c, d] = bytes.map(usize::from);
    let adjective = ADJECTIVES[(a << 8 | b) % ADJECTIVES.len()];
    let noun = NOUNS[(c << 8 | d) % NOUNS.len()];
    Ok(format!("{adjective}_{noun}"))
}

const ADJECTIVES: [&str; 48] = [
    "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "clever", "cosy", "crisp",
    "deft", "eager", "early", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden",
    "handy", "happy", "honest", "jolly", "keen", "kind", "light", "lively", "loyal", "lucid",
    "mellow", "merry", "mild", "neat", "nimble", "noble", "patient", "plucky", "polite", "quick",
    "quiet", "ready", "sunny", "swift", "tidy", "vivid", "warm", "witty",
];

/// Birds.
const NOUNS: [&str; 48] = [
    "albatross",
    "avocet",
    "bittern",
    "blackbird",
    "bunting",
    "buzzard",
    "chaffinch",
    "coot",
    "cormorant",
    "crane",
    "crossbill",
    "curlew",
    "dipper",
    "dove",
    "dunlin",
    "egret",
    "eider",
    "falcon",
    "fieldfare",
    "finch",
    "gannet",
    "godwit",
    "goldcrest",
    "grebe",
    "heron",
    "hoopoe",
    "jackdaw",
    "jay",
    "kestrel",
    "kingfisher",
    "lapwing",
    "lark",
    "linnet",
    "magpie",
    "martin",
    "nightjar",
    "nuthatch",
    "oriole",
    "osprey",
    "ouzel",
    "owl",
    "petrel",
    "pipit",
    "plover",
    "puffin",
    "robin",
    "swallow",
    "wren",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in [
            "ab",
            "a_b.c-d",
            "9x",
            &"a".repeat(128),
            &ADJECTIVES.join("_")[..100],
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "-a",
            ".a",
            "a/b",
            "a b",
            "ä",
            "..",
            &"a".repeat(129),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn random_names_are_names() {
        for _ in 0..100 {
            assert!(random().is_ok_and(|name| check(&name).is_ok()));
        }
    }
}
