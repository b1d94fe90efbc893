//! Who seals what is in a slot: the loop, or a crypto thread beside it.
//!
//! A slot that is full goes to the crypto threads when there is another; when a batch is over, so do all but the last. Those of one
//! port leave in the order in which they were opened, whoever is through first; those of another port wait for none of them.

use super::filling::{Content, Filled, Filling, Memory};
use super::{BYTES_MAX, OPEN_SOCKET_SLOTS, SEGMENTS_MAX, Staging};
use std::sync::Arc;

use crate::crypto::crew::{Boss, Messages, Stalled};
use crate::egress::Unsealed;
use crate::sys::slab::SLOT_LEN;

/// Less than this is sealed here: to hand it over would cost more, bytes.
const HANDED_MIN: usize = 8 * 1024;

impl Staging {
    /// The last `len` bytes of a filled slot have to be sealed.
    pub(super) fn note_unsealed(&mut self, index: usize, len: usize, unsealed: Unsealed<'_>) {
        let filling = &mut self.filled[index];
        let Unsealed { key, front } = unsealed;
        let (from, to) = (filling.len - len, filling.len);
        let Content::Datagrams { segment_size, segments, .. } = filling.content else { return };
        if self.boss.is_none() {
            if let Some(bytes) = filling.bytes(&self.slab, from, len) {
                unsealed.seal(bytes);
            }
            return;
        }
        match &mut filling.unsealed {
            Some(messages)
                if messages.to == from && messages.front == front && Arc::ptr_eq(&messages.key, key) =>
            {
                messages.to = to;
            }
            _ => {
                filling.seal(&self.slab);
                filling.unsealed = Some(Messages { key: key.clone(), from, to, segment_size, front });
            }
        }
        let is_full = len < segment_size || segments == SEGMENTS_MAX || to + segment_size > BYTES_MAX;
        if is_full && let Some(before) = self.full.replace(index) {
            self.hand_over(before);
        }
    }

    /// Has a crypto thread seal a filled slot, if it is worth that.
    fn hand_over(&mut self, index: usize) {
        let (Some(boss), filling) = (&mut self.boss, &mut self.filled[index]) else { return };
        let worth_it = |messages: &mut Messages| messages.bytes() >= HANDED_MIN && boss.may_hand_over();
        let Some(messages) = filling.unsealed.take_if(worth_it) else { return };
        match std::mem::replace(&mut filling.memory, Memory::Away(usize::MAX)) {
            Memory::Here(slot) => {
                filling.memory = Memory::Away(slot.index());
                boss.seal(&self.slab, slot, messages);
            }
            away @ Memory::Away(_) => filling.memory = away,
        }
    }

    /// Closes every slot: [`Staging::take_sealed`] returns them.
    pub fn close(&mut self) {
        if self.filled.is_empty() {
            return;
        }
        self.open_sockets = [0; OPEN_SOCKET_SLOTS];
        self.last = None;
        self.full = None;
        self.open_devices.clear();
        for filling in &mut self.filled {
            if let Content::Device { segments, superpacket, .. } = &mut filling.content
                && let Some(superpacket) = superpacket.take()
                && let Memory::Here(slot) = &mut filling.memory
            {
                *segments = superpacket.segments();
                filling.len = superpacket.finish(self.slab.bytes(slot));
            }
            debug_assert!(filling.len <= SLOT_LEN);
        }
        if self.boss.is_some() {
            // Where nobody is at work, the last one is for the loop: it would only wait for it.
            let is_here = |filling: &Filling| filling.unsealed.is_some();
            let last = self.filled.iter().rposition(is_here).unwrap_or(0);
            let end = if self.leaving.is_empty() { last } else { self.filled.len() };
            (0..end).for_each(|index| self.hand_over(index));
        }
        self.leaving.extend(self.filled.drain(..));
    }

    /// Moves closed slots to `out`, in order for each port: those that can leave. Where none can yet, and more than `behind` are
    /// there, it helps with the sealing or waits. `false` when there are none.
    ///
    /// # Errors
    /// When the crypto threads do nothing.
    pub fn take_sealed(&mut self, behind: usize, out: &mut Vec<Filled>) -> Result<bool, Stalled> {
        let mut naps = 0;
        while naps < Boss::NAPS_MAX {
            while let Some(slot) = self.boss.as_ref().and_then(Boss::take_sealed) {
                let index = slot.index();
                self.back[index] = Some(slot);
            }
            let before = out.len();
            self.take_those_that_can_leave(out);
            if out.len() > before || self.leaving.len() <= behind {
                return Ok(out.len() > before);
            }
            match self.leaving.iter_mut().find(|filling| filling.unsealed.is_some()) {
                Some(filling) => filling.seal(&self.slab),
                None => naps += self.boss.as_mut().map_or(0, |boss| usize::from(boss.help_to_seal())),
            }
        }
        Err(Stalled)
    }

    /// The closed slots behind none of their port that is still with a crypto thread.
    fn take_those_that_can_leave(&mut self, out: &mut Vec<Filled>) {
        self.held_up.clear();
        let mut index = 0;
        while let Some(filling) = self.leaving.get_mut(index) {
            let port = filling.content.port();
            if !self.held_up.contains(&port) {
                if let Some(slot) = filling.sealed(&self.slab, &mut self.back)
                    && let Some(Filling { len, content, .. }) = self.leaving.remove(index)
                {
                    out.push(Filled { slot, len, order: out.len() as u32, content });
                    continue;
                }
                self.held_up.push(port);
            }
            index += 1;
        }
    }
}
