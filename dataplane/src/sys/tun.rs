//! TUN devices whose packets start with a virtio_net header (Documentation/networking/tuntap.rst in the kernel).

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::egress::errno::tells_of_offload;
use crate::offload::virtio;

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
/// Of linux/if_tun.h: EBUSY when the device is there already.
const IFF_TUN_EXCL: libc::c_int = 0x8000;
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
    /// There is no virtio_net header in front of packets, and so none of the above.
    pub bare: bool,
}

/// Their names between commas, or `none`.
impl fmt::Display for Offloads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.checksum, "checksum"), (self.tso, "tso"), (self.uso, "uso")];
        let names: Vec<&str> = names.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
        formatter.write_str(if names.is_empty() { "none" } else { "" })?;
        formatter.write_str(&names.join(","))
    }
}

/// What a TUN device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOptions {
    /// A virtio_net header in front of each packet; without it there are no superpackets (IFF_VNET_HDR).
    pub header: bool,
    /// What comes from the device may be superpackets, and its checksums partial, as far as the kernel has that.
    pub superpackets_in: bool,
    /// What goes to the device may be.
    pub superpackets_out: bool,
}

impl TunOptions {
    /// Everything that the kernel has.
    pub const ALL: Self = Self { header: true, superpackets_in: true, superpackets_out: true };
    /// Packets one by one.
    pub const PLAIN: Self = Self { header: true, superpackets_in: false, superpackets_out: false };
    /// The same, without a header.
    pub const BARE: Self = Self { header: false, superpackets_in: false, superpackets_out: false };
}

/// An open TUN device: IP packets, each behind a virtio_net header unless it is [`Offloads::bare`].
#[derive(Clone, Debug)]
pub struct Tun {
    fd: Arc<OwnedFd>,
    name: String,
    offloads: Offloads,
}

impl Tun {
    /// Creates (or attaches to) the device `name`. Where the kernel refuses the virtio_net header, it goes without.
    ///
    /// # Errors
    /// One sentence with the remedy: a missing or closed `/dev/net/tun`, a missing CAP_NET_ADMIN, a busy or bad name.
    pub fn open(name: &str, options: TunOptions) -> io::Result<Self> {
        Self::open_as(name, options, 0)
    }

    /// Creates the device `name`, which must not be there: what is set on it is nobody else's, and it goes with the
    /// descriptor. Otherwise as [`Tun::open`].
    ///
    /// # Errors
    /// As [`Tun::open`]; `ResourceBusy` when there is an interface of this name.
    pub fn create(name: &str, options: TunOptions) -> io::Result<Self> {
        Self::open_as(name, options, IFF_TUN_EXCL)
    }

    fn open_as(name: &str, options: TunOptions, flags: libc::c_int) -> io::Result<Self> {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(device_error)?;
        let fd = OwnedFd::from(file);
        rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::RDWR)?;
        let mut request = named_request(name)?;
        let mut header = options.header;
        if let Err(error) = attach(&fd, &mut request, header, flags) {
            let without = header && tells_of_offload(error.raw_os_error().unwrap_or_default());
            if !without || attach(&fd, &mut request, false, flags).is_err() {
                return Err(interface_error(name, error));
            }
            tracing::warn!(
                "the header in front of the interface's packets (vnet-hdr) is given up, and superpackets with it: the \
                 kernel refuses it ({error})"
            );
            header = false;
        }
        Self::with_offloads(fd, name.to_owned(), TunOptions { header, ..options })
    }

    /// Takes a descriptor that is attached to a device already (WG_TUN_FD); otherwise as [`Tun::open`].
    ///
    /// # Errors
    /// `InvalidInput` when it is not.
    pub fn inherited(fd: OwnedFd, options: TunOptions) -> io::Result<Self> {
        let refuse = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let request = match attached(&fd) {
            Ok(request) => request,
            Err(error) => return refuse(&format!("it is not attached to a TUN device: {error}")),
        };
        // SAFETY: TUNGETIFF has written the flags of the device.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI;
        if flags & (wanted | libc::IFF_TAP) != wanted {
            return refuse("the device has to be made with IFF_TUN and IFF_NO_PI");
        }
        rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::RDWR)?;
        let header = flags & libc::IFF_VNET_HDR != 0;
        Self::with_offloads(fd, name_of(&request), TunOptions { header, ..options })
    }

    fn with_offloads(fd: OwnedFd, name: String, options: TunOptions) -> io::Result<Self> {
        let TunOptions { header, superpackets_in, superpackets_out } = options;
        // Also of those that are only written: what the kernel gives it takes.
        let offers = if header && (superpackets_in || superpackets_out) {
            probe_offloads(&fd)
        } else {
            Offloads::default()
        };
        if offers == Offloads::default() || !superpackets_in {
            set_offloads(&fd, 0)?;
        }
        let offloads = if superpackets_out { offers } else { Offloads::default() };
        Ok(Self { fd: Arc::new(fd), name, offloads: Offloads { bare: !header, ..offloads } })
    }

    /// Writes a packet that nobody answers behind an empty header, to a device that is up.
    ///
    /// Only then can the header be given up without a loss: it belongs to the making of the device. `TUNSETIFF` is refused for as
    /// long as another descriptor has the device (EBUSY), and when the last one is closed the kernel drops what is sent into it
    /// until the next has it, of a device that stays (TUNSETPERSIST) too: close(2) and TUNSETIFF take 10 to 16 ms together, and of
    /// 20,000 datagrams sent meanwhile, one each 50 µs, 229 were lost (Linux 6.18).
    ///
    /// # Errors
    /// EINVAL or EIO: the header is refused. Other errors say nothing about it.
    pub fn try_packet(&self) -> io::Result<()> {
        /// IPv4 of the protocol 253 (RFC 3692: for experiments) from and to nowhere.
        const PACKET: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 1, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        if self.offloads.bare {
            return Ok(());
        }
        let parts = [IoSlice::new(&[0; virtio::HEADER_LEN]), IoSlice::new(&PACKET)];
        match rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, &parts)) {
            Err(errno) if tells_of_offload(errno.raw_os_error()) => Err(errno.into()),
            Ok(_) | Err(_) => Ok(()),
        }
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

    /// What it takes.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }
}

/// Attaches a descriptor to the device of a name, which is made if it is not there (TUNSETIFF).
fn attach(fd: &OwnedFd, request: &mut libc::ifreq, header: bool, more_flags: libc::c_int) -> io::Result<()> {
    // No IFF_MULTI_QUEUE: a second process must not silently join as a queue with other flags; it gets EBUSY.
    let flags = more_flags | libc::IFF_TUN | libc::IFF_NO_PI | if header { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which the caller has lent us.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, std::ptr::from_mut(request)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for less and less until the kernel agrees: USO needs Linux 6.2, TSO and checksums are older.
fn probe_offloads(fd: &OwnedFd) -> Offloads {
    let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let degrees = [
        (tso | TUN_F_USO4 | TUN_F_USO6, Offloads { checksum: true, tso: true, uso: true, bare: false }),
        (tso, Offloads { checksum: true, tso: true, uso: false, bare: false }),
        (TUN_F_CSUM, Offloads { checksum: true, tso: false, uso: false, bare: false }),
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

/// Whether an interface may have this name.
///
/// # Errors
/// `InvalidInput`, with what it may be.
pub fn check_name(name: &str) -> io::Result<()> {
    named_request(name).map(drop)
}

/// A `struct ifreq` with a name in it.
fn named_request(name: &str) -> io::Result<libc::ifreq> {
    let bytes = name.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/' && *byte != b':' && *byte != b'%';
    // The kernel takes neither for a name: both are directories (dev_valid_name of net/core/dev.c).
    let is_directory = matches!(name, "." | "..");
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || !bytes.iter().all(plain) || is_directory {
        let text = format!(
            "interface name {name:?}: use 1 to 15 letters, digits, '.', '_' or '-', and not '.' or '..' alone"
        );
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
        Some(libc::EBUSY) => {
            "it is there already, or another program has it open; end that or use another name"
        }
        _ => "check the name and `ip link`",
    };
    io::Error::new(error.kind(), format!("TUN interface {name}: {error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_are_refused_with_the_fix() {
        for name in ["", "a-name-that-is-too-long", "with space", "sla/sh", ".", ".."] {
            let error = named_request(name).expect_err("refused").to_string();
            assert!(error.contains("use 1 to 15"), "{error}");
        }
    }

    #[test]
    fn offloads_are_told_by_name() {
        let some = Offloads { checksum: true, uso: true, ..Offloads::default() };
        assert_eq!(
            (some.to_string(), Offloads::default().to_string()),
            ("checksum,uso".into(), "none".into())
        );
    }

    #[test]
    fn a_descriptor_that_is_no_tun_has_no_offloads() {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        assert_eq!(probe_offloads(&null.into()), Offloads::default());
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let error = Tun::inherited(null.into(), TunOptions::ALL).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
