//! The host that the tests under KVM run on is one: another hypervisor than ours boots our kernel on its `/dev/kvm`.

use std::{fs, process::Command, time::Duration};

use end_to_end::{Root, accelerator, artifact, need, wait_until};

/// How long a machine may take to boot and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Elsewhere it is nobody's business.
fn is_kvm() -> Result<(), String> {
    match accelerator().as_str() {
        "kvm" => Ok(()),
        other => Err(format!("{other} needs no KVM")),
    }
}

#[test]
fn linux_boots_on_its_kvm_in_another_hypervisor() {
    need!(is_kvm());
    let root = Root::new();
    let log = root.files().join("log");
    let machine = Command::new("qemu-system-x86_64")
        .args(["-machine", "microvm,x-option-roms=off,acpi=off"])
        .args(["-accel", "kvm", "-cpu", "host", "-m", "128"])
        .arg("-kernel")
        .arg(artifact("share/vmm/kernels/default/vmlinux", "make image"))
        .arg("-initrd")
        .arg(root.initfs_of("hostile-init"))
        .args(["-append", "console=ttyS0 reboot=t hostile=reboot"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial"])
        .arg(format!("file:{}", log.display()))
        .spawn();
    let mut machine = machine.expect("qemu-system-x86_64 starts");
    let ended = wait_until(PATIENCE, || machine.try_wait().expect("a child"));
    machine.kill().expect("a child");
    machine.wait().expect("a child");
    let log = fs::read_to_string(&log).unwrap_or_default();
    let status = ended.unwrap_or_else(|| panic!("expected an end, got\n{log}"));
    assert!(status.success(), "{status}\n{log}");
    for words in [
        "Hypervisor detected: KVM",
        "Run /init",
        "reboot: Restarting system",
    ] {
        assert!(log.contains(words), "{words}\n{log}");
    }
}
