//! What a server process has used so far, from `/proc`.

use anyhow::Context as _;
use serde::Serialize;

/// Kernel ticks per second as `/proc` reports them: fixed by Linux' user-space ABI on every architecture we build for.
const TICKS: f64 = 100.0;

/// A reading of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// User and system time of all threads.
    pub(crate) cpu_seconds: f64,
    /// Resident memory now.
    pub(crate) rss_bytes: u64,
    /// The most it ever was.
    pub(crate) peak_rss_bytes: u64,
}

/// Reads a process; an error names it.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| {
            format!("--server-pid {pid}: cannot read {path}; is the server still running?")
        })
    };
    parse(&read("stat")?, &read("status")?)
        .with_context(|| format!("--server-pid {pid}: unexpected format of /proc"))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The command may hold spaces and parentheses; fields count from behind the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(
            line.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()?
                * 1024,
        )
    };
    Some(Usage {
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS,
        rss_bytes: bytes("VmRSS:")?,
        peak_rss_bytes: bytes("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn our_own_process_can_be_read() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0 && usage.peak_rss_bytes >= usage.rss_bytes);
    }

    #[test]
    fn a_command_with_parentheses_is_no_trouble() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let usage = parse(stat, "VmHWM:\t  20 kB\nVmRSS:\t  10 kB\n").unwrap();
        assert_eq!(
            usage,
            Usage {
                cpu_seconds: 2.0,
                rss_bytes: 10_240,
                peak_rss_bytes: 20_480
            }
        );
    }
}
