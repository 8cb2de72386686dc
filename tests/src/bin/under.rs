//! Runs a program on a host that permits less: `under RULE… -- PROGRAM [ARGUMENT]…`
//!
//! A rule is one of these. The first that are named are the first that are put on.
//!
//! - the path of a container runtime's profile of system calls (the OCI's and Docker's format), for a container that
//!   has no capabilities;
//! - `no-namespaces`: nobody may make any, as by Docker's own profile;
//! - `no-filters`: nobody may have a filter of system calls.

use std::{collections::BTreeMap, fs, os::unix::process::CommandExt, process::Command};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde_json::Value;

/// Where the numbers of system calls are.
const NUMBERS: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";

/// The flags of `clone(2)` that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn main() {
    let mut words = std::env::args().skip(1);
    let numbers = numbers();
    for rule in words.by_ref().take_while(|word| word != "--") {
        let filters = match rule.as_str() {
            "no-namespaces" => no_namespaces(&numbers),
            "no-filters" => no_filters(&numbers),
            path => profile(path, &numbers),
        };
        for filter in &filters {
            seccompiler::apply_filter(filter).expect("a filter of system calls");
        }
    }
    let program = words.next().expect("a program behind --");
    let error = Command::new(&program).args(words).exec();
    panic!("{program}: {error}");
}

/// The numbers of system calls, by their names.
fn numbers() -> BTreeMap<String, i64> {
    let text = fs::read_to_string(NUMBERS).expect("the C library's headers");
    let number = |line: &str| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(number).collect()
}

fn compile(rules: Rules, otherwise: SeccompAction, then: SeccompAction) -> BpfProgram {
    let filter = SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64);
    filter
        .and_then(|filter| filter.try_into())
        .expect("rules that make a filter")
}

fn refuse(rules: Rules, errno: u64) -> BpfProgram {
    let errno = u32::try_from(errno).expect("an error's number");
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(errno))
}

fn no_namespaces(numbers: &BTreeMap<String, i64>) -> Vec<BpfProgram> {
    let any = |names: &[&str]| -> Rules {
        let rules = names.iter().map(|name| (numbers[*name], Vec::new()));
        rules.collect()
    };
    let mut rules = any(&["unshare", "setns", "mount", "umount2", "pivot_root"]);
    // Each of the flags.
    let flags = (0..32)
        .map(|bit| 1 << bit)
        .filter(|flag| NAMESPACES & flag != 0);
    let has = |flag| {
        let operator = SeccompCmpOp::MaskedEq(flag);
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, operator, flag);
        SeccompRule::new(vec![condition.expect("a condition")]).expect("a rule")
    };
    rules.insert(numbers["clone"], flags.map(has).collect());
    // Its flags are in memory, where no filter looks.
    let clone3 = any(&["clone3"]);
    vec![refuse(rules, 1), refuse(clone3, 38)]
}

fn no_filters(numbers: &BTreeMap<String, i64>) -> Vec<BpfProgram> {
    /// Of `prctl(2)`.
    const SET_SECCOMP: u64 = 22;
    let condition =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SET_SECCOMP);
    let rule = SeccompRule::new(vec![condition.expect("a condition")]).expect("a rule");
    let rules = [
        (numbers["seccomp"], Vec::new()),
        (numbers["prctl"], vec![rule]),
    ];
    vec![refuse(rules.into(), 1)]
}

/// What the profile allows, and behind that what it forbids to whom has no capabilities.
fn profile(path: &str, numbers: &BTreeMap<String, i64>) -> Vec<BpfProgram> {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let profile: Value = serde_json::from_slice(&text).expect("a profile as JSON");
    let mut allowed = Rules::new();
    let mut refused: BTreeMap<u64, Rules> = BTreeMap::new();
    for entry in profile["syscalls"].as_array().expect("system calls") {
        let conditions = &entry["includes"];
        let arches = conditions["arches"].as_array();
        let is_ours = arches.is_none_or(|arches| arches.iter().any(|arch| arch == "amd64"));
        if !is_ours || conditions["caps"].is_array() {
            continue;
        }
        let rules = match entry["action"].as_str() {
            Some("SCMP_ACT_ALLOW") => &mut allowed,
            Some("SCMP_ACT_ERRNO") => refused.entry(errno(&entry["errnoRet"])).or_default(),
            other => panic!("{path}: {other:?}"),
        };
        let names = entry["names"].as_array().expect("names").iter();
        // Those of other architectures have no number here.
        for number in names.filter_map(|name| numbers.get(name.as_str()?)) {
            let of_call = rules.entry(*number).or_default();
            let arguments = entry["args"].as_array().filter(|list| !list.is_empty());
            of_call.extend(arguments.map(|list| rule(list)));
        }
    }
    let otherwise = SeccompAction::Errno(
        u32::try_from(errno(&profile["defaultErrnoRet"])).expect("an error's number"),
    );
    let allow = compile(allowed, otherwise, SeccompAction::Allow);
    let refuse = refused
        .into_iter()
        .map(|(errno, rules)| refuse(rules, errno));
    // The first still lets the others be put on.
    std::iter::once(allow).chain(refuse).collect()
}

fn errno(value: &Value) -> u64 {
    value.as_u64().unwrap_or(1)
}

fn rule(arguments: &[Value]) -> SeccompRule {
    let condition = |argument: &Value| {
        let number = |field: &str| argument[field].as_u64().unwrap_or(0);
        let (operator, value) = match argument["op"].as_str().expect("an operator") {
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, number("value")),
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, number("value")),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(number("value")), number("valueTwo")),
            other => panic!("the operator {other}"),
        };
        let index = u8::try_from(number("index")).expect("an argument's number");
        SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value).expect("a condition")
    };
    SeccompRule::new(arguments.iter().map(condition).collect()).expect("a rule")
}
