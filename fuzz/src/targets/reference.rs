//! Names and digests of images, as users, archives and annotations write them.

use imagebuilder::{oci::Digest, reference::Reference};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Reference>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(reference) => {
            // However it is written, it means the same.
            for form in [reference.to_string(), reference.familiar()] {
                assert_eq!(form.parse().as_ref(), Ok(&reference), "{form}");
            }
        }
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
}
