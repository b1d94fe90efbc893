//! What an endpoint is told at its start.

use super::{Binding, Inquiries};
use crate::sys::daemon::Notice;
use crate::tunnel::marking::Marking;
use crate::uapi::Listener;

/// How the endpoint is managed from outside.
#[derive(Debug)]
pub struct Management {
    /// How sockets are bound, from the start or when the interface goes up.
    pub binding: Binding,
    /// What datagrams say outside of the packets inside.
    pub marking: Marking,
    /// What is found out about the network outside.
    pub inquiries: Inquiries,
    /// Where `wg` is served.
    pub listener: Option<Listener>,
    /// As wireguard-go: the end of the interface, or of the socket's file, is the end of the program, in good order.
    pub drop_in: bool,
    /// Who waits until everything is there.
    pub notice: Option<Notice>,
}
