//! What somebody who mistyped a word may have meant.

/// The candidate that `word` is likely to have been, if one is near enough: a mistake for every three characters, at
/// least one.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    let near = candidates.into_iter().filter_map(|candidate| {
        let distance = distance(word, candidate);
        (1..=allowed)
            .contains(&distance)
            .then_some((distance, candidate))
    });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters were left out, added, mistaken for others, or swapped with their neighbours (optimal string
/// alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut least = (last[j] + 1)
                .min(row[j - 1] + 1)
                .min(last[j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before_last[j - 2] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        let commands = ["run", "ps", "rm", "image", "system", "version"];
        for (word, meant) in [
            ("rnu", Some("run")),
            ("rn", Some("run")),
            ("imgae", Some("image")),
            ("images", Some("image")),
            ("sytem", Some("system")),
            ("logs", None),
            ("pull", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, commands), meant, "{word}");
        }
        let images = ["busybox", "debian"];
        assert_eq!(nearest("busyboks", images), Some("busybox"));
        assert_eq!(nearest("ubuntu", images), None);
    }
}
