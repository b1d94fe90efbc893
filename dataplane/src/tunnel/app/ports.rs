//! Where sockets and device are registered, and how sockets are replaced while packets pass.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::egress::{Egress, Port};
use crate::ingress::{Ingress, Source, Token};
use crate::sys::udp::UdpSocket;
use crate::tunnel::setup;

/// The send buffer for answers to strangers, bytes: some 5,000.
const ASIDE_BUFFER: usize = 4 << 20;

/// The UDP sockets, one for each family the machine has.
#[derive(Debug)]
pub struct Sockets {
    /// IPv4.
    pub v4: Option<UdpSocket>,
    /// IPv6.
    pub v6: Option<UdpSocket>,
    /// From which strangers are answered, by family as above: see [`super::Replies`].
    pub aside: [Option<UdpSocket>; 2],
}

impl Sockets {
    /// None yet.
    pub const NONE: Self = Self { v4: None, v6: None, aside: [None, None] };

    /// Those that there are, with others beside them for answers to strangers. Where there can be none, answers leave by the same.
    #[must_use]
    pub fn new(v4: Option<UdpSocket>, v6: Option<UdpSocket>) -> Self {
        let beside = |socket: &Option<UdpSocket>| {
            let other = socket.as_ref()?.beside(ASIDE_BUFFER);
            if let Err(error) = &other {
                tracing::debug!("strangers are answered from the same socket as peers: {error}");
            }
            other.ok()
        };
        let aside = [beside(&v4), beside(&v6)];
        Self { v4, v6, aside }
    }

    /// From where strangers at such an address are answered.
    #[must_use]
    pub fn aside(&self, address: SocketAddr) -> Option<&UdpSocket> {
        self.aside[usize::from(address.is_ipv6())].as_ref()
    }

    /// The port they are bound to; 0 when there is none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.iter().next().map_or(0, |socket| socket.local_addr().port())
    }

    /// Those that there are and receive.
    pub fn iter(&self) -> impl Iterator<Item = &UdpSocket> {
        [&self.v4, &self.v6].into_iter().flatten()
    }
}

/// How sockets are to be bound.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// The port; 0 lets the kernel choose.
    pub listen_port: u16,
    /// The mark of what is sent (SO_MARK); 0 for none.
    pub firewall_mark: u32,
    /// Superpackets are received.
    pub gro: bool,
}

/// Where sockets and device are registered.
#[derive(Clone, Copy, Default)]
pub(super) struct Ports {
    pub device: Option<Port>,
    pub v4: Option<Port>,
    pub v6: Option<Port>,
}

impl Ports {
    /// The socket for the family of an address.
    pub fn of(&self, address: SocketAddr) -> Option<Port> {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl App {
    /// Registers the device.
    pub(super) fn open_device<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
    ) -> io::Result<()> {
        let device = egress.add_device(Arc::clone(self.tun.fd()), self.tun.offloads())?;
        ingress.add(Arc::clone(self.tun.fd()), Token(device.0), Source::Tun)?;
        self.ports.device = Some(device);
        Ok(())
    }

    /// Registers sockets in place of those that there are, which go when the new ones receive.
    pub(super) fn open_sockets<I: Ingress, E: Egress>(
        &mut self,
        sockets: Sockets,
        ingress: &mut I,
        egress: &mut E,
    ) -> io::Result<()> {
        let mut ports = Ports { device: self.ports.device, v4: None, v6: None };
        let mut register = || {
            for (socket, port) in [(&sockets.v4, &mut ports.v4), (&sockets.v6, &mut ports.v6)] {
                if let Some(socket) = socket {
                    let added = egress.add_socket(Arc::clone(socket.fd()))?;
                    *port = Some(added);
                    ingress.add(Arc::clone(socket.fd()), Token(added.0), Source::Udp)?;
                }
            }
            Ok(())
        };
        let registered = register();
        let superfluous = if registered.is_ok() { std::mem::replace(&mut self.ports, ports) } else { ports };
        close(superfluous, ingress, egress);
        if registered.is_ok() {
            self.sockets = sockets;
            self.tunnel.set_own_port(self.sockets.port());
            self.tunnel.set_marked(self.binding.firewall_mark != 0);
        }
        registered
    }

    /// Closes the sockets.
    pub(super) fn close_sockets<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E) {
        let device = self.ports.device;
        close(std::mem::replace(&mut self.ports, Ports { device, ..Ports::default() }), ingress, egress);
        self.sockets = Sockets::NONE;
        self.tunnel.set_own_port(0);
    }

    /// Binds sockets to another port and goes over to them. The loop does not wait for a port that is taken.
    pub(super) fn rebind<I: Ingress, E: Egress>(
        &mut self,
        listen_port: u16,
        ingress: &mut I,
        egress: &mut E,
    ) -> io::Result<()> {
        let sockets = setup::bind_sockets(listen_port, self.binding.gro, Duration::ZERO)?;
        setup::mark_sockets(&sockets, self.binding.firewall_mark)?;
        self.open_sockets(sockets, ingress, egress)
    }
}

/// Forgets the sockets among some ports.
fn close<I: Ingress, E: Egress>(ports: Ports, ingress: &mut I, egress: &mut E) {
    for port in [ports.v4, ports.v6].into_iter().flatten() {
        ingress.remove(Token(port.0));
        egress.remove(port);
    }
}
