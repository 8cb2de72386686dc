//! What programs may do with the memory of their container.

use end_to_end::Root;

/// Where [`program`] is loaded.
const BASE: u32 = 0x40_0000;

/// Flags of a segment.
const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

/// The smallest program that exits with 7. All of it is one segment, which is mapped as `flags` say.
fn program(flags: u32) -> Vec<u8> {
    // mov eax, 60; mov edi, 7; syscall
    const CODE: [u8; 12] = [0xb8, 60, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05];
    const HEADERS: u32 = 64 + 56;
    let size = u64::from(HEADERS) + CODE.len() as u64;
    let base = u64::from(BASE);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64, in version 1.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for number in [u64::from(BASE + HEADERS), 64, 0] {
        elf.extend(number.to_le_bytes());
    }
    // No flags; sizes of this header, of one of a segment, of which there is one, and no sections.
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1_u32, flags].map(u32::to_le_bytes).concat());
    for number in [0, base, base, size, size, 4096] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

#[test]
fn data_is_not_executed() {
    let root = Root::new();
    for (name, flags) in [("code", READ | EXECUTE), ("data", READ | WRITE)] {
        std::fs::write(root.files().join(name), program(flags)).expect("a program");
    }
    let layout = root.layout(
        "name programs:1\ndirectory /bin 755\nfile /bin/code 755 code\nfile /bin/data 755 data\n",
    );
    root.vmm(["image", "load"]).arg(layout).finish().code(0);
    let run = |name| root.run(["--rm", "programs:1", name]).finish();
    run("/bin/code").code(7);
    run("/bin/data").code(128 + 11);
}

#[test]
fn heaps_and_stacks_are_not_executable() {
    let maps = Root::new().sh("cat /proc/self/maps").finish();
    let text = maps.code(0).text();
    maps.check(
        text.contains("[heap]") && text.contains("[stack]"),
        "a heap and a stack",
    );
    let both = |line: &&str| line.contains(" rwx");
    maps.check(
        !text.lines().any(|line| both(&line)),
        "nothing that is written and executed",
    );
}

#[test]
fn memory_is_somewhere_else_each_time() {
    let root = Root::new();
    // The heap, the buffer that it has mapped behind that, and the stack.
    let addresses = || {
        let maps = root.sh("cat /proc/self/maps").finish();
        let text = maps.code(0).text();
        let mut lines = text.lines().skip_while(|line| !line.ends_with("[heap]"));
        let (heap, buffer) = (lines.next(), lines.next());
        let stack = lines.find(|line| line.ends_with("[stack]"));
        let begin = |line: Option<&str>| {
            let begin = line.and_then(|line| line.split('-').next());
            begin.map(str::to_owned).expect("an area of memory")
        };
        [begin(heap), begin(buffer), begin(stack)]
    };
    for (one, other) in addresses().iter().zip(&addresses()) {
        assert_ne!(one, other);
    }
}

/// Of the kernel that is a program, each page in such a mess is a mapping, of which the host allows 65,530 for a process.
#[test]
fn a_process_may_use_a_gibibyte_in_any_order() {
    let root = Root::new();
    let image = root.load_tools();
    let run = root.run(["--rm", "-m", "2g", image, "scatter", "1024"]);
    run.finish().code(0).stderr("").stdout("262144 pages\n");
}
