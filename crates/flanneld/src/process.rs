//! What this process takes of the machine.

/// What `/proc/self` says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    /// Processor time, in user and kernel mode.
    pub cpu_seconds: f64,
    /// Memory that is in RAM.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
}

/// `USER_HZ`, which is 100 on every architecture that flannel runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Process {
    /// This process; none where `/proc` cannot be read.
    pub fn read() -> Option<Process> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
        parse(&read("stat")?, &read("status")?)
    }
}

/// Reads fields 14 and 15 of proc_pid_stat(5), of which the second, the program's name, may hold
/// blanks; and lines of proc_pid_status(5).
fn parse(stat: &str, status: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u32>().ok().map(f64::from);
    let line = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Process {
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        resident_bytes: line("VmRSS:")? * 1024,
        threads: line("Threads:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_fields_are_read_whatever_the_programs_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 3 0 100";
        let status = "Name:\ta ) b\nVmRSS:\t    4000 kB\nThreads:\t3\n";
        let process = Process { cpu_seconds: 2.0, resident_bytes: 4_096_000, threads: 3 };
        assert_eq!(parse(stat, status), Some(process));
        assert_eq!(parse("7 (short) S 1", status), None);
        assert!(Process::read().is_some_and(|process| process.threads > 0));
    }
}
