//! TUN devices whose packets start with a virtio_net header (Documentation/networking/tuntap.rst in the kernel).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
/// `_IO('T', 227)` of linux/if_tun.h.
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// Segmentation offloads a TUN device accepted (TUNSETOFFLOAD), probed by degrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums (TUN_F_CSUM).
    pub checksum: bool,
    /// TCP segmentation, both families (TUN_F_TSO4, TUN_F_TSO6).
    pub tso: bool,
    /// UDP segmentation, both families (TUN_F_USO4, TUN_F_USO6; Linux 6.2).
    pub uso: bool,
}

/// An open TUN device: IP packets, each behind a virtio_net header.
#[derive(Clone, Debug)]
pub struct Tun {
    fd: Arc<OwnedFd>,
    name: String,
    offloads: Offloads,
}

impl Tun {
    /// Creates (or attaches to) the device `name`; with `gso` it asks for as many offloads as the kernel has.
    ///
    /// # Errors
    /// One sentence with the remedy: a missing or closed `/dev/net/tun`, a missing CAP_NET_ADMIN, a busy or bad name.
    pub fn open(name: &str, gso: bool) -> io::Result<Self> {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(device_error)?;
        let fd = OwnedFd::from(file);
        rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::RDWR)?;
        let mut request = named_request(name)?;
        // No IFF_MULTI_QUEUE: a second process must not silently join as a queue with other flags; it gets EBUSY.
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which lives in this frame.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if answer < 0 {
            return Err(interface_error(name, io::Error::last_os_error()));
        }
        Self::with_offloads(fd, name.to_owned(), gso)
    }

    /// Takes a descriptor that is attached to a device already (WG_TUN_FD); otherwise as [`Tun::open`].
    ///
    /// # Errors
    /// `InvalidInput` when it is not, or when its packets do not start with a virtio_net header.
    pub fn inherited(fd: OwnedFd, gso: bool) -> io::Result<Self> {
        let refuse = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let request = match attached(&fd) {
            Ok(request) => request,
            Err(error) => return refuse(&format!("it is not attached to a TUN device: {error}")),
        };
        // SAFETY: TUNGETIFF has written the flags of the device.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & (wanted | libc::IFF_TAP) != wanted {
            return refuse("the device has to be made with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR");
        }
        rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::RDWR)?;
        Self::with_offloads(fd, name_of(&request), gso)
    }

    fn with_offloads(fd: OwnedFd, name: String, gso: bool) -> io::Result<Self> {
        let offloads = if gso { probe_offloads(&fd) } else { Offloads::default() };
        if offloads == Offloads::default() {
            set_offloads(&fd, 0)?;
        }
        Ok(Self { fd: Arc::new(fd), name, offloads })
    }

    /// Whether the interface was deleted: then the descriptor is attached to nothing.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        attached(&self.fd).is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD))
    }

    /// The name that the interface has now.
    ///
    /// # Errors
    /// When it was deleted.
    pub fn current_name(&self) -> io::Result<String> {
        attached(&self.fd).map(|request| name_of(&request))
    }

    /// The network namespace that the interface is in now (Linux 5.2).
    ///
    /// # Errors
    /// When it was deleted, or CAP_NET_ADMIN there is missing.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        // SAFETY: TUNGETDEVNETNS takes no argument; it returns a new descriptor or an error.
        let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNGETDEVNETNS) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the ioctl has just returned this descriptor and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(answer) })
    }

    /// The descriptor, non-blocking, to register with an ingress and an egress.
    #[must_use]
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// The interface name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel accepted.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }
}

/// Asks for less and less until the kernel agrees: USO needs Linux 6.2, TSO and checksums are older.
fn probe_offloads(fd: &OwnedFd) -> Offloads {
    let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let degrees = [
        (tso | TUN_F_USO4 | TUN_F_USO6, Offloads { checksum: true, tso: true, uso: true }),
        (tso, Offloads { checksum: true, tso: true, uso: false }),
        (TUN_F_CSUM, Offloads { checksum: true, tso: false, uso: false }),
    ];
    let accepted = degrees.into_iter().find(|&(flags, _)| set_offloads(fd, flags).is_ok());
    accepted.map(|(_, offloads)| offloads).unwrap_or_default()
}

fn set_offloads(fd: &OwnedFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Name and flags of the device that a descriptor is attached to.
fn attached(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    // SAFETY: `struct ifreq` is plain data for which all zero bytes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which lives in this frame.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

fn name_of(request: &libc::ifreq) -> String {
    request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect()
}

/// A `struct ifreq` with a name in it.
fn named_request(name: &str) -> io::Result<libc::ifreq> {
    let bytes = name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/' && *byte != b':' && *byte != b'%';
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || !bytes.iter().all(plain) {
        let text = format!("interface name {name:?}: use 1 to 15 letters, digits, '.', '_' or '-'");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // SAFETY: `struct ifreq` is plain data for which all zero bytes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *target = *byte as libc::c_char;
    }
    Ok(request)
}

fn device_error(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOENT) => "load it with `modprobe tun`, or give the container `--device /dev/net/tun`",
        Some(libc::EACCES | libc::EPERM) => "run as root, or open it to users with `chmod 0666 /dev/net/tun`",
        _ => "check that the kernel has TUN support",
    };
    io::Error::new(error.kind(), format!("/dev/net/tun: {error}; {remedy}"))
}

fn interface_error(name: &str, error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "creating interfaces needs CAP_NET_ADMIN: run as root or with `setcap cap_net_admin+ep`"
        }
        Some(libc::EBUSY) => "another program has it open; stop it or use another name",
        _ => "check the name and `ip link`",
    };
    io::Error::new(error.kind(), format!("TUN interface {name}: {error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused_with_the_fix() {
        for name in ["", "a-name-that-is-too-long", "with space", "sla/sh"] {
            let error = named_request(name).expect_err("refused").to_string();
            assert!(error.contains("use 1 to 15"), "{error}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tun_has_no_offloads() {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        assert_eq!(probe_offloads(&null.into()), Offloads::default());
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let error = Tun::inherited(null.into(), true).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
