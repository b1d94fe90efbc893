//! What is packaged with `towpath`: manual pages and completions made from the flags, the unit for systemd, the Debian package.
//!
//! `TOWPATH_UPDATE=1 cargo test -p dataplane --test packaging` writes pages and completions anew.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/generated.rs"]
mod generated;
#[path = "support/left_out.rs"]
mod left_out;
#[path = "support/tunnel_names.rs"]
mod tunnel_names;
#[path = "support/unit.rs"]
mod unit;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap_complete::Shell;
use dataplane::cli;
use debian::{Overlay, contents, errors, package};
use left_out::left_out;
use unit::{allowed_calls, call_groups, calls_in, run};

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
    let mut pages =
        generated::pages(cli::command(), NAME, "8", concat!("towpath ", env!("CARGO_PKG_VERSION")));
    let program = cli::command();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    for ((_, page), command) in pages.iter_mut().zip(commands) {
        *page = with_values(&String::from_utf8(std::mem::take(page)).unwrap(), command).into_bytes();
    }
    pages[0].1.extend_from_slice(MORE.as_bytes());
    pages
}

/// The generator leaves the values of flags out of the synopsis.
fn with_values(page: &str, command: &clap::Command) -> String {
    let mut page = page.to_owned();
    for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
        let (Some(long), Some(names)) = (argument.get_long(), argument.get_value_names()) else { continue };
        let flag = format!("\\fB\\-\\-{}\\fR]", long.replace('-', "\\-"));
        let value = format!("\\fI<{}>\\fR", names[0].as_str().replace('-', "\\-"));
        page = page.replacen(&flag, &format!("{} {value}]", flag.trim_end_matches(']')), 1);
    }
    page
}

/// Sections of the program's page that flags do not tell of.
const MORE: &str = r#".SH ENVIRONMENT
.TP
.B RUST_LOG
what is logged, for example info,dataplane=debug
.TP
.B RUNTIME_DIRECTORY
where towpath up writes down what it does to the host, in place of /run/towpath
.TP
.BR LOG_LEVEL ", " WG_TUN_FD ", " WG_UAPI_FD ", " WG_PROCESS_FOREGROUND
of towpath INTERFACE, as wireguard\-go has them
.SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT ", " SIGHUP
end towpath up in order, SIGHUP unless it was ignored at the start: hooks are run and the host is as it was. A second one ends the hook that runs.
.SH EXIT STATUS
.TP
.B 0
all is well; also after a signal, or when the interface was deleted
.TP
.B 1
the system or another program refused something, or no such tunnel runs
.TP
.B 2
a mistake in flags, a configuration, a key or a ticket
"#;

/// The completions, by the names that the shells look for.
fn completions() -> Vec<(PathBuf, Vec<u8>)> {
    let of = |shell: Shell, file: &str, with_names: fn(&str) -> String| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut cli::command(), NAME, &mut text);
        let text = with_names(&String::from_utf8(text).unwrap());
        (PathBuf::from(format!("completions/{file}")), text.into_bytes())
    };
    vec![
        of(Shell::Bash, &format!("{NAME}.bash"), tunnel_names::in_bash),
        of(Shell::Zsh, &format!("_{NAME}"), tunnel_names::in_zsh),
        of(Shell::Fish, &format!("{NAME}.fish"), tunnel_names::in_fish),
    ]
}

#[test]
fn man_pages_and_completions_are_those_of_the_flags() {
    let files = man_pages().into_iter().chain(completions());
    generated::are_up_to_date(&packaging(), files, ["dataplane", "packaging"]);
}

#[test]
fn every_flag_is_on_its_page_and_every_key_on_that_of_the_file() {
    let pages = man_pages();
    let seen = generated::flags_on_pages(&cli::command(), &pages);
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

#[test]
fn the_man_pages_are_read_without_a_warning() {
    let pages = man_pages().into_iter().map(|(name, _)| name).chain([PathBuf::from("man/towpath.conf.5")]);
    generated::are_read_without_a_warning(pages.map(|name| packaging().join(name)));
}

#[test]
fn bash_completes_flags_and_sub_commands() {
    let complete = |words: &str| generated::completed(&packaging(), NAME, words);
    let Some(sub) = complete("towpath dow") else { return };
    assert_eq!(sub, "down\n");
    assert_eq!(complete("towpath up --busy").unwrap(), "--busy-poll\n");
    assert_eq!(complete("towpath up --gso o").unwrap(), "on off\n");
}

#[test]
fn running_tunnels_are_offered_where_one_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let sockets = folder.path().join("sockets");
    fs::create_dir_all(folder.path().join("completions")).unwrap();
    fs::create_dir(&sockets).unwrap();
    let ours = |name: &str| {
        let place = folder.path().join("completions").join(name);
        let text = text(&format!("completions/{name}"));
        fs::write(&place, text.replace(tunnel_names::SOCKETS, sockets.to_str().unwrap())).unwrap();
        place
    };
    let (_, zsh, fish) = (ours("towpath.bash"), ours("_towpath"), ours("towpath.fish"));
    let complete = |words: &str| generated::completed(folder.path(), NAME, words);
    let Some(none) = complete("towpath show ''") else { return };
    assert_eq!(none, "\n");
    fs::write(sockets.join("office.sock"), "").unwrap();
    fs::write(sockets.join("oslo.v6.sock"), "").unwrap();
    for words in ["show o", "ticket o", "down o", "reload o", "strip o", "show --json o"] {
        assert_eq!(complete(&format!("towpath {words}")).unwrap(), "office oslo.v6\n", "{words}");
    }
    assert_eq!(complete("towpath show of").unwrap(), "office\n");
    assert_eq!(complete("towpath show --js").unwrap(), "--json\n", "flags as before");
    assert_eq!(complete("towpath up --io u").unwrap(), "uring\n");

    // Of the other shells, what can be said without a terminal.
    let (zsh, fish) = (zsh.display(), fish.display());
    let asks = [
        ("fish", format!("source '{fish}'; complete -C 'towpath show o'")),
        // The system that these belong to is only there at a prompt.
        (
            "zsh",
            format!("compdef() {{ }}; compadd() {{ print -l ${{(P)2}} }}; source '{zsh}'; _towpath_tunnels"),
        ),
    ];
    for (shell, ask) in asks {
        let Some(output) = run(shell, &["-c", &ask], shell) else { continue };
        assert_eq!(String::from_utf8_lossy(&output.stdout), "office\noslo.v6\n", "{shell}: {output:?}");
    }
}

/// What the unit file says under a name, line by line.
fn of_unit(name: &str) -> Vec<String> {
    unit::lines_of(&text("towpath@.service"), name)
}

#[test]
fn the_unit_file_is_good_and_sandboxed() {
    // The program is where the unit has it only on a machine that the package is installed on.
    let unit = text("towpath@.service").replace("/usr/bin/towpath", env!("CARGO_BIN_EXE_towpath"));
    let Some(level) = unit::exposure(&unit, "towpath@wg0.service") else { return };
    assert!(level <= 2.8, "{level}");
}

#[test]
fn a_mistake_is_not_tried_again_and_names_are_waited_for() {
    assert_eq!(of_unit("Restart"), ["on-failure"]);
    assert_eq!(of_unit("RestartPreventExitStatus"), ["2"]);
    assert_eq!(of_unit("TimeoutStartSec"), ["infinity"]);
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
    let allowed = allowed_calls(&text("towpath@.service"), &groups);
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
        let calls = calls_in(&folder.path().join("trace"));
        for known in ["execve", "bind", "ioctl", "setsockopt", "openat"] {
            assert!(calls.contains(known), "{known} is not in {calls:?}");
        }
        let missing: Vec<_> = calls.difference(&allowed).collect();
        assert!(missing.is_empty(), "{io}: {missing:?}");
    }
}

/// What the README says for systems without the package, with another root for every path: then program, unit, key and
/// configuration are where the unit starts them, nobody else can read the last two, and there is a tunnel.
#[test]
fn the_installation_of_the_readme_makes_what_the_unit_starts() {
    if lacks_root() || run("ip", &["-V"], "iproute2").is_none() {
        return;
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(workspace.join("dataplane/README.md")).unwrap();
    let (_, steps) = readme.split_once("**Without the package**").unwrap();
    let (steps, _) = steps.split_once("\nFor a program elsewhere").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display();
    let mut services = Vec::new();
    for command in steps.lines().filter_map(|line| line.strip_prefix("sudo ")) {
        if let Some(service) = command.strip_prefix("systemctl ") {
            services.push(service);
            continue;
        }
        let inside = command.replace(" /", &format!(" {root}/")).replace("target/release/towpath", TOWPATH);
        let output = Command::new("sh").args(["-ec", &inside]).current_dir(workspace).output().unwrap();
        assert!(output.status.success(), "{inside}: {output:?}");
    }
    assert_eq!(services, ["daemon-reload", "enable --now towpath@wg0"]);
    let inside = |path: &str| folder.path().join(path.trim_start_matches('/'));
    let unit = fs::read_to_string(inside("/etc/systemd/system/towpath@.service")).unwrap();
    assert_eq!(unit, text("towpath@.service"));
    let mode = |path: &str| fs::metadata(inside(path)).unwrap().permissions().mode() & 0o777;
    let modes = ["/etc/towpath", "/etc/towpath/wg0.key", "/etc/towpath/wg0.conf"].map(mode);
    assert_eq!(modes, [0o700, 0o600, 0o600]);

    let [start] = &of_unit("ExecStart")[..] else { panic!("one command") };
    // By a name alone it looks at this machine's own /etc.
    let start = format!("{root}{}", start.replace("%i", &format!("{root}/etc/towpath/wg0.conf")));
    let script = format!(
        "{start} > log 2>&1 & trap 'kill $! 2> /dev/null || true' EXIT
         for turn in $(seq 3000); do grep -q ' ready ' log && break; sleep 0.02; done
         ip addr show wg0; {root}/usr/bin/towpath down wg0; wait $!; trap - EXIT"
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-ec", &script])
        .current_dir(folder.path())
        .env("RUNTIME_DIRECTORY", inside("/run"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = fs::read_to_string(inside("/log")).unwrap();
    assert!(output.status.success() && errors(&output).contains("10.9.0.1/24"), "{output:?}: {log}");
    assert!(log.contains("ledger") && !log.contains("can be read by everyone"), "{log}");
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
