//! The live view of a run, in a terminal that is tmux.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::left_out::left_out;
use super::{Reflector, output};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tmux server of this test's own.
struct Terminal {
    directory: tempfile::TempDir,
}

impl Terminal {
    /// Runs a line of shell in 100 columns and 30 lines; `None` without tmux.
    fn start(line: &str) -> Option<Self> {
        let terminal = Self { directory: tempfile::tempdir().unwrap() };
        let started = terminal.tmux(&["new-session", "-d", "-x", "100", "-y", "30", line])?;
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Some(terminal)
    }

    #[expect(clippy::disallowed_methods, reason = "the test runs tmux")]
    fn tmux(&self, arguments: &[&str]) -> Option<Output> {
        let socket = self.directory.path().join("tmux");
        let mut tmux = Command::new("tmux");
        // No configuration of the machine, and a locale with the characters that are drawn.
        tmux.args(["-u", "-f", "/dev/null", "-S"]).arg(socket).args(arguments);
        tmux.env_remove("TMUX").env("LC_ALL", "C.UTF-8").output().ok()
    }

    /// Waits until the screen is as it should be; answers it.
    #[expect(clippy::disallowed_methods, reason = "a test that waits")]
    fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.tmux(&["capture-pane", "-p"]).unwrap();
            let screen = String::from_utf8_lossy(&output.stdout).into_owned();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{what}; the screen stays:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.tmux(&["kill-server"]);
    }
}

fn line<'a>(screen: &'a str, start: &str) -> Option<&'a str> {
    screen.lines().find(|line| line.trim_start().starts_with(start))
}

#[test]
fn the_live_view_shows_each_second_and_gives_the_terminal_back() {
    let reflector = Reflector::start("127.0.0.1:0");
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    let run = format!(
        "{lab} run udp {} --rate 500pps --pace sleep --duration 60s --drain 200ms",
        reflector.address
    );
    let Some(terminal) = Terminal::start(&format!("{run} --live; echo ended with $?; cat")) else {
        return left_out("the live view in a terminal: apt-get install tmux");
    };
    let screen = terminal.wait_for("two seconds", |screen| line(screen, "2 s ").is_some());
    for part in
        ["udp 127.0.0.1:", "500.0 pps, 200 B, 1 flow", "of 60 s", "p99.9", "so far: ", "q ends the run"]
    {
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
    let second = line(&screen, "2 s ").unwrap();
    // p50, p99 and p99.9 of the response, and p99.9 of the lateness.
    let times = [" ns", " µs", " ms", " s "].map(|unit| second.matches(unit).count()).iter().sum::<usize>();
    assert!(second.contains(" pps ") && times >= 4, "{second}");
    assert!(line(&screen, "all ").is_some() && screen.contains("late p99.9"), "{screen}");
    terminal.tmux(&["send-keys", "q"]).unwrap();
    // The run's table on the screen of before, and the status of an interrupted run.
    let screen = terminal.wait_for("the end", |screen| screen.contains("ended with"));
    assert!(
        screen.contains("ended with 130") && screen.contains("response (from the intended send time)"),
        "{screen}"
    );
    assert!(!screen.contains("q ends the run"), "{screen}");
    // Keys are lines again.
    terminal.tmux(&["send-keys", "still here", "Enter"]).unwrap();
    terminal.wait_for("what was typed, twice", |screen| screen.matches("still here").count() == 2);
}

#[test]
fn without_a_terminal_the_live_view_is_refused() {
    let (code, _, stderr) = output(&["run", "udp", "127.0.0.1:9", "--live"]);
    assert!(code == 2 && stderr.contains("--live"), "{code} {stderr}");
}

#[test]
fn what_takes_long_says_how_much_is_left() {
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("long.toml");
    let load = "udp 127.0.0.1:7 --rate 100pps --pace sleep --duration 60s --lateness-limit 10s";
    let text = format!(
        "[host.a]\n[[program]]\nhost = \"a\"\nrun = \"towpath-lab reflect 127.0.0.1:7\"\nready = \"reflecting\"\n\
         [load]\nhost = \"a\"\nrun = \"{load}\"\nhold = []\n"
    );
    std::fs::write(&scenario, text).unwrap();
    // Of either, the first thirtieth of the bar takes two seconds, and the rest a minute.
    for (command, name) in [
        ("calibrate --rate 100pps --pace sleep --duration 12s".to_owned(), "noise 1/5".to_owned()),
        (format!("lab run {}", scenario.display()), "long.toml".to_owned()),
    ] {
        let Some(terminal) = Terminal::start(&format!("{lab} {command}; echo ended with $?; cat")) else {
            return left_out("progress in a terminal: apt-get install tmux");
        };
        let screen = terminal.wait_for("progress, or why there is none", |screen| {
            let moves = line(screen, "[").is_some_and(|bar| bar.contains('█') || bar.contains('#'));
            moves && screen.contains(&name) || screen.contains("ended with 5")
        });
        if screen.contains("ended with 5") {
            // What forbids labs here, the tests of labs say.
            assert!(screen.contains("forbidden"), "{screen}");
            continue;
        }
        let bar = line(&screen, "[").unwrap();
        assert!(bar.contains(" % ") && bar.contains(" left  "), "{screen}");
        terminal.tmux(&["send-keys", "C-c"]).unwrap();
        terminal.wait_for("the end", |screen| screen.contains("ended with 130"));
    }
}
