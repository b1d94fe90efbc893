//! What is put around a payload before it leaves: nothing, a TURN header, or a sealed WireGuard message.

use dataplane::stun::writer::padding;

use super::path::Flow;
use super::payload::{self, Header};

/// Frames payloads.
pub trait Wrap {
    /// Length of the frame around a payload of `size` bytes.
    fn frame_len(&self, size: usize) -> usize;

    /// Writes a frame of exactly [`Wrap::frame_len`] bytes.
    fn write(&mut self, frame: &mut [u8], flow: &Flow, header: &Header, size: usize);

    /// Called before the frames of one system call are written.
    fn begin(&mut self) {}

    /// Called when nothing is due: time for control messages.
    fn tick(&mut self) {}

    /// How long [`Wrap::tick`] can wait, in nanoseconds.
    fn patience_ns(&self) -> u64 {
        u64::MAX
    }
}

impl<W: Wrap> Wrap for &mut W {
    fn frame_len(&self, size: usize) -> usize {
        (**self).frame_len(size)
    }

    fn write(&mut self, frame: &mut [u8], flow: &Flow, header: &Header, size: usize) {
        (**self).write(frame, flow, header, size);
    }

    fn begin(&mut self) {
        (**self).begin();
    }

    fn tick(&mut self) {
        (**self).tick();
    }

    fn patience_ns(&self) -> u64 {
        (**self).patience_ns()
    }
}

/// Plain UDP, and the two ways of TURN: a header that is the flow's own, but for the lengths in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// No header.
    None,
    /// ChannelData (RFC 8656 section 12.4): number, length.
    Channel,
    /// A Send indication (RFC 8656 section 11.1), as long as given up to its data.
    Indication(usize),
}

impl Prefix {
    fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Channel => 4,
            Self::Indication(len) => len,
        }
    }

    fn padding(self, size: usize) -> usize {
        if matches!(self, Self::Indication(_)) { padding(size) } else { 0 }
    }
}

/// Length of the header of a message of STUN (RFC 8489 section 5), which its length field leaves out.
const STUN_HEADER: usize = 20;

impl Wrap for Prefix {
    fn frame_len(&self, size: usize) -> usize {
        self.len() + size + self.padding(size)
    }

    fn write(&mut self, frame: &mut [u8], flow: &Flow, header: &Header, size: usize) {
        let (prefix, rest) = frame.split_at_mut(self.len());
        let (datagram, padding) = rest.split_at_mut(size);
        prefix.copy_from_slice(&flow.prefix);
        // Sizes fit 16 bits: the spec is checked.
        let size_field = (size as u16).to_be_bytes();
        match self {
            Self::None => {}
            Self::Channel => prefix[2..4].copy_from_slice(&size_field),
            Self::Indication(len) => {
                let message = (*len - STUN_HEADER + size + padding.len()) as u16;
                prefix[2..4].copy_from_slice(&message.to_be_bytes());
                prefix[*len - 2..].copy_from_slice(&size_field);
            }
        }
        padding.fill(0);
        payload::write(datagram, header);
    }
}
