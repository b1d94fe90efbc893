//! What is packaged with `towpath`: manual pages and completions made from the flags, the unit for systemd, the Debian package.
//!
//! `TOWPATH_UPDATE=1 cargo test -p dataplane --test packaging` writes pages and completions anew.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/left_out.rs"]
mod left_out;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap_complete::Shell;
use clap_mangen::Man;
use dataplane::cli;
use debian::{Overlay, contents, errors, package};
use left_out::left_out;

const NAME: &str = "towpath";
const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");
const UNIT: &str = "usr/lib/systemd/system/towpath@.service";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

fn text(name: &str) -> String {
    fs::read_to_string(packaging().join(name)).unwrap()
}

/// The page of the program and those of its sub-commands, by the names of their files.
fn man_pages() -> Vec<(PathBuf, Vec<u8>)> {
    // There is no page for `help`, so none is named.
    let mut program = cli::command().disable_help_subcommand(true);
    program.build();
    let page = |command: clap::Command, name: &str| {
        let mut text = Vec::new();
        // No date: the page is the same until the flags change.
        let man = Man::new(command.display_name(name))
            .title(name.to_uppercase())
            .section("8")
            .date("")
            .source(concat!("towpath ", env!("CARGO_PKG_VERSION")));
        man.render(&mut text).unwrap();
        // The generator knows of no other section for the pages of sub-commands.
        let text = String::from_utf8(text).unwrap().replace("(1)", "(8)");
        (PathBuf::from(format!("man/{name}.8")), text.into_bytes())
    };
    let subs = program.get_subcommands();
    let subs = subs.map(|sub| page(sub.clone(), &format!("{NAME}-{}", sub.get_name()))).collect::<Vec<_>>();
    std::iter::once(page(program.clone(), NAME)).chain(subs).collect()
}

/// The completions, by the names that the shells look for.
fn completions() -> Vec<(PathBuf, Vec<u8>)> {
    let of = |shell: Shell, file: &str| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut cli::command(), NAME, &mut text);
        (PathBuf::from(format!("completions/{file}")), text)
    };
    vec![
        of(Shell::Bash, &format!("{NAME}.bash")),
        of(Shell::Zsh, &format!("_{NAME}")),
        of(Shell::Fish, &format!("{NAME}.fish")),
    ]
}

#[test]
fn man_pages_and_completions_are_those_of_the_flags() {
    for (name, expected) in man_pages().into_iter().chain(completions()) {
        let path = packaging().join(name);
        if std::env::var_os("TOWPATH_UPDATE").is_some_and(|value| value == "1") {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &expected).unwrap();
        }
        let there = fs::read(&path).unwrap_or_default();
        assert!(
            there == expected,
            "{} is not what the flags say; run: TOWPATH_UPDATE=1 cargo test -p dataplane --test packaging",
            path.display()
        );
    }
}

#[test]
fn every_flag_is_on_its_page_and_every_key_on_that_of_the_file() {
    let pages = man_pages();
    let program = cli::command();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    let mut seen = 0;
    for (command, (name, page)) in commands.zip(&pages) {
        // In a man page, a hyphen that is to be one is written with a backslash.
        let page = String::from_utf8(page.clone()).unwrap().replace('\\', "");
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("--{flag}")), "--{flag} is not in {}", name.display());
            seen += 1;
        }
    }
    assert!(seen > 10 && pages.len() >= 6, "only {seen} flags on {} pages", pages.len());

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wg0.conf");
    let page = text("man/towpath.conf.5");
    let mut seen = 0;
    let peer = "[Interface]\n[Peer]\n";
    for lines in ["[Interface]\n", "[Interface]\n#towpath: ", peer, &format!("{peer}#towpath: ")] {
        fs::write(&file, format!("{lines}None = x\n")).unwrap();
        let error = dataplane::config::Config::load(&file).unwrap_err().problem;
        let known = error.split_once("known are ").or(error.split_once("known is ")).unwrap().1;
        for key in known.split([',', ' ']).filter(|key| !matches!(*key, "" | "and")) {
            assert!(page.contains(key), "{key} is not in towpath.conf.5");
            seen += 1;
        }
    }
    assert!(seen > 15, "only {seen} keys");
}

/// Runs a program that reads one of these files; `None` when it is not there.
fn run(name: &str, arguments: &[&str], install: &str) -> Option<Output> {
    let output = Command::new(name).args(arguments).stdin(Stdio::null()).output();
    if output.is_err() {
        left_out(&format!("what {name} says of packaged files: apt-get install {install}"));
    }
    output.ok()
}

#[test]
fn the_man_pages_are_read_without_a_warning() {
    let pages: Vec<PathBuf> = man_pages().into_iter().map(|(name, _)| name).collect();
    for name in pages.into_iter().chain([PathBuf::from("man/towpath.conf.5")]) {
        let path = packaging().join(name);
        // The formatter behind man(1), with all its warnings.
        let arguments = ["-man", "-Tutf8", "-ww", "-z", path.to_str().unwrap()];
        let Some(output) = run("groff", &arguments, "groff-base") else { return };
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", path.display());
    }
}

#[test]
fn bash_completes_flags_and_sub_commands() {
    let script = packaging().join(format!("completions/{NAME}.bash"));
    let complete = |words: &str| {
        let ask = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             set -- $(complete -p {NAME}); while [ $# -gt 0 ] && [ \"$1\" != -F ]; do shift; done; \
             $2 {NAME} \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = run("bash", &["-c", &ask], "bash")?;
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(sub) = complete("towpath dow") else { return };
    assert_eq!(sub, "down\n");
    assert_eq!(complete("towpath up --busy").unwrap(), "--busy-poll\n");
    assert_eq!(complete("towpath up --gso o").unwrap(), "on off\n");
}

/// What the unit file says under a name, line by line.
fn of_unit(name: &str) -> Vec<String> {
    let unit = text("towpath@.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_unit_file_is_good_and_sandboxed() {
    // The program is where the unit has it only on a machine that the package is installed on.
    let unit = text("towpath@.service").replace("/usr/bin/towpath", env!("CARGO_BIN_EXE_towpath"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("towpath@wg0.service");
    fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap();
    let Some(verified) = run("systemd-analyze", &["verify", "--man=no", path], "systemd") else { return };
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    let judged =
        run("systemd-analyze", &["security", "--offline=true", "--no-pager", path], "systemd").unwrap();
    let text = String::from_utf8(judged.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    let level = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
    assert!(level <= 2.8, "{text}");
}

/// The groups of system calls that unit files name, as this systemd has them.
fn call_groups() -> Option<BTreeMap<String, Vec<String>>> {
    let output = run("systemd-analyze", &["syscall-filter", "--no-pager"], "systemd")?;
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let word = line.trim();
        if line.starts_with('@') {
            name = word.to_owned();
        } else if !word.is_empty() && !word.starts_with('#') {
            groups.entry(name.clone()).or_default().push(word.to_owned());
        }
    }
    Some(groups)
}

/// The system calls behind a name.
fn calls_of(name: &str, groups: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let members = groups.get(name).unwrap_or_else(|| panic!("no group {name} in {groups:#?}"));
    members.iter().flat_map(|member| calls_of(member, groups)).collect()
}

/// A configuration with everything that the program does to a host.
const WHOLE: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress = 10.9.0.1/24\n\
                     SaveConfig = true\nPreUp = true\nPostUp = ip rule; echo hook > hooks\nPreDown = ls\nPostDown = true\n\
                     [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 0.0.0.0/0\n\
                     Endpoint = 192.0.2.2:51820\n";

/// Runs the tunnel `towu` from its start to its end in a network namespace of its own, started as `start` says.
fn life(folder: &Path, start: &str) -> Output {
    let script = format!(
        "ip link set lo up; ip link add one type veth peer name two; ip addr add 192.0.2.1/24 dev one; ip link set one up
         {start} & trap 'kill $! 2> /dev/null || true' EXIT
         for turn in $(seq 3000); do grep -q hook hooks && break; sleep 0.02; done
         {TOWPATH} down towu; wait $!; trap - EXIT",
    );
    Command::new("unshare")
        .args(["--net", "bash", "-c", &script])
        .current_dir(folder)
        .env("RUNTIME_DIRECTORY", folder.join("run"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What strace has written, once it has written all of it.
fn trace(file: &Path) -> String {
    let whole = (0..500).find_map(|_| {
        let text = fs::read_to_string(file).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(10));
        // The number of the process, which strace pads to five digits.
        let first = text.split_whitespace().next()?;
        let mut lines = text.lines();
        let ended = lines.any(|line| line.starts_with(first) && line.ends_with("+++ exited with 0 +++"));
        ended.then(|| text.clone())
    });
    whole.unwrap()
}

/// The system calls in it, those of hooks included.
fn calls_in(trace: &str) -> BTreeSet<String> {
    let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let calls = trace.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
    calls.map(|(name, _)| name).filter(is_name).map(str::to_owned).collect()
}

/// What is not there for a whole life of a tunnel.
fn lacks_root() -> bool {
    let lacks = !rustix::process::geteuid().is_root() || fs::File::open("/dev/net/tun").is_err();
    if lacks {
        left_out("a tunnel within the limits of its unit: root, and /dev/net/tun (modprobe tun)");
    }
    lacks
}

#[test]
fn the_unit_file_permits_every_system_call_and_privilege_from_start_to_end() {
    let Some(groups) = call_groups() else { return };
    let filter = of_unit("SystemCallFilter").join(" ");
    let allowed: BTreeSet<String> = filter.split(' ').flat_map(|name| calls_of(name, &groups)).collect();
    if lacks_root() || run("strace", &["-V"], "strace").is_none() || run("ip", &["-V"], "iproute2").is_none()
    {
        return;
    }
    let capabilities =
        of_unit("CapabilityBoundingSet").join("").to_lowercase().replace("cap_", "+").replace(' ', ",");
    for io in ["uring", "suspend"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("towu.conf");
        fs::write(&file, WHOLE).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(folder.path().join("hooks"), "").unwrap();
        let start = format!(
            "setpriv --no-new-privs --bounding-set=-all,{capabilities} strace -D -f -q -o trace {TOWPATH} up towu.conf --io {io}"
        );
        let output = life(folder.path(), &start);
        let said = errors(&output);
        assert!(output.status.success() && said.contains("ledger"), "{said}");
        assert!(!said.contains(" WARN ") && !said.contains("towpath: "), "{said}");
        let calls = calls_in(&trace(&folder.path().join("trace")));
        for known in ["execve", "bind", "ioctl", "setsockopt", "openat"] {
            assert!(calls.contains(known), "{known} is not in {calls:?}");
        }
        let missing: Vec<_> = calls.difference(&allowed).collect();
        assert!(missing.is_empty(), "{io}: {missing:?}");
    }
}

#[test]
fn the_package_has_what_belongs_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(deb) = package(folder.path(), env!("CARGO_MANIFEST_DIR"), TOWPATH) else { return };
    let (file, executable) = ("-rw-r--r-- 0/0", "-rwxr-xr-x 0/0");
    let mut expected: BTreeMap<String, String> = [
        ("usr/bin/towpath", executable),
        (UNIT, file),
        ("usr/share/man/man5/towpath.conf.5.gz", file),
        ("usr/share/bash-completion/completions/towpath", file),
        ("usr/share/zsh/vendor-completions/_towpath", file),
        ("usr/share/fish/vendor_completions.d/towpath.fish", file),
        ("usr/share/doc/towpath/copyright", file),
        ("usr/share/doc/towpath/examples/wg0.conf", file),
        ("usr/share/doc/towpath/examples/wg-quick-towpath.conf", file),
    ]
    .map(|(name, mode)| (name.to_owned(), mode.to_owned()))
    .into();
    for (page, _) in man_pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        expected.insert(format!("usr/share/man/man8/{name}.gz"), file.to_owned());
    }
    assert_eq!(contents(&deb), expected);
    let field = |name: &str| {
        let output = Command::new("dpkg-deb").arg("-f").arg(&deb).arg(name).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((field("Package").as_str(), field("Section").as_str()), ("towpath", "net"));
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
}

#[test]
fn the_package_installs_runs_a_tunnel_and_leaves_nothing_when_it_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(deb) = package(folder.path(), env!("CARGO_MANIFEST_DIR"), TOWPATH) else { return };
    let Some(overlay) = Overlay::new() else { return };
    let copy = overlay.folder.path().join("root/tmp/towpath.deb");
    assert!(overlay.beside("cp").arg(&deb).arg(&copy).status().unwrap().success());
    let install = "export DEBIAN_FRONTEND=noninteractive; dpkg --force-unsafe-io --install /tmp/towpath.deb";
    overlay.run(&format!("dpkg --purge towpath 2> /dev/null; rm -rf /etc/towpath; {install}"));
    assert!(overlay.run("dpkg --verify towpath").is_empty(), "files are as they were packaged");
    assert_eq!(overlay.run("stat -c '%a %U' /etc/towpath"), "700 root\n");
    let units = overlay.run("ls /etc/systemd/system/multi-user.target.wants || true");
    assert!(!units.contains("towpath@"), "which tunnels there are, the administrator says: {units}");

    // What the unit starts, by the name alone.
    let [start] = &of_unit("ExecStart")[..] else { panic!("one command") };
    let start = start.replace("%i", "wg0");
    let address = "Address = 10.9.0.1/24\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs = 10.9.0.2/32";
    let said = overlay.run(&format!(
        "umask 077; towpath genkey > /etc/towpath/wg0.key
         printf '[Interface]\nPrivateKeyFile = wg0.key\n{address}\n' > /etc/towpath/wg0.conf
         unshare --net sh -ec '{start} > /tmp/log 2>&1 &
           for turn in $(seq 3000); do grep -q \" ready \" /tmp/log && break; sleep 0.02; done
           ip addr show wg0; ls /run/towpath; towpath down wg0; wait; ls /run/towpath 2>&1 || true'
         cat /tmp/log"
    ));
    assert!(said.contains("10.9.0.1/24") && said.contains("wg0@") && said.contains("ledger"), "{said}");
    assert!(said.contains("/run/towpath"), "it is gone in the end: {said}");

    // Configurations stay, and whatever else an administrator has put there.
    overlay.run("dpkg --purge towpath");
    assert_eq!(overlay.run("ls /etc/towpath"), "wg0.conf\nwg0.key\n");
    overlay.run(&format!("rm -r /etc/towpath; {install}; rm /tmp/towpath.deb; dpkg --purge towpath"));
    assert_eq!(overlay.added(), Vec::<String>::new(), "nothing is left");
}
