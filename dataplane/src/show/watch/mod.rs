//! `towpath show --watch`: a tunnel in a terminal, looked at again every second.

mod model;
mod view;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Rect, Size};

use self::model::Model;
use super::log::Log;
use super::{INTERVAL, ShowError, client};
use crate::sys::signal::StopSignals;
use crate::uapi::status::Wanted;

/// How long one wait for a key lasts, after which signals are looked for.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// What is asked for each time: no prefixes, of which there can be very many.
const WANTED: Wanted = Wanted { allowed_ips: false, stages: true };

/// Shows a tunnel until `q`, Ctrl-C or SIGTERM. The terminal is put back in every case, a panic included.
///
/// # Errors
/// When the tunnel does not answer the first time, or the terminal cannot be drawn on. A tunnel that does not answer later may
/// come back.
pub(super) fn run(directory: &Path, name: &str, mut log: Option<&mut Log>) -> Result<(), ShowError> {
    let mut model = Model::default();
    look(&mut model, directory, name, &mut log)?;
    // Blocked before the terminal is changed: from then on they must not end the program half-way.
    let signals = StopSignals::new()?;
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, &mut model, &signals, |model| look(model, directory, name, &mut log));
    ratatui::restore();
    outcome
}

fn look(
    model: &mut Model,
    directory: &Path,
    name: &str,
    log: &mut Option<&mut Log>,
) -> Result<(), ShowError> {
    let tunnel = client::ask(directory, name, WANTED)?;
    if let Some(log) = log {
        log.write_interval(&tunnel)?;
    }
    model.update(tunnel);
    Ok(())
}

/// Draws and looks until somebody wants it to end.
fn show(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    signals: &StopSignals,
    mut look: impl FnMut(&mut Model) -> Result<(), ShowError>,
) -> Result<(), ShowError> {
    let mut due = now() + INTERVAL;
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        if !wait(model, terminal.size()?, signals, due)? {
            return Ok(());
        }
        if now() >= due {
            match look(model) {
                Ok(()) => {}
                Err(ShowError::Ask(error)) => model.fail(error.to_string()),
                Err(error) => return Err(error),
            }
            due = now() + INTERVAL;
        }
    }
}

/// Waits until `due` or until there is something to draw. `false`: it is to end.
fn wait(model: &mut Model, size: Size, signals: &StopSignals, due: Instant) -> io::Result<bool> {
    loop {
        if signals.take().is_some() {
            return Ok(false);
        }
        let left = due.saturating_duration_since(now());
        if left.is_zero() {
            return Ok(true);
        }
        if event::poll(left.min(KEY_WAIT))? {
            return Ok(act(model, Rect::from((ratatui::layout::Position::ORIGIN, size)), &event::read()?));
        }
    }
}

/// Acts on what happens in the terminal. `false`: it is to end.
fn act(model: &mut Model, screen: Rect, event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else {
        // Of another size, it is drawn again.
        return true;
    };
    if *kind == KeyEventKind::Release {
        return true;
    }
    let visible = view::visible_peers(screen);
    let page = visible.max(1).cast_signed();
    match code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        // In raw mode the terminal makes no signal of it.
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Down | KeyCode::Char('j') => model.scroll_by(1, visible),
        KeyCode::Up | KeyCode::Char('k') => model.scroll_by(-1, visible),
        KeyCode::PageDown | KeyCode::Char(' ') => model.scroll_by(page, visible),
        KeyCode::PageUp => model.scroll_by(-page, visible),
        KeyCode::Home => model.scroll = 0,
        KeyCode::End => model.scroll_by(isize::MAX, visible),
        _ => {}
    }
    true
}

#[expect(clippy::disallowed_methods, reason = "a program of its own, which waits for people")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_end_it_and_nothing_else_does() {
        let mut model = Model::default();
        let screen = Rect::new(0, 0, 80, 24);
        let mut press =
            |code, modifiers| act(&mut model, screen, &Event::Key(KeyEvent::new(code, modifiers)));
        assert!(!press(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(!press(KeyCode::Esc, KeyModifiers::NONE));
        assert!(!press(KeyCode::Char('c'), KeyModifiers::CONTROL));
        for code in [KeyCode::Char('c'), KeyCode::Down, KeyCode::PageUp, KeyCode::End, KeyCode::F(1)] {
            assert!(press(code, KeyModifiers::NONE), "{code:?}");
        }
        assert!(act(&mut model, screen, &Event::Resize(10, 10)));
    }
}
