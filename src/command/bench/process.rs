//! What processes take: processor time and memory, by what each process is, from /proc.
//!
//! In: the process numbers of a server's postmaster, of the reader, of the broker. Out: processor seconds and peaks of
//! memory between two moments. A server's total is exact to a tick of 10 ms: its postmaster keeps the times of the
//! children that it has waited for. What each kind of its processes took is looked up every [`LOOK_TIME`] while they
//! live, so up to that much of a process that ends is only in the total. Manual: proc(5).

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks.
pub const LOOK_TIME: Duration = Duration::from_millis(50);
/// `USER_HZ`, the unit of times in /proc: 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Whom to look at; what is `None` is not on this machine, or may not be looked at.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The source's postmaster.
    pub source: Option<u32>,
    /// The target's.
    pub target: Option<u32>,
    /// The broker.
    pub broker: Option<u32>,
    /// Walgate or `pg_recvlogical`, as soon as it has begun.
    pub reader: Arc<Mutex<Option<u32>>>,
}

/// What one kind of process took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Taken {
    /// User and system time.
    pub cpu_seconds: f64,
    /// The largest sum of memory at one look: of a server's processes their own, without what they share.
    pub memory_bytes: u64,
}

/// What all of them took. A server's kinds are `walsender`, `backend`, `worker` and `background`.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Of the source, all in all.
    pub source: Option<Taken>,
    /// Of the source's kinds of processes.
    pub source_kinds: BTreeMap<Kind, Taken>,
    /// Of the target, all in all.
    pub target: Option<Taken>,
    /// Of the target's kinds of processes.
    pub target_kinds: BTreeMap<Kind, Taken>,
    /// Of the reader.
    pub reader: Option<Taken>,
    /// Of the broker.
    pub broker: Option<Taken>,
}

/// What a server's process is, as its title says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Sends a slot's stream.
    Walsender,
    /// A client's session.
    Backend,
    /// Applies a subscription.
    Worker,
    /// Checkpoints, background writes and the like.
    Background,
}

impl Kind {
    /// Of a title: `postgres: walsender postgres shop 127.0.0.1(4711) START_REPLICATION`.
    fn of(title: &str) -> Kind {
        const BACKGROUND: [&str; 11] = [
            "checkpointer",
            "background writer",
            "walwriter",
            "autovacuum",
            "launcher",
            "supervisor",
            "stats collector",
            "logger",
            "startup",
            "archiver",
            "io worker",
        ];
        if title.contains("walsender") {
            Kind::Walsender
        } else if BACKGROUND.iter().any(|name| title.contains(name)) {
            Kind::Background
        } else if title.contains("logical replication") || title.contains("pglogical") {
            Kind::Worker
        } else {
            Kind::Backend
        }
    }
}

/// Looks every [`LOOK_TIME`], on a thread of its own.
#[derive(Debug)]
pub struct Sampler {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Usage>>,
}

impl Sampler {
    /// From now on.
    pub fn start(watched: Watched) -> Sampler {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let mut looks = Looks::new(&watched);
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK_TIME);
                looks.look(&watched);
            }
            looks.usage()
        });
        Sampler { is_over, thread: Some(thread) }
    }

    /// Until now.
    pub fn finish(mut self) -> Usage {
        let thread = self.thread.take().expect("it is finished once");
        self.is_over.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        thread.join().unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// What has been seen so far.
struct Looks {
    source: Option<Tree>,
    target: Option<Tree>,
    reader: Single,
    broker: Single,
}

#[derive(Default)]
struct Single {
    at_first: Option<f64>,
    taken: Option<Taken>,
}

/// A server's processes.
struct Tree {
    postmaster: u32,
    total_at_first: f64,
    total: f64,
    processes: BTreeMap<u32, (Kind, f64, f64)>,
    memory_peaks: BTreeMap<Kind, u64>,
    memory_peak: u64,
}

impl Looks {
    fn new(watched: &Watched) -> Looks {
        let mut looks = Looks {
            source: watched.source.and_then(Tree::new),
            target: watched.target.and_then(Tree::new),
            reader: Single::default(),
            broker: Single::default(),
        };
        looks.broker.at_first = watched.broker.and_then(|pid| Some(stat(pid)?.own_seconds));
        looks.look(watched);
        looks
    }

    fn look(&mut self, watched: &Watched) {
        self.source.iter_mut().chain(&mut self.target).for_each(Tree::look);
        let reader = *watched.reader.lock().expect("no holder panics");
        if let Some(pid) = reader {
            // Its life is within the measurement.
            self.reader.at_first = Some(0.0);
            self.reader.look(pid, "VmHWM:");
        }
        if let Some(pid) = watched.broker {
            self.broker.look(pid, "VmRSS:");
        }
    }

    fn usage(self) -> Usage {
        let (source, source_kinds) = self.source.map(Tree::taken).unzip();
        let (target, target_kinds) = self.target.map(Tree::taken).unzip();
        Usage {
            source,
            source_kinds: source_kinds.unwrap_or_default(),
            target,
            target_kinds: target_kinds.unwrap_or_default(),
            reader: self.reader.taken,
            broker: self.broker.taken,
        }
    }
}

impl Single {
    fn look(&mut self, pid: u32, memory: &str) {
        let (Some(at_first), Some(stat)) = (self.at_first, stat(pid)) else { return };
        let taken = self.taken.get_or_insert_default();
        taken.cpu_seconds = stat.own_seconds - at_first;
        taken.memory_bytes = taken.memory_bytes.max(memory_bytes(pid, memory).unwrap_or(0));
    }
}

impl Tree {
    fn new(postmaster: u32) -> Option<Tree> {
        let mut tree = Tree {
            postmaster,
            total_at_first: 0.0,
            total: 0.0,
            processes: BTreeMap::new(),
            memory_peaks: BTreeMap::new(),
            memory_peak: 0,
        };
        stat(postmaster)?;
        tree.look();
        tree.total_at_first = tree.total;
        for (_, at_first, now) in tree.processes.values_mut() {
            *at_first = *now;
        }
        tree.memory_peaks.clear();
        tree.memory_peak = 0;
        Some(tree)
    }

    fn look(&mut self) {
        let Some(own) = stat(self.postmaster) else { return };
        let mut total = own.own_seconds + own.children_seconds;
        let mut memory: BTreeMap<Kind, u64> = BTreeMap::new();
        for pid in children(self.postmaster) {
            let Some(stat) = stat(pid) else { continue };
            total += stat.own_seconds;
            let kind = Kind::of(&title(pid));
            *memory.entry(kind).or_default() += memory_bytes(pid, "RssAnon:").unwrap_or(0);
            // A process may become something else: a session becomes a walsender. It counts as what it was last.
            self.processes
                .entry(pid)
                .and_modify(|(known, _, now)| (*known, *now) = (kind, stat.own_seconds))
                .or_insert((kind, 0.0, stat.own_seconds));
        }
        // A child between its end and its being waited for is in neither: the total never falls.
        self.total = self.total.max(total);
        self.memory_peak = self.memory_peak.max(memory.values().sum());
        for (kind, bytes) in memory {
            let peak = self.memory_peaks.entry(kind).or_default();
            *peak = bytes.max(*peak);
        }
    }

    fn taken(self) -> (Taken, BTreeMap<Kind, Taken>) {
        let mut kinds: BTreeMap<Kind, Taken> = BTreeMap::new();
        for (kind, at_first, now) in self.processes.values() {
            kinds.entry(*kind).or_default().cpu_seconds += now - at_first;
        }
        for (kind, bytes) in self.memory_peaks {
            kinds.entry(kind).or_default().memory_bytes = bytes;
        }
        let cpu_seconds = self.total - self.total_at_first;
        (Taken { cpu_seconds, memory_bytes: self.memory_peak }, kinds)
    }
}

struct Stat {
    own_seconds: f64,
    children_seconds: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    stat_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything; `utime`, `stime`, `cutime` and `cstime` are fields 14 to 17.
fn stat_of(line: &str) -> Option<Stat> {
    let (_, fields) = line.rsplit_once(')')?;
    let mut ticks = fields.split_ascii_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    let mut pair = || Some((ticks.next()?? + ticks.next()??) / TICKS_PER_SECOND);
    Some(Stat { own_seconds: pair()?, children_seconds: pair()? })
}

/// Whether a process of ours has ended; it may be waiting to be waited for.
pub fn is_over(pid: u32) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    line.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

/// The process that started this one.
pub fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    value_of(&status, "PPid:").and_then(|text| u32::try_from(text).ok())
}

/// What a process calls itself.
pub fn title(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn children(pid: u32) -> Vec<u32> {
    if let Ok(list) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        return list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    // A kernel without that file: all processes are asked.
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|child| parent(*child) == Some(pid)).collect()
}

fn memory_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    value_of(&status, name).map(|kib| kib * 1024)
}

fn value_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process that listens on this port of this machine, if there is one that we may look at.
pub fn listening_on(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines())
        .filter_map(|line| listening_inode(line, port))
        .collect();
    let all = fs::read_dir("/proc").ok()?.flatten();
    let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.find(|pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| inodes.iter().any(|inode| link.to_string_lossy() == format!("socket:[{inode}]")))
    })
}

/// Of a line of /proc/net/tcp in state 0A, which is LISTEN.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let is_it = u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&"0A");
    is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_behind_any_name() {
        let line = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 300 100 20 0 1 0";
        let stat = stat_of(line).expect("a line of /proc");
        assert!((stat.own_seconds - 2.0).abs() < 1e-9 && (stat.children_seconds - 4.0).abs() < 1e-9);
    }

    #[test]
    fn knows_kinds_by_their_titles() {
        for (title, kind) in [
            ("postgres: walsender postgres shop 127.0.0.1(4711) START_REPLICATION", Kind::Walsender),
            ("postgres: postgres shop 127.0.0.1(4711) COPY", Kind::Backend),
            ("postgres: logical replication worker for subscription 16394", Kind::Worker),
            ("postgres: pglogical apply 16384:1", Kind::Worker),
            ("postgres: logical replication launcher", Kind::Background),
            ("postgres: checkpointer", Kind::Background),
        ] {
            assert_eq!(Kind::of(title), kind, "{title}");
        }
    }

    #[test]
    fn finds_who_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        assert_eq!(listening_on(port), Some(std::process::id()));
        drop(listener);
    }

    #[test]
    fn a_child_is_seen_while_it_works_and_counted_when_it_has_ended() {
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done & wait; read -r _"]);
        let mut shell = shell.stdin(std::process::Stdio::piped()).spawn().expect("a shell");
        let sampler = Sampler::start(Watched { source: Some(shell.id()), ..Watched::default() });
        let began = std::time::Instant::now();
        while stat(shell.id()).is_none_or(|stat| stat.children_seconds < 0.02) {
            assert!(began.elapsed() < Duration::from_secs(60), "the loop ends");
            std::thread::sleep(Duration::from_millis(5));
        }
        let usage = sampler.finish();
        drop(shell.stdin.take());
        shell.wait().expect("a child");
        let total = usage.source.expect("it lived").cpu_seconds;
        assert!(total >= 0.02, "{usage:?}");
    }
}
