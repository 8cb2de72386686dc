//! Names of images, with Docker's meaning: `busybox` is `docker.io/library/busybox:latest`.
//!
//! The grammar is that of the distribution project's reference package:
//! `[domain[:port]/]path[:tag][@digest]`, where the first component is a domain only if it holds `.` or `:`, is
//! `localhost`, or is not in lower case.

use std::fmt;
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The longest name (domain and path), in bytes.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete reference to an image: it always has a domain, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid image name {text:?}: {reason}")]
pub struct Error {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// The registry's host and port, such as `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in the registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, unless the image is named by its digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, such as `sha256:…`, if the name has one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The name as people write it: without what goes without saying, but with the tag.
    pub fn familiar(&self) -> String {
        let short = match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest,
            _ => &self.path,
        };
        let ambiguous = short
            .split_once('/')
            .is_some_and(|(first, _)| names_domain(first));
        let name = match self.domain == DEFAULT_DOMAIN && !ambiguous {
            true => short.to_owned(),
            false => format!("{}/{}", self.domain, self.path),
        };
        self.with_suffix(name)
    }

    fn with_suffix(&self, mut name: String) -> String {
        for (separator, part) in [(':', &self.tag), ('@', &self.digest)] {
            if let Some(part) = part {
                name.push(separator);
                name.push_str(part);
            }
        }
        name
    }
}

/// The complete form, as in `docker.io/library/busybox:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.with_suffix(format!("{}/{}", self.domain, self.path)))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error {
            // What is wrong shows in the first part of any text.
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

/// Whether `text` is a digest, or an abbreviation of one, rather than a name: 4 to 64 lower-case hexadecimal digits.
pub fn is_hex_id(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.bytes().all(is_hex)
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex))
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && is_hex_id(text) {
        return Err("64 hexadecimal digits are an ID, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => return Err("what follows the @ is not sha256: and 64 hexadecimal digits"),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (domain, path) = match name.split_once('/') {
        Some((first, path)) if names_domain(first) => (first, path.to_owned()),
        _ => (DEFAULT_DOMAIN, name.to_owned()),
    };
    let domain = match domain {
        LEGACY_DOMAIN => DEFAULT_DOMAIN,
        domain => domain,
    };
    let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
        true => format!("{OFFICIAL}{path}"),
        false => path,
    };
    check_domain(domain)?;
    check_path(&path)?;
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        domain: domain.to_owned(),
        path,
        tag: tag.map(str::to_owned),
        digest,
    })
}

fn names_domain(component: &str) -> bool {
    component.contains(['.', ':'])
        || component == "localhost"
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    if tag.is_empty() {
        return Err("the tag is empty");
    }
    if tag.len() > MAX_TAG {
        return Err("the tag is longer than 128 characters");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !tag.bytes().all(allowed) || tag.starts_with(['.', '-']) {
        return Err(
            "a tag is made of letters, digits, '_', '.' and '-', and begins with none of the last two",
        );
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    const BAD: &str = "what precedes the first / is not a registry's host name";
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err("the registry's port is not a number");
    }
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(BAD),
        };
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match host.split('.').all(label) {
        true => Ok(()),
        false => Err(BAD),
    }
}

/// `path-component ['/' path-component]*`, each `alnum [separator alnum]*`, with the separators `.`, `_`, `__`, `-…`.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("a repository is written in lower case");
    }
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a part of it is empty");
        }
        let separators = component.split(|character: char| u8::try_from(character).is_ok_and(word));
        let mut separators = separators.filter(|separator| !separator.is_empty());
        let fine = |separator: &str| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        };
        if !separators.all(fine) {
            return Err(
                "a repository is made of lower-case letters and digits, with '.', '_', '__' or '-' between",
            );
        }
        let ends = [component.bytes().next(), component.bytes().next_back()];
        if !ends.into_iter().flatten().all(word) {
            return Err("a part of it begins or ends with neither a letter nor a digit");
        }
    }
    Ok(())
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    #[test]
    fn names_are_completed_and_shortened_as_docker_does() {
        let digest = format!("sha256:{HEX}");
        let rows = [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            (
                "library/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "index.docker.io/library/a",
                "docker.io/library/a:latest",
                "a:latest",
            ),
            ("me/tool", "docker.io/me/tool:latest", "me/tool:latest"),
            (
                "ghcr.io/me/tool:v1",
                "ghcr.io/me/tool:v1",
                "ghcr.io/me/tool:v1",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "localhost:5000/a",
                "localhost:5000/a:latest",
                "localhost:5000/a:latest",
            ),
            ("host:5000/a/b:x", "host:5000/a/b:x", "host:5000/a/b:x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("UPPER/a", "UPPER/a:latest", "UPPER/a:latest"),
            (
                "a__b/c-d.e---f",
                "docker.io/a__b/c-d.e---f:latest",
                "a__b/c-d.e---f:latest",
            ),
            ("a:A_.-9", "docker.io/library/a:A_.-9", "a:A_.-9"),
            (
                &format!("a@{digest}"),
                &format!("docker.io/library/a@{digest}"),
                &format!("a@{digest}"),
            ),
            (
                &format!("a:b@{digest}"),
                &format!("docker.io/library/a:b@{digest}"),
                &format!("a:b@{digest}"),
            ),
        ];
        for (text, complete, familiar) in rows {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), complete, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused_with_a_reason() {
        let rows = [
            ("", "empty"),
            (HEX, "an ID"),
            ("Busybox", "lower case"),
            ("a:", "tag is empty"),
            ("a:.b", "a tag is made of"),
            ("a:b c", "a tag is made of"),
            ("a/", "empty"),
            ("/a", "empty"),
            ("a//b", "empty"),
            ("-a", "begins or ends"),
            ("a-", "begins or ends"),
            ("a___b", "lower-case letters"),
            ("a..b", "lower-case letters"),
            ("a b", "lower-case letters"),
            ("ä", "lower-case letters"),
            ("a@sha256:abc", "follows the @"),
            ("a@b@c", "follows the @"),
            ("-x.y/a", "host name"),
            ("x..y/a", "host name"),
            ("[::g]:1/a", "host name"),
            ("host:port/a", "port"),
            ("../a", "host name"),
            ("a\n", "lower-case letters"),
            (&"a".repeat(256), "255"),
            (&format!("a:{}", "b".repeat(129)), "128"),
        ];
        for (text, reason) in rows {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn whatever_is_parsed_is_read_back_from_both_of_its_forms() {
        let alphabet: Vec<char> = "aaabbZ09.:/@_--é [\n".chars().collect();
        let mut random = Random::new(7);
        let mut parsed = 0;
        for _ in 0..200_000 {
            let length = random.below(12);
            let mut text: String = (0..length)
                .map(|_| alphabet[random.below(alphabet.len())])
                .collect();
            if random.below(8) == 0 {
                text.push_str(&format!("@sha256:{HEX}"));
            }
            let Ok(reference) = text.parse::<Reference>() else {
                continue;
            };
            parsed += 1;
            let complete = reference.to_string();
            assert_eq!(complete.parse().as_ref(), Ok(&reference), "{text:?}");
            let familiar = reference.familiar();
            assert_eq!(familiar.parse().as_ref(), Ok(&reference), "{text:?}");
            assert!(reference.tag().is_some() || reference.digest().is_some());
        }
        assert!(parsed > 5000, "only {parsed} were names at all");
    }
}
