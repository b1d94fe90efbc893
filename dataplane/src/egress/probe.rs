//! What `--io auto` finds out by doing: does io_uring carry a datagram and a device write here, inline?

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Class, Egress, Target, Uring};
use crate::engine::Completions;
use crate::sys::ring::{self, ReapHalf, SubmitHalf};
use crate::sys::slab::Slab;
use crate::sys::tun::Offloads;
use crate::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};

/// Slots of the probe's ring: those that only control packets may take, and some more.
const SOCKET_SLOTS: usize = 8;
/// Slots for its one device write.
const DEVICE_SLOTS: usize = 1;

/// Sets a ring up, sends one datagram to a socket of its own over loopback, and writes one packet to `device` (which may
/// still be down). The text of an error says why `uring` is not to be used, and how to change that.
///
/// # Errors
/// The reason.
pub fn probe(device: Option<(Arc<OwnedFd>, Offloads)>, now: Instant) -> Result<(), String> {
    let mut uring = small_ring(now).map_err(|error| setup_reason(&error))?;
    loop_datagram(&mut uring, now)?;
    if let Some((device, offloads)) = device {
        write_packet(&mut uring, device, offloads, now)?;
    }
    match kernel_workers() {
        0 => Ok(()),
        count => Err(format!(
            "the kernel moved operations to {count} worker threads (iou-wrk): it is too old for them"
        )),
    }
}

/// A ring that locks little memory: the kernel lets go of it some time after it is closed, and until then it counts
/// against the limit that the real ring has to fit into.
fn small_ring(now: Instant) -> io::Result<Uring<SubmitHalf, ReapHalf>> {
    let (slab, slots) = Slab::new(SOCKET_SLOTS + DEVICE_SLOTS)?;
    let slab = Arc::new(slab);
    let (submit, reap) = ring::new(slab.clone(), SOCKET_SLOTS)?;
    Uring::with_ring(submit, reap, slab, slots, SOCKET_SLOTS, true, Completions::Inline, now)
}

/// The reason why a ring could not be set up.
#[must_use]
pub fn setup_reason(error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring",
        Some(libc::EPERM | libc::EACCES) => {
            "it is forbidden here: sysctl kernel.io_uring_disabled must be 0, and a container's seccomp profile must \
             allow the io_uring_* calls"
        }
        Some(libc::ENOMEM) => "the limit on locked memory is too small: raise it with `ulimit -l 16384`",
        Some(libc::EINVAL) => "this kernel is too old for it: Linux 6.1 is needed",
        Some(libc::EMFILE | libc::ENFILE) => "too many files are open: raise it with `ulimit -n 65536`",
        Some(_) => "unexpected",
        // Not the kernel's: it says what to do by itself.
        None => return error.to_string(),
    };
    format!("io_uring_setup: {error}; {remedy}")
}

fn loop_datagram(uring: &mut impl Egress, now: Instant) -> Result<(), String> {
    let text = |error: io::Error| format!("loopback probe: {error}");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let small = UdpOptions { receive_buffer: 65_536, send_buffer: 65_536, ..UdpOptions::default() };
    let socket = UdpSocket::bind(any, &small).map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            format!("loopback probe: {error}; is the interface `lo` up? (ip link set lo up)")
        }
        _ => text(error),
    })?;
    let port = uring.add_socket(socket.fd().clone()).map_err(text)?;
    let target = Target { port, to: socket.local_addr(), from: None, traffic_class: 0, dont_fragment: false };
    uring.append(&target, 4, Class::Control, |slot| {
        slot.copy_from_slice(b"loop");
        true
    });
    uring.flush(now).map_err(text)?;
    let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
    let received = socket.receive_batch(&mut batch).map_err(text)?;
    uring.remove(port);
    match received {
        1 => Ok(()),
        _ => Err("loopback probe: the datagram did not arrive; is the interface `lo` up?".into()),
    }
}

fn write_packet(
    uring: &mut impl Egress,
    device: Arc<OwnedFd>,
    offloads: Offloads,
    now: Instant,
) -> Result<(), String> {
    let text = |error: io::Error| format!("TUN probe: {error}");
    let port = uring.add_device(device, offloads).map_err(text)?;
    // An IPv4 packet of the protocol 253 (RFC 3692: for experiments) from and to nowhere: nothing answers it.
    let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 1, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let before = uring.stats();
    uring.deliver(port, &packet);
    uring.flush(now).map_err(text)?;
    let stats = uring.stats();
    uring.remove(port);
    let down = stats.drops.get(crate::drops::Cause::TunDown) - before.drops.get(crate::drops::Cause::TunDown);
    match stats.sent - before.sent + down {
        1 => Ok(()),
        _ => Err(format!("TUN probe: the write was refused ({:?})", stats.drops.iter().collect::<Vec<_>>())),
    }
}

/// Worker threads the kernel has started for this process's rings.
#[must_use]
pub fn kernel_workers() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("iou-wrk")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_a_remedy() {
        for errno in [libc::ENOSYS, libc::EPERM, libc::ENOMEM, libc::EINVAL, libc::EMFILE] {
            let reason = setup_reason(&io::Error::from_raw_os_error(errno));
            assert!(!reason.ends_with("unexpected"), "{reason}");
        }
    }

    #[test]
    fn the_probe_succeeds_where_a_ring_can_be_had() {
        #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
        let now = Instant::now();
        if io_uring::IoUring::new(4).is_ok() {
            assert_eq!(probe(None, now), Ok(()));
        } else {
            assert!(probe(None, now).is_err());
        }
    }
}
