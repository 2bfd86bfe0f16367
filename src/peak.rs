//! The peak of the memory of a test, in a process of its own: other tests run at the same time in this one. For tests.

use std::process::Command;

/// Set in the process whose peak is measured.
const VARIABLE: &str = "NRI_UNPACK_MEASURES_PEAK";

/// What that process prints before its peak in KiB.
const PRINTED: &str = "peak of the resident memory: ";

/// Does the work in a process of its own, and returns the peak of its resident memory in MiB. That process is this
/// program with the one test: `module` is the test's `module_path!()`, and `test` its name.
pub(crate) fn of(module: &str, test: &str, work: impl FnOnce()) -> u64 {
    if std::env::var_os(VARIABLE).is_some() {
        work();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        println!("\n{PRINTED}{}", peak.unwrap().trim());
        std::process::exit(0);
    }
    let (_crate, module) = module.split_once("::").unwrap();
    let measured = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&measured.stdout);
    let peak = text.lines().find_map(|line| line.strip_prefix(PRINTED));
    let peak = peak.and_then(|peak| peak.split(' ').next()?.parse::<u64>().ok());
    peak.unwrap_or_else(|| panic!("{module}::{test} did not end: {measured:?}")) >> 10
}
