//! Rules about the source itself: what protocol code may touch, how long a file may be, where `unsafe` lives.

use std::path::{Path, PathBuf};

/// Lines of a file without its tests, at most.
const LINES_MAX: usize = 500;

/// Protocol code: bytes and `now` in, actions out. Folders and files under the workspace's root.
const PROTOCOL: &[&str] = &[
    "dataplane/src/stun",
    "dataplane/src/turn",
    "dataplane/src/tunnel",
    "dataplane/src/offload",
    "dataplane/src/wire",
    "dataplane/src/egress/errno.rs",
    "dataplane/src/egress/staging.rs",
    "dataplane/src/egress/staging",
    "dataplane/src/crypto/aead.rs",
    "dataplane/src/egress/waiting.rs",
    "dataplane/src/egress/uring/handover.rs",
    "relay/src/server",
    "dataplane/src/stream/framing.rs",
    "dataplane/src/stream/queue.rs",
    "tools/src/reflect/plan.rs",
    "tools/src/reflect/queue.rs",
];

/// Files in those folders that may touch the world, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("dataplane/src/tunnel/app.rs", "it binds the tunnel to the driver: sockets and devices are its purpose"),
    ("dataplane/src/tunnel/app/control.rs", "likewise; it tells people the time of handshakes"),
    ("dataplane/src/tunnel/app/figures.rs", "likewise; it starts the admin thread"),
    ("dataplane/src/tunnel/app/link.rs", "likewise; it follows the interface"),
    ("dataplane/src/tunnel/app/names.rs", "likewise; it has a thread that looks names up"),
    ("dataplane/src/tunnel/app/outside.rs", "likewise; it asks the kernel for path MTUs and follows routes"),
    ("dataplane/src/tunnel/app/ports.rs", "likewise; it opens and closes sockets"),
    ("dataplane/src/tunnel/app/replies.rs", "likewise; it sends answers at once or never"),
    ("dataplane/src/tunnel/app/sleep.rs", "likewise; it has an alarm"),
    ("dataplane/src/tunnel/app/stream.rs", "likewise; it connects to relays"),
    ("dataplane/src/tunnel/app/tickets.rs", "likewise; it asks the kernel for our address"),
    ("dataplane/src/tunnel/app/status.rs", "likewise; it tells what ingress and egress have counted"),
    ("dataplane/src/tunnel/app/wake.rs", "likewise; it numbers what wakes the loop"),
    ("dataplane/src/tunnel/apart.rs", "it keeps keys out of reach in the memory of the process"),
    ("dataplane/src/tunnel/lookup.rs", "it looks names up, before there is a tunnel"),
    (
        "dataplane/src/tunnel/setup.rs",
        "it opens device and sockets and sets addresses, before the first packet",
    ),
    (
        "dataplane/src/tunnel/noise/world.rs",
        "it is the world: time stamps are of the time of day, ephemeral keys are random numbers that nothing else knows",
    ),
];

/// What protocol code must not name: clocks, sockets, threads, files, global random numbers.
const FORBIDDEN: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "std::thread",
    "std::fs",
    "std::process",
    "std::env",
    "std::os",
    "std::io",
    "getrandom",
    "thread_rng",
    "OsRng",
    "SystemRandom",
    "rustix::",
    "socket2::",
    "io_uring::",
    "tokio",
    "crate::sys::",
    "dataplane::sys::",
    "crate::ingress",
    "crate::netlink",
];

/// Names under `sys` that are data and touch nothing.
const ALLOWED: &[&str] =
    &["crate::sys::slab", "crate::sys::wide", "crate::sys::tun::Offloads", "dataplane::sys::tun::Offloads"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// A source file and its code without tests.
struct Source {
    /// Relative to the workspace's root.
    path: String,
    code: Vec<(usize, String)>,
}

/// Every Rust file under `folder`, tests and test modules left out.
fn sources(folder: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("readable");
            folders.extend(entries.map(|entry| entry.expect("entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
            found.push(read(&path));
        }
    }
    found
}

/// Files that only test builds compile: their parent declares them under `cfg(test)`.
fn is_test(path: &Path) -> bool {
    // The workspace itself may lie in a folder of that name.
    let root = root();
    let text = path.strip_prefix(&root).unwrap_or(path).to_string_lossy();
    let name = path.file_stem().expect("a name").to_string_lossy();
    if text.contains("/tests/") || name == "tests" {
        return true;
    }
    let folder = path.parent().expect("a folder");
    let parents = [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")];
    parents.iter().filter_map(|parent| std::fs::read_to_string(parent).ok()).any(|parent| {
        let declaration = format!("mod {name};");
        let mut lines = parent.lines().map(str::trim).peekable();
        let mut declared_for_tests = false;
        while let Some(line) = lines.next() {
            let next = lines.peek().copied().unwrap_or_default();
            declared_for_tests |= line == "#[cfg(test)]" && next.ends_with(&declaration);
        }
        declared_for_tests
    })
}

fn read(path: &Path) -> Source {
    let text = std::fs::read_to_string(path).expect("readable");
    let lines: Vec<&str> = text.lines().collect();
    // A test module at the end of the file: `#[cfg(test)]`, perhaps more attributes, `mod tests {`.
    let tests = lines.iter().position(|line| *line == "mod tests {").map_or(lines.len(), |module| {
        let attributes = lines[..module].iter().rev().take_while(|line| line.starts_with("#[")).count();
        module - attributes
    });
    let path = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
    let code = (1..).zip(lines[..tests].iter().map(|line| (*line).to_owned())).collect();
    Source { path, code }
}

/// The line without its comment, and without the inside of plain string literals.
fn bare(line: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        if !quoted && line[at..].starts_with("//") {
            break;
        }
        if character == '"' && previous != '\\' && previous != '\'' {
            quoted = !quoted;
        }
        if !quoted {
            out.push(character);
        }
        previous = character;
    }
    out
}

fn workspace() -> Vec<Source> {
    let all: Vec<Source> = ["dataplane", "relay", "tools", "benches"]
        .iter()
        .flat_map(|name| sources(&root().join(name).join("src")))
        .collect();
    assert!(all.len() > 40, "only {} files were found", all.len());
    all
}

/// What a line of protocol code names that it must not.
fn forbidden(line: &str) -> Option<&'static str> {
    let mut line = bare(line);
    ALLOWED.iter().for_each(|allowed| line = line.replace(allowed, ""));
    FORBIDDEN.iter().copied().find(|name| line.contains(name))
}

#[test]
fn protocol_code_touches_no_world() {
    let mut wrong = Vec::new();
    for place in PROTOCOL {
        let found = sources(&root().join(place));
        assert!(!found.is_empty(), "{place} is gone: mend the list");
        for source in found {
            if EXEMPT.iter().any(|(path, _)| *path == source.path) {
                continue;
            }
            for (number, line) in &source.code {
                if let Some(name) = forbidden(line) {
                    wrong.push(format!("{}:{number}: {name}", source.path));
                }
            }
        }
    }
    for (path, reason) in EXEMPT {
        assert!(root().join(path).is_file(), "{path} is gone, and with it the reason: {reason}");
    }
    assert!(wrong.is_empty(), "protocol code gets what it needs as arguments:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = workspace()
        .iter()
        .filter(|source| source.code.len() > LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.code.len()))
        .collect();
    assert!(long.is_empty(), "above {LINES_MAX} lines without tests:\n{}", long.join("\n"));
}

#[test]
fn unsafe_lives_in_one_folder_and_is_explained() {
    let mut wrong = Vec::new();
    for source in workspace() {
        let code: Vec<String> = source.code.iter().map(|(_, line)| bare(line)).collect();
        for (index, line) in code.iter().enumerate() {
            if !line
                .split(|character: char| !character.is_alphanumeric() && character != '_')
                .any(|word| word == "unsafe")
            {
                continue;
            }
            let above = &source.code[index.saturating_sub(8)..=index];
            if !source.path.starts_with("dataplane/src/sys/") {
                wrong.push(format!("{}:{}: unsafe belongs into dataplane/src/sys", source.path, index + 1));
            } else if !above.iter().any(|(_, line)| line.contains("SAFETY:")) {
                wrong.push(format!("{}:{}: no SAFETY comment", source.path, index + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is marked as a test in a program that has a harness of its own is left out by the compiler, without a word.
#[test]
fn a_program_with_its_own_harness_has_no_marked_tests() {
    let mut looked = 0;
    for entry in std::fs::read_dir(root().join("tools/tests/interop")).expect("readable") {
        let path = entry.expect("entry").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        assert!(!text.contains("#[test]"), "{}: list it in main.rs instead", path.display());
        looked += 1;
    }
    assert!(looked > 10, "only {looked} files were found");
}

#[test]
fn the_rules_find_what_they_look_for() {
    assert_eq!(forbidden("use std::time::Instant;"), None);
    assert_eq!(forbidden("    let now = Instant::now(); // late"), Some("Instant::now"));
    assert_eq!(forbidden("/// Reads no clock: Instant::now is for drivers."), None);
    assert_eq!(forbidden("use crate::sys::slab::Slab;"), None);
    assert_eq!(forbidden("use crate::sys::udp::UdpOptions;"), Some("crate::sys::"));
    assert_eq!(forbidden("let text = \"UdpSocket\";"), None);
    assert!(is_test(&root().join("dataplane/src/offload/tests/build.rs")));
    assert!(!is_test(&root().join("dataplane/src/offload/split.rs")));
    let waiting = read(&root().join("dataplane/src/egress/waiting.rs"));
    assert!(waiting.code.len() < 280 && !waiting.code.iter().any(|(_, line)| line.contains("#[test]")));
}
