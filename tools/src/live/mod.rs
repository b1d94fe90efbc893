//! The live view of a run in a terminal: rate, loss and latency of each second, and the verdict so far.

mod model;
mod view;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::Model;
use crate::run::RunSpec;
use crate::run::clock::monotonic_ns;
use crate::run::live::Live;

/// How long one wait for a key lasts: the view is drawn anew as often.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// A view on a thread of its own.
#[derive(Debug)]
pub struct View {
    over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl View {
    /// Takes the terminal over and shows the run that `spec` is about to make: set [`RunSpec::live`] to `live` and
    /// [`RunSpec::stop`] first. `q` and Ctrl-C set the latter.
    ///
    /// # Errors
    /// When the terminal cannot be drawn on.
    pub fn start(spec: &RunSpec, live: Arc<Live>, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().context("cannot draw on this terminal")?;
        let mut model = Model::new(spec);
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        // Owns the terminal; ends when `over` is set.
        let thread = thread::Builder::new()
            .name("lab-live".to_owned())
            .spawn(move || show(terminal, &mut model, &live, &stop, &is_over))
            .inspect_err(|_| ratatui::restore())
            .context("cannot start the thread of the live view")?;
        Ok(Self { over, thread })
    }

    /// Ends the view and gives the terminal back.
    ///
    /// # Errors
    /// When the terminal could not be drawn on meanwhile.
    pub fn end(self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Release);
        let outcome = self.thread.join();
        ratatui::restore();
        outcome.map_err(|_| anyhow::anyhow!("the live view failed"))?.context("cannot draw on this terminal")
    }
}

fn show(
    mut terminal: DefaultTerminal,
    model: &mut Model,
    live: &Live,
    stop: &AtomicBool,
    over: &AtomicBool,
) -> io::Result<()> {
    while !over.load(Ordering::Acquire) {
        model.look(live, stop.load(Ordering::Relaxed), monotonic_ns());
        terminal.draw(|frame| view::draw(frame, model))?;
        if event::poll(KEY_WAIT)? && ends(&event::read()?) {
            stop.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Whether the run is to end.
fn ends(event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return false };
    // In raw mode the terminal makes no signal of Ctrl-C.
    let is_interrupt = *code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL);
    *kind != KeyEventKind::Release && (is_interrupt || matches!(code, KeyCode::Char('q') | KeyCode::Esc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_end_the_run_and_nothing_else_does() {
        let press = |code, modifiers| ends(&Event::Key(KeyEvent::new(code, modifiers)));
        assert!(press(KeyCode::Char('q'), KeyModifiers::NONE) && press(KeyCode::Esc, KeyModifiers::NONE));
        assert!(press(KeyCode::Char('c'), KeyModifiers::CONTROL));
        for code in [KeyCode::Char('c'), KeyCode::Down, KeyCode::Enter] {
            assert!(!press(code, KeyModifiers::NONE), "{code:?}");
        }
        assert!(!ends(&Event::Resize(10, 10)));
    }
}
