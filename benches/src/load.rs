//! A bounded open-loop load and a sink, in the benchmark's own process.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dataplane::ingress::Meta;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::now;

/// By which share a load may take longer than it should and still have had its rate.
const LATE_MAX: f64 = 0.03;
/// A load that waits for a full send buffer ends after this many times its length.
const OVERTIME_MAX: u32 = 2;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Datagrams a second.
    pub rate: u64,
    /// Bytes in a datagram, before the flow's header.
    pub size: usize,
    /// Datagrams that leave at once.
    pub burst: usize,
    /// Whether they leave as one superpacket, or by a system call each.
    pub superpackets: bool,
    /// How long.
    pub duration: Duration,
    /// A full send buffer is waited for, as a program with a blocking socket does. Otherwise what it refuses was never
    /// offered to the program under test.
    pub patient: bool,
}

/// Where a part of the load goes.
#[derive(Debug)]
pub struct Flow {
    /// Through which socket.
    pub socket: UdpSocket,
    /// To whom.
    pub to: SocketAddr,
    /// What stands in front of every datagram: a ChannelData header, or nothing. Equally long for all flows of a run.
    pub header: Vec<u8>,
}

/// What was sent and what arrived at the sink, in datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Sent.
    pub sent: u64,
    /// Arrived.
    pub arrived: u64,
    /// How long sending took.
    pub took: Duration,
}

impl Counted {
    /// The share that arrived.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.arrived as f64 / self.sent.max(1) as f64
    }

    /// Whether `load` was offered at its rate, and arrived with at most the share `lost` missing.
    #[must_use]
    pub fn holds(&self, load: Load, lost: f64) -> bool {
        let on_time = self.took <= load.duration.mul_f64(1.0 + LATE_MAX);
        self.sent > 0 && on_time && self.share() >= 1.0 - lost
    }
}

/// Sends `load` to `flows` round robin (shuffled by a multiplicative step) and counts what arrives at `sink`.
///
/// # Errors
/// When no thread can be had.
pub fn run(load: Load, flows: &[Flow], sink: &UdpSocket) -> io::Result<Counted> {
    let (stop, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, took) = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("bench-sink".to_owned())
            .spawn_scoped(scope, || count(sink, &stop, &arrived))?;
        let start = now();
        let sent = send(load, flows, start);
        let took = start.elapsed();
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        Ok::<_, io::Error>((sent, took))
    })?;
    Ok(Counted { sent, arrived: arrived.into_inner(), took })
}

/// Sends `load` from `start` on; how many datagrams the kernel took.
#[must_use]
pub fn send(load: Load, flows: &[Flow], start: Instant) -> u64 {
    // One buffer for all: as many as there are flows would be hundreds of megabytes.
    let header_len = flows.first().map_or(0, |flow| flow.header.len());
    let len = header_len + load.size;
    let mut bytes = vec![0x5a; len * load.burst];
    let interval = Duration::from_secs(1).mul_f64(load.burst as f64 / load.rate as f64);
    let (mut sent, mut due) = (0u64, Duration::ZERO);
    let mut position = 0usize;
    while due < load.duration {
        let elapsed = start.elapsed();
        if elapsed < due {
            std::thread::sleep((due - elapsed).min(Duration::from_micros(500)));
            continue;
        }
        position = (position + 7919) % flows.len();
        let flow = &flows[position];
        bytes.chunks_mut(len).for_each(|datagram| datagram[..header_len].copy_from_slice(&flow.header));
        for part in bytes.chunks(if load.superpackets { bytes.len() } else { len }) {
            if offer(load, flow, part, len, start) {
                sent += (part.len() / len) as u64;
            }
        }
        due += interval;
    }
    sent
}

/// Whether the kernel took it.
fn offer(load: Load, flow: &Flow, part: &[u8], len: usize, start: Instant) -> bool {
    loop {
        match flow.socket.send_segments(flow.to, None, 0, part, len) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && load.patient => {
                if start.elapsed() > load.duration * OVERTIME_MAX {
                    return false;
                }
                // Not poll(2), which reports a send buffer only when half of it is free.
                std::thread::sleep(Duration::from_micros(20));
            }
            Err(_) => return false,
        }
    }
}

fn count(sink: &UdpSocket, stop: &AtomicBool, arrived: &AtomicU64) {
    let mut batch = ReceiveBatch::new(32, RECEIVE_LEN);
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::from_borrowed_fd(sink.fd().as_fd(), PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
        while sink.receive_batch(&mut batch).is_ok_and(|count| count > 0) {
            for arrival in batch.iter_mut() {
                if let Some(Meta::Udp { segment_size, .. }) = arrival.meta {
                    arrived.fetch_add(
                        arrival.bytes.len().div_ceil(segment_size.max(1)) as u64,
                        Ordering::Relaxed,
                    );
                }
            }
        }
    }
}

/// CPU time of every thread of a process so far, from `/proc/PID/task/*/schedstat`, in seconds.
///
/// # Errors
/// When the process has ended: what its threads used can no longer be read.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let ended = || io::Error::other(format!("process {pid} has ended while it was measured"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| ended())?;
    // The state stands behind the name, which is in parentheses and may hold any letter.
    if stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X'])) {
        return Err(ended());
    }
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| ended())?;
    let texts =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    let nanoseconds = texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    Ok(nanoseconds.sum::<u64>() as f64 / 1e9)
}

/// CPU time of a process since it had used `before` seconds.
///
/// # Errors
/// As [`cpu_seconds`]; and when it used none, because a thread of it ended or it did no work.
pub fn cpu_seconds_since(pid: u32, before: f64) -> io::Result<f64> {
    let used = cpu_seconds(pid)? - before;
    if used > 0.0 {
        Ok(used)
    } else {
        Err(io::Error::other(format!("process {pid} used no CPU time: {used} s")))
    }
}

/// Resident memory of a process in KiB: now (`VmRSS`), or the most there was (`VmHWM`).
#[must_use]
pub fn resident_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_that_has_ended_is_not_nothing() {
        let own = std::process::id();
        let before = cpu_seconds(own).unwrap();
        assert!(cpu_seconds_since(own, before + 1e6).is_err(), "less than before");
        #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let deadline = now() + Duration::from_secs(10);
        // A zombie until it is waited for.
        while cpu_seconds(child.id()).is_ok() && now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(cpu_seconds(child.id()).unwrap_err().to_string().contains("has ended"));
        child.wait().unwrap();
    }

    #[test]
    fn a_rate_holds_when_it_was_offered_in_time_and_hardly_anything_is_missing() {
        let duration = Duration::from_secs(1);
        let load = Load { rate: 10_000, size: 64, burst: 1, superpackets: false, duration, patient: true };
        let counted = |arrived, milliseconds| Counted {
            sent: 10_000,
            arrived,
            took: Duration::from_millis(milliseconds),
        };
        assert!(counted(9_990, 1_020).holds(load, 0.001));
        assert!(!counted(9_989, 1_020).holds(load, 0.001), "lost");
        assert!(!counted(10_000, 1_050).holds(load, 0.001), "late");
        assert!(!Counted::default().holds(load, 0.001), "nothing was sent");
    }
}
