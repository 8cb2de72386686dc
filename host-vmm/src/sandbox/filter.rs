//! Filters of system calls (`seccomp(2)`): tables of what is allowed, compiled.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

/// A system call that is allowed, with the reason and, for some, what its arguments have to be.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Its number.
    pub call: libc::c_long,
    /// What it is needed for.
    pub why: &'static str,
    /// Any of these has to hold, with all of its conditions; if there is none, all arguments will do.
    pub only: &'static [&'static [Argument]],
}

/// A condition on an argument's low 32 bits.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Which, from 0.
    pub index: u8,
    /// Only these bits count.
    pub mask: u64,
    /// What they have to be.
    pub value: u64,
}

impl Argument {
    /// `mmap(2)`: memory of the process's own, which counts against what it may have at most. Shared memory does not, be it
    /// without a file.
    pub const PRIVATE_MEMORY: Self = Self {
        index: 3,
        mask: MAP_TYPE,
        value: libc::MAP_PRIVATE.unsigned_abs() as u64,
    };

    /// `mmap(2)`: memory that a descriptor has.
    pub const MEMORY_OF_FILE: Self = Self {
        index: 3,
        mask: MAP_TYPE | libc::MAP_ANONYMOUS.unsigned_abs() as u64,
        value: libc::MAP_SHARED.unsigned_abs() as u64,
    };
}

/// Whether memory is shared.
const MAP_TYPE: u64 = libc::MAP_TYPE.unsigned_abs() as u64;

/// A compiled filter: two of them, of which a process enters the one that its host has.
#[derive(Clone, Debug)]
pub struct Program {
    /// Whoever listens decides what happens to who makes a forbidden call.
    pub(super) asks: BpfProgram,
    /// A forbidden call kills the process.
    pub(super) kills: BpfProgram,
}

/// Compiles a table. What is not in it kills the process, or tells whoever listens.
///
/// # Errors
/// The table cannot be a filter.
pub fn compile(table: &[Allowed]) -> Result<Program, seccompiler::Error> {
    Ok(Program::new(compile_with(table, FORBIDDEN)?))
}

/// Compiles a table for one that is entered with [`enter_plain`] on top of another. What is not in it is not done, and
/// raises `SIGSYS` in the thread that asks for it.
///
/// # Errors
/// The table cannot be a filter.
pub fn compile_trapping(table: &[Allowed]) -> Result<BpfProgram, seccompiler::Error> {
    compile_with(table, SeccompAction::Trap)
}

fn compile_with(
    table: &[Allowed],
    forbidden: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in table {
        let list = rules.entry(allowed.call).or_default();
        for alternative in allowed.only {
            let conditions = alternative
                .iter()
                .map(|argument| {
                    SeccompCondition::new(
                        argument.index,
                        SeccompCmpArgLen::Dword,
                        SeccompCmpOp::MaskedEq(argument.mask),
                        argument.value,
                    )
                })
                .collect::<Result<_, _>>()?;
            list.push(SeccompRule::new(conditions)?);
        }
    }
    let filter = SeccompFilter::new(
        rules,
        forbidden,
        SeccompAction::Allow,
        seccompiler::TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// Forbids `calls` and nothing else.
///
/// # Errors
/// It cannot be a filter.
pub(super) fn all_but(calls: &[libc::c_long]) -> Result<Program, seccompiler::Error> {
    Ok(Program::new(refusing(calls, FORBIDDEN)?))
}

/// Keeps a process in its session: it may not make another. To be entered before any other filter.
///
/// # Errors
/// It cannot be a filter.
pub(super) fn session() -> Result<BpfProgram, seccompiler::Error> {
    refusing(
        &[libc::SYS_setsid],
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    )
}

fn refusing(calls: &[i64], action: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = seccompiler::TargetArch::x86_64;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()?)
}

/// Stands in a filter for what happens to who makes a forbidden call: an action that is not used otherwise.
pub(super) const FORBIDDEN: SeccompAction = SeccompAction::Trace(0);

impl Program {
    /// Both filters from one in which [`FORBIDDEN`] stands.
    pub(super) fn new(program: BpfProgram) -> Self {
        let with = |action: u32| {
            let mut program = program.clone();
            for instruction in &mut program {
                if is_forbidden(instruction) {
                    instruction.k = action;
                }
            }
            program
        };
        Self {
            asks: with(libc::SECCOMP_RET_USER_NOTIF),
            kills: with(libc::SECCOMP_RET_KILL_PROCESS),
        }
    }
}

fn is_forbidden(instruction: &sock_filter) -> bool {
    const RETURN: u16 = 0x06;
    instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE
}

/// Confines this process to `program` for good. Gives the descriptor that tells of forbidden calls, unless this host has
/// none to give: older than 5.0, or somebody listens to this process already. Allocates nothing.
///
/// # Errors
/// Those of `seccomp(2)`.
pub fn enter(program: &Program) -> io::Result<Option<OwnedFd>> {
    if let Ok(listener) = set(&program.asks, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)
        && listener > 0
    {
        // SAFETY: the kernel has just made it for us.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }));
    }
    set(&program.kills, 0).map(|_| None)
}

/// Confines this process to `program` for good. Allocates nothing.
///
/// # Errors
/// Those of `seccomp(2)`.
pub fn enter_plain(program: &BpfProgram) -> io::Result<()> {
    set(program, 0).map(|_| ())
}

fn set(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<RawFd> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        // The kernel does not write to it.
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the kernel reads the filter, which is as long as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    match RawFd::try_from(result) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}
