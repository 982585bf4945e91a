//! What a process takes, from `/proc` (proc(5)).

use std::collections::BTreeMap;
use std::fs;

/// Memory and threads of a process at one moment.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Resident, in MiB (1024 KiB).
    pub rss: f64,
    /// Proportional: what is shared with other processes counts by its share.
    pub pss: f64,
    /// Not of a file: what cannot be dropped and read again.
    pub anonymous: f64,
    /// How many.
    pub threads: f64,
}

impl Memory {
    /// The process's as it is now.
    pub fn of(pid: u32) -> Memory {
        let rollup = fields(&format!("/proc/{pid}/smaps_rollup"));
        let status = fields(&format!("/proc/{pid}/status"));
        let mib = |name: &str| rollup[name] / 1024.0;
        Memory { rss: mib("Rss"), pss: mib("Pss"), anonymous: mib("Anonymous"), threads: status["Threads"] }
    }
}

/// `Name:  number …` lines.
fn fields(path: &str) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(path).unwrap();
    let field = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(field).collect()
}

/// What a process has used since it started.
pub struct Usage {
    /// Seconds on a processor, by the kernel's clock ticks of 10 ms.
    ticks: f64,
    /// Nanoseconds on a processor by thread, where the kernel says so.
    threads: BTreeMap<String, f64>,
    /// Bytes that it caused to be written to storage.
    written: f64,
}

impl Usage {
    /// The process's until now.
    pub fn of(pid: u32) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The second field, in parentheses, may hold anything.
        let after = stat.rsplit_once(')').unwrap().1;
        let field = |n: usize| after.split_whitespace().nth(n).unwrap().parse::<f64>().unwrap();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().filter_map(|task| {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanoseconds = stat.split_whitespace().next()?.parse().ok()?;
            Some((task.file_name().into_string().ok()?, nanoseconds))
        });
        Usage {
            ticks: (field(11) + field(12)) / 100.0,
            threads: threads.collect(),
            written: fields(&format!("/proc/{pid}/io"))["write_bytes"],
        }
    }

    /// Seconds on a processor since `before`: the finer count, or the coarse
    /// one where threads that have ended make it the larger.
    pub fn cpu_since(&self, before: &Usage) -> f64 {
        let of_thread = |(id, now): (&String, &f64)| now - before.threads.get(id).unwrap_or(&0.0);
        let fine = self.threads.iter().map(of_thread).sum::<f64>() / 1e9;
        // A tick may fall on either side of a moment.
        let coarse = (self.ticks - before.ticks - 0.01).max(0.0);
        fine.max(coarse)
    }

    /// Bytes written since `before`.
    pub fn written_since(&self, before: &Usage) -> f64 {
        self.written - before.written
    }
}
