//! What tests compare before and after.

use super::Noise;

impl Noise {
    /// Sessions and what passed under them, handshakes under way and what was heard last, in words.
    pub fn picture(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{:?}", self.heard);
        let Some(state) = &self.state else {
            return text;
        };
        let pending: Vec<_> = state.pending.iter().flatten().map(|pending| pending.local).collect();
        let current = state.sessions.current().map(|session| session.origin.local);
        write!(text, " {pending:?} {current:?}").expect("memory");
        for session in state.sessions.iter() {
            let (origin, window) = (&session.origin, session.window.digest());
            write!(text, "\n{origin:?} {} {} {window:x?}", session.confirmed, session.sent).expect("memory");
        }
        text
    }

    /// Pretends that `sent` messages have left under the current session.
    pub fn set_sent(&mut self, sent: u64) {
        let state = self.state.as_mut().expect("a session");
        state.sessions.current_mut().expect("a session").sent = sent;
    }

    /// Whether there is anything beyond the keys and what was heard last.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }
}
