//! Socket options that no safe crate offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Sets an `int` socket option (setsockopt(2)).
pub(super) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let value_ptr: *const i32 = &raw const value;
    // SAFETY: `value` lives on this stack frame until the call returns and is exactly as long as the length says.
    let answer = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, value_ptr.cast(), size_of::<i32>() as libc::socklen_t)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many skbs a socket has dropped so far because its receive buffer was full (SK_MEMINFO_DROPS of linux/sock_diag.h; wraps at
/// 2^32): one call for a socket, where /proc/net/udp has a line for each of the host's.
///
/// # Errors
/// What getsockopt(2) answers: ENOPROTOOPT before Linux 4.12.
pub(super) fn dropped(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let info_ptr: *mut u32 = info.as_mut_ptr();
    // SAFETY: `info` and `len` live on this stack frame until the call returns; `len` says how many bytes may be written.
    let answer = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info_ptr.cast(), &raw mut len)
    };
    match answer {
        0 => Ok(info[libc::SK_MEMINFO_DROPS as usize]),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel cut whatever is written to a UDP socket into datagrams of `size` bytes (UDP_SEGMENT of udp(7)). It refuses
/// what would be more than 128 of them (64 before Linux 6.9) with EINVAL: what a device does that takes packets and no
/// superpackets can be seen on a connected socket.
///
/// # Errors
/// What setsockopt(2) answers.
pub fn cut_writes(socket: BorrowedFd<'_>, size: u16) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_UDP, libc::UDP_SEGMENT, size.into())
}

/// Whether the kernel has refused this process more than the sysctl limit. A capability that is gone does not come back, and
/// a relay opens a socket for each allocation.
static LIMITED: AtomicBool = AtomicBool::new(false);

/// Asks for socket buffers of `bytes`: past the sysctl limit with CAP_NET_ADMIN, up to it without.
pub(super) fn set_buffers(fd: BorrowedFd<'_>, receive: usize, send: usize) {
    let buffers =
        [(receive, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (send, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)];
    for (bytes, force, polite) in buffers {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        let forced = match LIMITED.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EPERM)),
            false => set_option(fd, libc::SOL_SOCKET, force, bytes),
        };
        if let Err(error) = forced {
            if error.raw_os_error() == Some(libc::EPERM) {
                LIMITED.store(true, Ordering::Relaxed);
            }
            // The kernel clamps to net.core.{r,w}mem_max; what it granted is read back by the caller.
            let _ = set_option(fd, libc::SOL_SOCKET, polite, bytes);
        }
    }
}
