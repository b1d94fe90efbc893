//! `towpath-lab lab` as a person uses it: hosts that come, can be entered, and go with everything in them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use super::left_out::left_out;
use super::{program, wait_for};

fn lab(runtime: &Path, arguments: &[&str]) -> Command {
    let mut command = program();
    command.arg("lab").args(arguments).env("XDG_RUNTIME_DIR", runtime).env("TMPDIR", runtime);
    command.env("PATH", std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin").stdin(Stdio::null());
    command
}

/// Exit status, output, errors. `None`, and said, where this machine does not let it.
fn done(mut command: Command) -> Option<(i32, String, String)> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    for lack in
        ["user namespaces are forbidden", "mounts are forbidden", "/dev/net/tun", "apt-get install nftables"]
    {
        if status.code() == Some(5) && stderr.contains(lack) {
            left_out(stderr.trim());
            return None;
        }
    }
    Some((status.code().unwrap(), stdout, stderr))
}

fn succeeds(command: Command) -> Option<String> {
    let (code, stdout, stderr) = done(command)?;
    assert_eq!(code, 0, "{stdout}{stderr}");
    Some(stdout)
}

/// A scenario of two hosts and a reflector, with these claims.
fn small(directory: &Path, claims: &str) -> String {
    let text = format!(
        "[host.a]\n[host.b]\n\n[[link]]\nends = [\"a\", \"b\"]\naddresses = [\"10.1.0.1/24, fd01::1/64\", \"10.1.0.2/24, fd01::2/64\"]\n\n\
         [[program]]\nhost = \"b\"\nrun = \"towpath-lab reflect [fd01::2]:7 --loss 10%\"\nready = \"reflecting\"\n\n\
         [load]\nhost = \"a\"\nrun = \"udp [fd01::2]:7 --rate 1kpps --duration 300ms --warmup 0s --drain 200ms --lateness-limit 10s\"\nhold = {claims}\n"
    );
    let path = directory.join("small.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_demo_s_network_is_there_until_it_is_taken_down() {
    let directory = tempfile::tempdir().unwrap();
    let lab = |arguments: &[&str]| lab(directory.path(), arguments);
    let Some(text) = succeeds(lab(&["up", "demo"])) else { return };
    assert!(text.contains("towpath-lab lab exec a\n") && text.contains("lab down demo"), "{text}");

    let looked =
        succeeds(lab(&["exec", "a", "sh", "-c", "echo on $TOWPATH_LAB_HOST; cat /proc/net/dev"])).unwrap();
    assert!(
        looked.starts_with("on a\n") && looked.contains(" a-b:") && looked.contains("lab-a:"),
        "{looked}"
    );
    let load = [
        "exec",
        "a",
        "towpath-lab",
        "run",
        "tunnel",
        "10.72.0.2:7007",
        "--rate",
        "200pps",
        "--duration",
        "300ms",
    ];
    let (code, stdout, stderr) = done(lab(&load)).unwrap();
    assert!((code == 0 || code == 4) && stdout.contains("account: intended "), "{stdout}{stderr}");
    let (code, _, stderr) = done(lab(&["up", "demo"])).unwrap();
    assert!(code == 5 && stderr.contains("lab down demo"), "{code} {stderr}");
    let (code, _, stderr) = done(lab(&["exec", "c", "true"])).unwrap();
    assert!(code == 2 && stderr.contains("it has a, b, relay"), "{code} {stderr}");

    // A shell's program goes on when the keeper is killed, and the namespaces with it.
    let script = "echo inside; exec sleep 1000";
    let mut inside = lab(&["exec", "b", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(inside.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "inside\n");
    let home = directory.path().join("towpath-lab/demo");
    let up: Value = serde_json::from_str(&std::fs::read_to_string(home.join("hosts.json")).unwrap()).unwrap();
    let keeper = Pid::from_raw(up["keeper"].as_i64().unwrap() as i32).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    wait_for("the keeper to end", || {
        test_kill_process(keeper).is_err()
            || std::fs::read(format!("/proc/{}/environ", keeper.as_raw_nonzero()))
                .is_ok_and(|text| text.is_empty())
    });
    let (code, _, stderr) = done(lab(&["exec", "a", "true"])).unwrap();
    assert!(code == 5 && stderr.contains("lab down demo"), "{code} {stderr}");
    let text = succeeds(lab(&["down"])).unwrap();
    assert!(text.contains("lab demo is down"), "{text}");
    wait_for("the program inside to end", || inside.try_wait().unwrap().is_some());
    assert!(!home.exists());
    let mark = home.display().to_string();
    assert_eq!(super::processes_with(&mark), Vec::<String>::new());
    let (code, _, stderr) = done(lab(&["down"])).unwrap();
    assert!(code == 5 && stderr.contains("no lab is up"), "{code} {stderr}");
}

#[test]
fn two_labs_and_their_hosts_share_no_sockets_of_wg_and_no_name_servers() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = small(directory.path(), "[]");
    let lab = |arguments: &[&str]| lab(directory.path(), arguments);
    let Some(_) = succeeds(lab(&["up", &scenario, "--name", "one"])) else { return };
    succeeds(lab(&["up", &scenario, "--name", "two"])).unwrap();
    let inside =
        |name: &str, script: &str| succeeds(lab(&["exec", "--lab", name, "a", "sh", "-c", script])).unwrap();
    let of_host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let sockets = |name: &str| inside(name, "test ! -d /run/wireguard || ls /run/wireguard");
    assert_eq!((sockets("one").as_str(), sockets("two").as_str()), ("", ""), "none of the host's");
    let write = "if test -d /run/wireguard; then echo x > /run/wireguard/lab0.sock; fi; \
                 if test -e /etc/resolv.conf; then echo nameserver 192.0.2.9 >> /etc/resolv.conf; fi; \
                 cat /etc/resolv.conf; pwd";
    let text = inside("one", write);
    let here = std::env::current_dir().unwrap();
    assert!(text.ends_with(&format!("{}\n", here.display())), "{text}");
    assert!(text.contains("192.0.2.9") || of_host.is_empty(), "{text}");
    assert_eq!(sockets("two"), "");
    assert_eq!(inside("two", "cat /etc/resolv.conf 2> /dev/null || true"), of_host);
    assert!(!Path::new("/run/wireguard/lab0.sock").exists());
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), of_host);
    // Another host of the same lab has its own; another program on the same host has the same.
    let there = "test ! -d /run/wireguard || ls /run/wireguard; cat /etc/resolv.conf 2> /dev/null || true";
    assert_eq!(succeeds(lab(&["exec", "--lab", "one", "b", "sh", "-c", there])).unwrap(), of_host);
    assert_eq!(sockets("one").trim(), if Path::new("/run/wireguard").is_dir() { "lab0.sock" } else { "" });
    for name in ["one", "two"] {
        succeeds(lab(&["down", name])).unwrap();
    }
}

#[test]
fn a_lab_that_cannot_be_made_says_why_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = small(directory.path(), "[]");
    let text = std::fs::read_to_string(&path).unwrap().replace("[fd01::2]:7 --loss", "[fd01::3]:7 --loss");
    std::fs::write(&path, text).unwrap();
    let Some((code, _, stderr)) = done(lab(directory.path(), &["up", &path])) else { return };
    assert!(
        code == 5 && stderr.contains("towpath-lab on b ended") && stderr.contains("[fd01::3]:7"),
        "{code} {stderr}"
    );
    assert!(!directory.path().join("towpath-lab/small").exists());
    assert_eq!(
        super::processes_with(&directory.path().join("towpath-lab").display().to_string()),
        Vec::<String>::new()
    );
}

#[test]
fn what_a_scenario_claims_is_judged() {
    let directory = tempfile::tempdir().unwrap();
    let runs = |claims: &str| done(lab(directory.path(), &["run", &small(directory.path(), claims)]));
    let Some((code, stdout, stderr)) = runs(r#"["lost > 5", "path > 5", "duplicate = 0", "p50 < 10s"]"#)
    else {
        return;
    };
    assert!(code == 0 && stdout.matches("\nholds  ").count() == 4, "{code} {stdout}{stderr}");
    let (code, stdout, stderr) = runs(r#"["lost > 5", "lost = 0"]"#).unwrap();
    assert!(code == 1 && stdout.contains("\nFAILS  lost = 0  (found "), "{code} {stdout}{stderr}");
    let (code, _, stderr) = runs(r#"["p98 < 5ms"]"#).unwrap();
    assert!(code == 2 && stderr.contains("small.toml:16: ") && stderr.contains("p99.9"), "{code} {stderr}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the scenario is left");
}

#[test]
fn a_replay_says_that_it_makes_no_hosts() {
    let directory = tempfile::tempdir().unwrap();
    let (scenario, out) = (small(directory.path(), "[]"), directory.path().join("out"));
    let out = out.to_str().unwrap();
    let Some((code, text, errors)) = done(lab(directory.path(), &["run", &scenario, "--out", out])) else {
        return;
    };
    assert!(code == 0 || code == 4, "{code} {text}{errors}");
    let mut replay = program();
    replay.args(["replay", out]).stdin(Stdio::null());
    let (code, text, errors) = done(replay).unwrap();
    assert!(code == 5 && text.is_empty(), "nobody is at that address here: {code} {text}{errors}");
    assert!(
        errors.contains("the load alone is repeated, from here to [fd01::2]:7")
            && errors.contains(&format!("towpath-lab lab run {scenario}`")),
        "{errors}"
    );
}

#[test]
fn what_was_measured_is_printed_when_a_program_ended_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let path = small(directory.path(), r#"["lost > 5"]"#);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("--loss 10%", "--duration 100ms")).unwrap();
    let Some((code, text, errors)) = done(lab(directory.path(), &["run", &path])) else { return };
    assert!(
        code == 5
            && errors.contains("a program ended meanwhile")
            && errors.contains("towpath-lab on b ended"),
        "{code} {text}{errors}"
    );
    assert!(text.contains("account: intended ") && text.contains("\nholds  lost > 5"), "{text}{errors}");
}

#[test]
fn a_tunnel_from_behind_nat_that_drops_is_accounted_for_to_the_last_datagram() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/narrow.toml");
    let Some((code, text, errors)) = done(lab(directory.path(), &["run", scenario.to_str().unwrap()])) else {
        return;
    };
    // On a busy machine the generator may find itself too slow, which is no fault here.
    assert!(code == 0 || code == 4, "{code} {text}{errors}");
    assert!(text.matches("\nholds  ").count() == 3 && text.contains(" + a:busy "), "{text}");
}

#[test]
fn what_a_narrow_link_drops_is_in_the_account_too() {
    let directory = tempfile::tempdir().unwrap();
    let claims = r#"["a:a-b_queue_skbs > 100", "received > 20"]"#;
    let path = small(directory.path(), claims);
    // Two datagrams of 1,000 bytes pass at once and four wait; the others of a burst of 16 are dropped without a word.
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\n[[program]]", "rate = \"5Mbit\"\nburst = 3000\nqueue = 6000\n\n[[program]]");
    std::fs::write(&path, text.replace("--rate 1kpps", "--rate 1kpps --size 1000 --burst 16")).unwrap();
    let Some((code, text, errors)) = done(lab(directory.path(), &["run", &path])) else { return };
    // That the link was too narrow is no fault of the generator's.
    assert!(code == 0 || code == 4, "{code} {text}{errors}");
    assert_eq!(text.matches("\nholds  ").count(), 2, "{text}");
}
