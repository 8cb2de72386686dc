//! What a machine's processors say of themselves (`CPUID`): what KVM can do for a guest on this host, less what would only be
//! more for it to attack, and with the place of each processor among the others.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaves, which both Intel's and AMD's manuals describe.
const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const POWER: u32 = 6;
const COUNTERS: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_2: u32 = 0x1f;
const SGX: u32 = 0x12;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;
const SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const SEV: u32 = 0x8000_001f;
const AMD_COUNTERS: u32 = 0x8000_0022;
const AMD_TOPOLOGY_2: u32 = 0x8000_0026;

/// Leaves of which a guest sees nothing: counters of events, machines within machines, encrypted memory.
const HIDDEN: [u32; 5] = [COUNTERS, SGX, SVM, SEV, AMD_COUNTERS];

/// Bits of [`FEATURES`]' `ecx`.
const DEBUG_STORE: u32 = 1 << 2;
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// Of its `edx`: there are several processors in the package.
const SEVERAL: u32 = 1 << 28;

/// Bits of [`EXTENDED_FEATURES`]' `ecx`.
const AMD_VM: u32 = 1 << 2;
const AMD_CORE_COUNTERS: u32 = 1 << 23;
const AMD_NB_COUNTERS: u32 = 1 << 24;
const AMD_LLC_COUNTERS: u32 = 1 << 28;
const AMD_EXTENDED_TOPOLOGY: u32 = 1 << 22;

/// Of [`POWER`]'s `eax`: the APIC's timer runs always.
const ARAT: u32 = 1 << 2;

/// What processor `cpu` of `cpus` says, where KVM supports so much. `deadline`: its APIC has a timer that goes by the time
/// stamp counter, which KVM does not list.
pub fn of(supported: &CpuId, cpu: u32, cpus: u32, deadline: bool) -> Vec<kvm_cpuid_entry2> {
    // As many bits as the number of the last processor has.
    let bits = u32::BITS - (cpus - 1).leading_zeros();
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_2 | AMD_TOPOLOGY_2))
        .collect();
    for entry in &mut entries {
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0xffff | cpus.min(255) << 16 | cpu << 24;
                entry.ecx &= !(DEBUG_STORE | MONITOR | VMX | PDCM | TSC_DEADLINE);
                entry.ecx |= X2APIC | HYPERVISOR;
                if deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.edx &= !SEVERAL;
                if cpus > 1 {
                    entry.edx |= SEVERAL;
                }
            }
            // How many share a cache, and how many there are in the package: the upper bits of `eax`.
            CACHES | AMD_CACHES if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { cpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14;
                if entry.function == CACHES {
                    entry.eax |= (cpus - 1).min(0x3f) << 26;
                }
            }
            POWER => entry.eax |= ARAT,
            EXTENDED_FEATURES => {
                entry.ecx &= !(AMD_VM | AMD_CORE_COUNTERS | AMD_NB_COUNTERS | AMD_LLC_COUNTERS);
                if cpus == 1 {
                    entry.ecx &= !AMD_EXTENDED_TOPOLOGY;
                }
            }
            SIZES => entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (cpus - 1).min(0xff),
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (cpu, cpu & 0xff, 0),
            function if HIDDEN.contains(&function) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
    entries.extend(topology(cpu, cpus, bits));
    entries
}

/// Leaf 0xb: no threads share a core, and all cores are in one package.
fn topology(cpu: u32, cpus: u32, bits: u32) -> [kvm_cpuid_entry2; 2] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: cpu,
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, bits, cpus, CORES)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn all_ones(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = entries
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index))
            .collect();
        assert_eq!(found.len(), 1, "{function:#x} {index}");
        *found[0]
    }

    #[test]
    fn machines_within_machines_and_counters_are_not_there() {
        let functions = [
            FEATURES,
            POWER,
            COUNTERS,
            TOPOLOGY,
            TOPOLOGY_2,
            EXTENDED_FEATURES,
            SVM,
            AMD_COUNTERS,
        ];
        let supported = CpuId::from_entries(&functions.map(all_ones)).unwrap();
        let entries = of(&supported, 0, 1, true);
        assert_eq!(find(&entries, FEATURES, 0).ecx & (VMX | MONITOR | PDCM), 0);
        assert_eq!(
            find(&entries, EXTENDED_FEATURES, 0).ecx & (AMD_VM | AMD_CORE_COUNTERS),
            0
        );
        for hidden in [COUNTERS, SVM, AMD_COUNTERS] {
            let entry = find(&entries, hidden, 0);
            assert_eq!([entry.eax, entry.ebx, entry.ecx, entry.edx], [0; 4]);
        }
        assert!(!entries.iter().any(|entry| entry.function == TOPOLOGY_2));
    }

    #[test]
    fn each_processor_knows_its_place() {
        let functions = [FEATURES, SIZES, AMD_TOPOLOGY].map(all_ones);
        let supported = CpuId::from_entries(&functions).unwrap();
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)] {
            let cpu = cpus - 1;
            let entries = of(&supported, cpu, cpus, false);
            let features = find(&entries, FEATURES, 0);
            assert_eq!((features.ebx >> 24, features.ebx >> 16 & 0xff), (cpu, cpus));
            assert_eq!(features.edx & SEVERAL != 0, cpus > 1);
            assert_eq!(features.ecx & TSC_DEADLINE, 0);
            let cores = find(&entries, TOPOLOGY, 1);
            assert_eq!((cores.eax, cores.ebx, cores.edx), (bits, cpus, cpu));
            assert_eq!(find(&entries, SIZES, 0).ecx & 0xf0ff, bits << 12 | cpu);
            assert_eq!(find(&entries, AMD_TOPOLOGY, 0).eax, cpu);
        }
    }
}
