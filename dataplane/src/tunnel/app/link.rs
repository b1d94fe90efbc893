//! The interface as others set it: up and down, its MTU, its end, and the network namespace it was moved to.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::App;
use super::wake::Wake;
use crate::driver::Next;
use crate::egress::Egress;
use crate::ingress::{Ingress, Source};
use crate::netlink::{Handle, LinkState, LinkWatch};
use crate::sys::namespace;
use crate::sys::tun::Tun;
use crate::tunnel::setup;

/// How soon sockets are tried again when the port is taken.
const BIND_AGAIN: Duration = Duration::from_millis(50);

/// A view of the interface, in whichever network namespace it is.
pub(super) struct Link {
    watch: LinkWatch,
    handle: Handle,
    index: u32,
    mtu: Option<u32>,
}

impl Link {
    /// Finds the interface in the calling thread's network namespace.
    fn open(tun: &Tun) -> io::Result<Self> {
        let watch = LinkWatch::open()?;
        let mut handle = Handle::open()?;
        let index = handle.link_index(&tun.current_name()?)?;
        Ok(Self { watch, handle, index, mtu: None })
    }

    /// Finds it in another one. The sockets made there stay there.
    fn open_in(tun: &Tun, namespace: &OwnedFd) -> io::Result<Self> {
        std::thread::scope(|scope| {
            // Owns nothing; ends with what it returns. It is there because only a whole thread enters a namespace.
            let thread =
                std::thread::Builder::new().name("towpath-enter".to_owned()).spawn_scoped(scope, || {
                    namespace::enter(namespace)?;
                    Self::open(tun)
                })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl App {
    /// Begins to follow the interface, as far as this system lets us.
    pub(super) fn open_link<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) {
        let opened = Link::open(&self.tun);
        self.watch_link(opened, ingress, egress, now);
    }

    /// Waits for news of the interface. Where there are none to be had, it counts as up.
    fn watch_link<I: Ingress, E: Egress>(
        &mut self,
        opened: io::Result<Link>,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        let watched = opened.and_then(|link| {
            ingress.add_borrowed(link.watch.as_fd(), Wake::Link.token(), Source::Ready)?;
            Ok(link)
        });
        match watched {
            Ok(link) => {
                self.link = Some(link);
                self.link_news = true;
            }
            Err(error) => {
                tracing::warn!("changes of the interface are not followed: {error}");
                self.go_up(ingress, egress, now);
            }
        }
    }

    /// Looks how the interface stands and acts on it.
    pub(super) fn follow_link<I: Ingress, E: Egress>(
        &mut self,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) -> Next {
        self.link_news = false;
        let Some(link) = &mut self.link else {
            return Next::Continue;
        };
        link.watch.take();
        match link.handle.link_state(link.index) {
            Ok(state) => {
                self.apply_link(state, ingress, egress, now);
                Next::Continue
            }
            Err(_) if self.tun.is_deleted() => self.device_deleted(),
            Err(_) => {
                // It is elsewhere: we go after it.
                self.link = None;
                ingress.remove(Wake::Link.token());
                let moved = self.tun.namespace().and_then(|namespace| Link::open_in(&self.tun, &namespace));
                if moved.is_ok() {
                    tracing::info!("the interface was moved to another network namespace");
                }
                self.watch_link(moved, ingress, egress, now);
                Next::Continue
            }
        }
    }

    fn apply_link<I: Ingress, E: Egress>(
        &mut self,
        state: LinkState,
        ingress: &mut I,
        egress: &mut E,
        now: Instant,
    ) {
        if let Some(link) = &mut self.link
            && link.mtu != Some(state.mtu)
        {
            tracing::debug!(mtu = state.mtu, "MTU of the interface");
            link.mtu = Some(state.mtu);
            self.tunnel.set_mtu(state.mtu as usize);
            setup::fit_superpackets(&mut link.handle, link.index, state.mtu, self.relay.is_some());
        }
        if state.up && !self.tunnel.is_running() {
            tracing::debug!("the interface is up");
            self.go_up(ingress, egress, now);
        } else if !state.up && (self.tunnel.is_running() || self.bind_at.is_some()) {
            tracing::debug!("the interface is down");
            self.tunnel.set_running(false, now);
            self.bind_at = None;
            if self.relay.is_none() {
                self.close_sockets(ingress, egress);
            }
        }
    }

    /// Gives the interface another MTU; what follows from it follows from the news of that.
    pub(super) fn set_device_mtu(&mut self, mtu: u32) {
        let Some(link) = self.link.as_mut().filter(|link| link.mtu != Some(mtu)) else {
            return;
        };
        match link.handle.set_mtu(link.index, mtu) {
            Ok(()) => tracing::info!(mtu, "the MTU of the interface follows that of the routes"),
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Binds the sockets and lets handshakes begin; when the port is taken, tries again later.
    pub(super) fn go_up<I: Ingress, E: Egress>(&mut self, ingress: &mut I, egress: &mut E, now: Instant) {
        let retries = self.bind_at.take().is_some();
        if self.sockets.port() == 0
            && let Err(error) = self.rebind(self.binding.listen_port, ingress, egress)
        {
            if !retries {
                tracing::error!("{error}");
            }
            self.bind_at = Some(now + BIND_AGAIN);
            return;
        }
        self.begin_relay(now);
        self.tunnel.set_running(true, now);
        self.send_control(egress, now);
    }

    /// What a superpacket may hold has changed: looks at the interface again.
    pub(super) fn refit_superpackets(&mut self) {
        if let Some(link) = &mut self.link {
            (link.mtu, self.link_news) = (None, true);
        }
    }

    /// What to do when the interface is gone.
    pub(super) fn device_deleted(&mut self) -> Next {
        // Whoever meets it first says so: news of the interface, a read, or a write.
        if !std::mem::replace(&mut self.deleted, true) {
            tracing::info!("the interface was deleted");
        }
        Next::Stop
    }
}
