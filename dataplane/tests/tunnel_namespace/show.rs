//! `towpath show` of a tunnel that carries packets: text, JSON, histograms, metrics, and the live view in a terminal.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use dataplane::hlog;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use super::{Cable, PATIENCE, Running, TOWPATH, echo_datagrams, start, stream};

/// Two tunnels, towpath1 and towpath2, that have carried packets; their sockets are this test's own.
struct Shown {
    cable: Cable,
    a: Running,
    b: Running,
}

impl Shown {
    fn new(test: &str, flags: &[&str]) -> Option<Self> {
        let cable = Cable::enter(test)?;
        own_sockets();
        let a = cable.configuration(1, "MTU = 1420", "Endpoint = 192.0.2.2:51820\nPersistentKeepalive = 25");
        let b = cable.configuration(2, "MTU = 1420", "");
        let b = start(&cable.b, &b, flags);
        let a = start(&cable.a, &a, flags);
        echo_datagrams(&cable, "10.99.0.1:7000", "10.99.0.2:7000");
        stream(&cable.b, &cable.a, "10.99.0.2:7001");
        Some(Self { cable, a, b })
    }

    fn stop(self) {
        for ledger in [self.a.stop(), self.b.stop()] {
            assert_eq!(ledger["unexplained"], 0, "{ledger:#}");
        }
    }
}

/// The sockets of tunnels are this test's own from here on.
pub(super) fn own_sockets() {
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program}: {status}");
}

fn show(arguments: &[&str]) -> Output {
    Command::new(TOWPATH).arg("show").args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str], status: i32) -> String {
    let output = show(arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(status), 0), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// What `towpath show --json` says of every tunnel.
pub(super) fn tunnels() -> Vec<Value> {
    stdout(show(&["--json"])).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check_json() {
    let tunnels = tunnels();
    assert_eq!(tunnels.len(), 2);
    for (tunnel, io) in tunnels.iter().zip(["uring", "uring"]) {
        assert_eq!(
            (&tunnel["io"], &tunnel["listen_port"], &tunnel["up"]),
            (&io.into(), &51_820.into(), &true.into())
        );
        let [peer] = tunnel["peers"].as_array().unwrap().as_slice() else { panic!("{tunnel:#}") };
        assert_eq!(peer["path"], "direct", "{peer:#}");
        assert!(peer["handshake_age_s"].as_f64().unwrap() < 60.0, "{peer:#}");
        assert_eq!(peer["missing_messages"], 0, "{peer:#}");
        assert_eq!(peer["allowed_ips"].as_array().unwrap().len(), 2, "{peer:#}");
        for stage in ["read", "crypto", "ring", "kernel"] {
            let times = &tunnel["stages"][stage];
            let of = |name: &str| times[name].as_u64().unwrap_or_else(|| panic!("{stage} {name}: {times}"));
            assert!(of("packets") > 0, "{stage}: {times}");
            assert!(of("p50_ns") <= of("p99_ns") && of("p99_ns") <= of("p999_ns"), "{stage}: {times}");
            assert!(of("max_ns") < 10_000_000_000, "{stage}: {times}");
        }
    }
    let of = |index: usize, name: &str| tunnels[index]["peers"][0][name].as_u64().unwrap();
    // What one end has sent, the other has received; a keepalive may be on its way between the two looks.
    for (from, to) in [(0, 1), (1, 0)] {
        assert!(of(from, "sent_packets") >= 8, "{tunnels:#?}");
        assert!(of(from, "sent_bytes").abs_diff(of(to, "received_bytes")) < 1_000, "{tunnels:#?}");
    }
    assert!(of(0, "sent_bytes") > 8 << 20);
}

fn check_text(directory: &Path) {
    let text = stdout(show(&[]));
    for expected in [
        "interface: towpath1\n  public key: ",
        "\n\ninterface: towpath2\n",
        "  private key: (hidden)\n  listening port: 51820\n",
        "  design: uring out, uring in, MTU 1420\n",
        "  endpoint: 192.0.2.2:51820\n  path: direct\n  allowed ips: 10.99.0.2/32, fd99::2/128\n  latest handshake: ",
        "  persistent keepalive: every 25 seconds\n",
        " MiB sent\n",
    ] {
        assert!(text.contains(expected), "{expected:?}: {text}");
    }
    assert_eq!(stdout(show(&["towpath2"])).matches("interface: ").count(), 1);
    assert!(refused(&["wg7"], 1).contains("no tunnel wg7 is running here: there is towpath1, towpath2"));
    assert!(refused(&["--watch"], 1).contains("name one of towpath1, towpath2"));
    assert!(refused(&["towpath1", "--watch"], 2).contains("--json"));
    let file = directory.join("towpath1.hlog");
    stdout(show(&["towpath1", "--hlog", file.to_str().unwrap()]));
    let lines = hlog::read(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let tags: Vec<_> = lines.iter().filter_map(|line| line.tag.as_deref()).collect();
    assert_eq!(tags, ["read", "crypto", "ring", "kernel"]);
    assert!(lines.iter().all(|line| line.histogram.len() > 10 && line.length_s > 0.0));
}

#[test]
fn what_a_tunnel_does_is_shown_as_text_json_and_histograms() {
    let Some(shown) = Shown::new(
        "show::what_a_tunnel_does_is_shown_as_text_json_and_histograms",
        &["--io", "uring", "--ingress", "uring"],
    ) else {
        return;
    };
    check_json();
    check_text(shown.cable.directory.path());
    shown.stop();
    assert!(refused(&[], 1).contains("no tunnel is running"));
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn totals_are_metrics_on_loopback() {
    let Some(shown) =
        Shown::new("show::totals_are_metrics_on_loopback", &["--io", "suspend", "--admin", "127.0.0.1:0"])
    else {
        return;
    };
    let lines = shown.a.lines();
    let line = lines.iter().find(|line| line["message"] == "metrics").expect("it says where");
    let address = line["address"].as_str().unwrap();
    let (metrics, health, other) = shown
        .cable
        .a
        .run(|| (get(address, "/metrics"), get(address, "/healthz"), get(address, "/status.json")));
    assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("ok\n"), "{health}");
    assert!(
        other.starts_with("HTTP/1.1 404 ") && other.ends_with("there are /metrics and /healthz\n"),
        "{other}"
    );
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    };
    assert_eq!((value("towpath_peers"), value("towpath_peers_with_session")), (1.0, 1.0));
    assert_eq!(value("towpath_design_info{io=\"suspend\",ingress=\"epoll\"}"), 1.0);
    assert!(value("towpath_sent_packets_total") > 100.0);
    assert_eq!(value("towpath_drops_total{cause=\"replay\"}"), 0.0);
    shown.stop();
}

/// `towpath show --watch` in a terminal of its own.
struct Watch {
    child: Child,
    terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl Watch {
    fn start(rows: u16, columns: u16) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        resize(&terminal, rows, columns);
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let end = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let side = || Stdio::from(end.try_clone().unwrap());
        let child = Command::new(TOWPATH)
            .args(["show", "towpath1", "--watch"])
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let (send, output) = channel();
        let mut reader = std::fs::File::from(terminal.try_clone().unwrap());
        // Ends when the last program that has the terminal open does.
        std::thread::spawn(move || {
            let mut bytes = vec![0; 16 << 10];
            while let Ok(len @ 1..) = reader.read(&mut bytes) {
                if send.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, terminal, output, screen: vt100::Parser::new(cells(rows), cells(columns), 0) }
    }

    /// Waits until the screen is as it should be; answers it.
    fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let contents = self.screen.screen().contents();
            if wanted(&contents) {
                return contents;
            }
            assert!(Instant::now() < deadline, "the screen stays:\n{contents}");
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("it has ended:\n{contents}"),
            }
        }
    }

    fn type_in(&self, keys: &[u8]) {
        rustix::io::write(&self.terminal, keys).unwrap();
    }

    /// Its exit status, when the terminal is as it was before.
    fn end(mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(500)) {
            self.screen.process(&bytes);
        }
        assert!(!self.screen.screen().alternate_screen(), "the screen of before is back");
        assert!(!self.screen.screen().hide_cursor(), "and so is the cursor");
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "keys are lines again: {modes:?}");
        status.code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A failed test must not leave it behind; after `end` there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal.as_fd(), size).unwrap();
}

/// A rate that is not zero stands in this line, as in `received 1.2 kbit/s 3 packets/s   sent …`.
fn is_moving(screen: &str) -> bool {
    let rate = |line: &str| {
        line.split_whitespace().nth(1).map(|word| word.starts_with(|digit| ('1'..='9').contains(&digit)))
    };
    screen.lines().find(|line| line.starts_with("received ")).and_then(rate) == Some(true)
}

#[test]
fn the_live_view_shows_a_peer_and_rates_and_leaves_the_terminal_as_it_was() {
    let Some(shown) =
        Shown::new("show::the_live_view_shows_a_peer_and_rates_and_leaves_the_terminal_as_it_was", &[])
    else {
        return;
    };
    let mut watch = Watch::start(24, 80);
    watch.wait_for(|screen| screen.contains("direct 192.0.2.2:51820") && screen.contains("1 peer"));
    let moving = std::thread::scope(|scope| {
        let load = scope.spawn(|| stream(&shown.cable.b, &shown.cable.a, "10.99.0.2:7001"));
        let screen = watch.wait_for(is_moving);
        load.join().unwrap();
        screen
    });
    for expected in
        ["towpath1  up ", "MTU 1420", "peer", "handshake", "time by stage", "p99.9", "crypto", "q ends"]
    {
        assert!(moving.contains(expected), "{expected:?}:\n{moving}");
    }
    assert_eq!(moving.lines().count(), 24, "{moving}");
    resize(&watch.terminal, 12, 60);
    watch.screen.screen_mut().set_size(cells(12), cells(60));
    kill_process(Pid::from_child(&watch.child), Signal::WINCH).unwrap();
    watch.wait_for(|screen| {
        screen.lines().last().is_some_and(|line| line.starts_with("q ends")) && screen.lines().count() == 12
    });
    watch.type_in(b"q");
    assert_eq!(watch.end(), Some(0));

    let mut watch = Watch::start(24, 80);
    watch.wait_for(|screen| screen.contains("1 peer"));
    kill_process(Pid::from_child(&watch.child), Signal::TERM).unwrap();
    assert_eq!(watch.end(), Some(0));

    // The tunnel goes away under it: it says so, and goes on looking.
    let mut watch = Watch::start(24, 80);
    watch.wait_for(|screen| screen.contains("1 peer"));
    shown.stop();
    watch.wait_for(|screen| screen.contains("no tunnel towpath1 is running here"));
    watch.type_in(b"\x03");
    assert_eq!(watch.end(), Some(0));
}
