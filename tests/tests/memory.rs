//! What programs may do with the memory of their container.

use end_to_end::Root;

/// Of the kernel that is a program, each page in such a mess is a mapping, of which the host allows 65,530 for a process.
#[test]
fn a_process_may_use_a_gibibyte_in_any_order() {
    let root = Root::new();
    let image = root.load_tools();
    let run = root.run(["--rm", "-m", "2g", image, "scatter", "1024"]);
    run.finish().code(0).stderr("").stdout("262144 pages\n");
}
