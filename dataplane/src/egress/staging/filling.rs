//! A slot from its opening until it may leave.

use super::super::{Class, Port, Target};
use crate::crypto::crew::Messages;
use crate::offload::coalesce::Superpacket;
use crate::sys::slab::{Slab, Slot};

/// A slot with something in it that may leave.
#[derive(Debug)]
pub struct Filled {
    /// Its memory.
    pub slot: Slot,
    /// Bytes in it.
    pub len: usize,
    /// Position in the order of opening.
    pub order: u32,
    /// What it holds.
    pub content: Content,
}

/// Where the memory of a slot is.
pub(super) enum Memory {
    Here(Slot),
    /// A crypto thread has slot number so and so.
    Away(usize),
}

/// A slot being filled, or sealed.
pub(super) struct Filling {
    /// Its memory.
    pub memory: Memory,
    /// Bytes in it; set for a device when it is closed.
    pub len: usize,
    /// What it holds.
    pub content: Content,
    /// What has to be sealed in it, if that is here and not with a crypto thread.
    pub unsealed: Option<Messages>,
}

/// What a slot holds.
#[derive(Debug)]
pub enum Content {
    /// Datagrams of one size, the last may be shorter.
    Datagrams {
        /// Where they go.
        target: Target,
        /// Their size in bytes.
        segment_size: usize,
        /// How many.
        segments: usize,
        /// Which go first when there is not room for all.
        class: Class,
    },
    /// A virtio_net header and an IP packet or superpacket.
    Device {
        /// The device.
        port: Port,
        /// IP packets in it.
        segments: usize,
        /// The state of coalescing; `None` once it is sealed.
        superpacket: Option<Superpacket>,
    },
}

impl Content {
    /// The port it leaves through.
    pub fn port(&self) -> Port {
        match self {
            Self::Datagrams { target, .. } => target.port,
            Self::Device { port, .. } => *port,
        }
    }
}

impl Filled {
    /// The port it leaves through.
    pub fn port(&self) -> Port {
        self.content.port()
    }

    /// Packets in it.
    pub fn segments(&self) -> usize {
        match &self.content {
            Content::Datagrams { segments, .. } => *segments,
            Content::Device { superpacket: Some(superpacket), .. } => superpacket.segments(),
            Content::Device { segments, .. } => *segments,
        }
    }

    /// Which go first.
    pub fn class(&self) -> Class {
        match &self.content {
            Content::Datagrams { class, .. } => *class,
            Content::Device { .. } => Class::Data,
        }
    }
}

impl Filling {
    /// `len` bytes of its memory from `from` on, if that is here.
    pub fn bytes<'a>(&'a mut self, slab: &'a Slab, from: usize, len: usize) -> Option<&'a mut [u8]> {
        match &mut self.memory {
            Memory::Here(slot) => Some(&mut slab.bytes(slot)[from..from + len]),
            Memory::Away(_) => None,
        }
    }

    /// Seals what has to be sealed, here.
    pub fn seal(&mut self, slab: &Slab) {
        if let (Some(messages), Memory::Here(slot)) = (self.unsealed.take(), &mut self.memory) {
            messages.seal(slab.bytes(slot));
        }
    }

    /// Its memory, when everything in it is sealed.
    pub fn sealed(&mut self, slab: &Slab, back: &mut [Option<Slot>]) -> Option<Slot> {
        self.seal(slab);
        match std::mem::replace(&mut self.memory, Memory::Away(usize::MAX)) {
            Memory::Here(slot) => Some(slot),
            Memory::Away(index) => {
                self.memory = Memory::Away(index);
                back.get_mut(index)?.take()
            }
        }
    }
}
