//! The least programs that can be PID 1, for machines in which nothing else is to be measured.
//!
//! They are assembled into this program and written out as an ELF file of one segment, behind which there is room for
//! what they read. The kernel gives them the console as descriptor 1.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use imagebuilder::initfs;

/// How often [`Program::Count`] makes a system call, and a process.
pub const SYSTEM_CALLS: f64 = 10_000.0;
pub const PROCESSES: f64 = 100.0;

/// What a machine has for PID 1.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// Restarts the machine at once.
    Restart,
    /// Reads the time stamp counter as its first act, and again after `getpid` was called [`SYSTEM_CALLS`] times and after
    /// [`PROCESSES`] children were forked, ended and were waited for. Prints the three readings, in hexadecimal digits.
    Count,
    /// Puts a line into the kernel's log, prints what the time stamp counter was then, and then the whole log.
    Log,
}

std::arch::global_asm!(
    ".pushsection .rodata.benchmarks, \"a\", @progbits",
    ".global benchmarks_begin, benchmarks_restart, benchmarks_count, benchmarks_log, benchmarks_end",
    "benchmarks_begin:",
    //
    "benchmarks_restart:",
    "mov edi, 1", // ioctl(1, TCSBRK, 1): until the console has printed everything
    "mov esi, 0x5409",
    "mov edx, 1",
    "mov eax, 16",
    "syscall",
    "mov edi, 0xfee1dead", // reboot(…, RB_AUTOBOOT)
    "mov esi, 672274793",
    "mov edx, 0x1234567",
    "mov eax, 169",
    "syscall",
    "hlt",
    //
    "benchmarks_count:",
    "call 3f",
    "mov r12, rax",
    "mov ebx, 10000",
    "2: mov eax, 39", // getpid()
    "syscall",
    "dec ebx",
    "jnz 2b",
    "call 3f",
    "mov r13, rax",
    "mov ebx, 100",
    "2: mov eax, 57", // fork()
    "syscall",
    "test eax, eax",
    "jnz 5f",
    "mov eax, 60", // exit(0)
    "xor edi, edi",
    "syscall",
    "5: mov rdi, -1", // wait4(-1, 0, 0, 0)
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 61",
    "syscall",
    "dec ebx",
    "jnz 2b",
    "call 3f",
    "mov rbx, rax",
    "mov rax, r12",
    "call 4f",
    "mov rax, r13",
    "call 4f",
    "mov rax, rbx",
    "call 4f",
    "jmp benchmarks_restart",
    //
    "benchmarks_log:",
    "mov eax, 0x676f6c", // mknod("log", S_IFCHR | 0600, 1:11)
    "push rax",
    "mov rdi, rsp",
    "mov esi, 0x2180",
    "mov edx, 0x10b",
    "mov eax, 133",
    "syscall",
    "mov rdi, rsp", // open("log", O_WRONLY)
    "mov esi, 1",
    "mov eax, 2",
    "syscall",
    "mov ebx, eax",
    "call 3f",
    "mov r12, rax",
    "mov byte ptr [rsp + 3], 10",
    "mov edi, ebx", // write(…, "log\n", 4)
    "mov rsi, rsp",
    "mov edx, 4",
    "mov eax, 1",
    "syscall",
    "mov rax, r12",
    "call 4f",
    "mov edi, 3", // syslog(SYSLOG_ACTION_READ_ALL, …)
    "mov esi, {buffer}",
    "mov edx, {buffer_size}",
    "mov eax, 103",
    "syscall",
    "mov ebx, eax",
    "mov r12d, {buffer}",
    "2: test ebx, ebx",
    "jle benchmarks_restart",
    "mov edi, 1", // write(1, …)
    "mov rsi, r12",
    "mov edx, ebx",
    "mov eax, 1",
    "syscall",
    "add r12, rax",
    "sub ebx, eax",
    "jmp 2b",
    // The time stamp counter in rax.
    "3: rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "ret",
    // Prints rax as 16 hexadecimal digits and a line feed.
    "4: sub rsp, 24",
    "mov byte ptr [rsp + 16], 10",
    "mov ecx, 16",
    "2: mov edx, eax",
    "and edx, 15",
    "cmp edx, 10",
    "jb 5f",
    "add edx, 39", // from behind 9 to a
    "5: add edx, 48", // 0
    "mov [rsp + rcx - 1], dl",
    "shr rax, 4",
    "dec ecx",
    "jnz 2b",
    "mov edi, 1", // write(1, …, 17)
    "mov rsi, rsp",
    "mov edx, 17",
    "mov eax, 1",
    "syscall",
    "add rsp, 24",
    "ret",
    "benchmarks_end:",
    ".popsection",
    buffer = const BUFFER,
    buffer_size = const BUFFER_SIZE,
);

unsafe extern "C" {
    static benchmarks_begin: u8;
    static benchmarks_restart: u8;
    static benchmarks_count: u8;
    static benchmarks_log: u8;
    static benchmarks_end: u8;
}

/// Where the file lies in memory, and where there is room behind it.
const BASE: u64 = 0x40_0000;
const BUFFER: u64 = 0x50_0000;
const BUFFER_SIZE: u64 = 4 << 20;

impl Program {
    /// Writes an initfs with this program and nothing else to `folder`, and gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn initfs(self, folder: &Path) -> Result<std::path::PathBuf> {
        let program = folder.join(format!("{self:?}"));
        let path = program.with_extension("cpio");
        fs::write(&program, self.elf())
            .with_context(|| format!("Cannot write {}", program.display()))?;
        initfs::build(&program, &path)?;
        Ok(path)
    }

    /// An ELF-64 executable of one segment, headers included.
    fn elf(self) -> Vec<u8> {
        const HEADERS: u64 = 64 + 56;
        let begin = &raw const benchmarks_begin;
        let entry = match self {
            Self::Restart => &raw const benchmarks_restart,
            Self::Count => &raw const benchmarks_count,
            Self::Log => &raw const benchmarks_log,
        };
        let end = &raw const benchmarks_end;
        let entry = BASE + HEADERS + (entry.addr() - begin.addr()) as u64;
        // SAFETY: both symbols are in one section of this program, which the assembler filled between them with
        // initialized bytes that nobody writes.
        let code = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) };
        let file_size = HEADERS + code.len() as u64;
        let memory_size = BUFFER + BUFFER_SIZE - BASE;

        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        let (executable, x86_64, version) = (2_u16, 62_u16, 1_u32);
        elf.extend(executable.to_le_bytes());
        elf.extend(x86_64.to_le_bytes());
        elf.extend(version.to_le_bytes());
        let (program_headers, section_headers) = (64_u64, 0_u64);
        for field in [entry, program_headers, section_headers] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(0_u32.to_le_bytes());
        // Sizes and numbers of headers: of this one, of program headers, of section headers.
        for field in [64_u16, 56, 1, 0, 0, 0] {
            elf.extend(field.to_le_bytes());
        }
        let (load, readable_writable_executable) = (1_u32, 7_u32);
        elf.extend(load.to_le_bytes());
        elf.extend(readable_writable_executable.to_le_bytes());
        for field in [0, BASE, BASE, file_size, memory_size, 4096] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(code);
        elf
    }
}
