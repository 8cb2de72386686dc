//! Filters of system calls (`seccomp(2)`): tables of what is allowed, compiled.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A system call that is allowed, with the reason and, for some, what an argument has to be.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Its number.
    pub call: libc::c_long,
    /// What it is needed for.
    pub why: &'static str,
    /// Each means the call if it holds; none means any call.
    pub only: &'static [Argument],
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

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Program(pub(super) BpfProgram);

/// Compiles a table. What is not in it kills the process.
///
/// # Errors
/// The table cannot be a filter.
pub fn compile(table: &[Allowed]) -> Result<Program, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in table {
        let list = rules.entry(allowed.call).or_default();
        for argument in allowed.only {
            let condition = SeccompCondition::new(
                argument.index,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(argument.mask),
                argument.value,
            )?;
            list.push(SeccompRule::new(vec![condition])?);
        }
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        seccompiler::TargetArch::x86_64,
    )?;
    Ok(Program(filter.try_into()?))
}

/// Confines this process to `program` for good. Allocates nothing.
///
/// # Errors
/// Those of `seccomp(2)`.
pub fn enter(program: &Program) -> io::Result<()> {
    seccompiler::apply_filter(&program.0).map_err(|_| io::Error::last_os_error())
}
