//! What tests compare before and after.

use super::Noise;

impl Noise {
    /// Sessions and what passed under them, in words. boringtun keeps its replay window to itself, but says how many messages
    /// it took and how many it missed.
    pub fn picture(&self) -> String {
        let (_, sent, received, loss, _) = self.tunn.stats();
        format!("{:?} {:?} {sent} {received} {loss}", self.sessions, self.current)
    }

    /// Pretends that `sent` messages have left under the current session.
    pub fn set_sent(&mut self, sent: u64) {
        let current = self.current;
        self.session_mut(current).expect("a session").next_counter = sent;
    }
}
