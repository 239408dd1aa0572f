//! Lines of Linux's that a machine in order does not make it print.

/// Parts of such lines.
const COMPLAINTS: &[&str] = &[
    "WARNING",
    "BUG",
    "Oops",
    "Call Trace",
    "unchecked MSR",
    "Unstable",
    "unstable",
    "general protection",
    "invalid opcode",
    "divide error",
    "Hardware Error",
    "Firmware Bug",
    "nobody cared",
    "lockup",
    "stall",
    "APIC error",
    "MP-BIOS bug",
    "No irq handler",
    "ACPI Error",
    "ACPI BIOS Error",
    "IO-APIC + timer",
    "XSAVE consistency",
    "Misbehaving",
    "CPU feature",
    "not working",
    "failed to",
    "panic",
];
/// Lines of the FPU's set-up that only say what there is.
const FPU: &[&str] = &["Supporting XSAVE", "xstate_offset", "Enabled xstate", "x87 FPU will use", "Probing"];
/// Lines about weaknesses that the processor has by its model.
const WEAKNESS: &str = "admin-guide/hw-vuln";

/// The lines of `text` that complain.
pub fn complaints(text: &str) -> Vec<&str> {
    let bad = |l: &&str| {
        let fpu = l.contains("x86/fpu") && !FPU.iter().any(|f| l.contains(f));
        fpu || COMPLAINTS.iter().any(|c| l.contains(c)) && !l.contains(WEAKNESS)
    };
    text.lines().filter(bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_from_news() {
        let text = "x86/fpu: Supporting XSAVE feature 0x001: 'x87 floating point registers'\n\
            tsc: Marking TSC unstable due to clocksource watchdog\nx86/fpu: No FPU detected\n\
            SRSO: WARNING: See https://kernel.org/doc/html/latest/admin-guide/hw-vuln/srso.html\n\
            unchecked MSR access error: RDMSR from 0x34\nsmpboot: CPU0: QEMU";
        assert_eq!(complaints(text).len(), 3);
    }
}
