//! Where `evil-machine` is linked: it is a kernel, and machines take those at the addresses that they ask for.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Everything above the first MiB; its entry, which a note names by a number, at a place that is known beforehand.
    for argument in [
        "-Ttext-segment=0x400000",
        "--section-start=.pvh=0x800000",
        "--undefined=evil_pvh",
    ] {
        println!("cargo::rustc-link-arg-bin=evil-machine=-Wl,{argument}");
    }
}
