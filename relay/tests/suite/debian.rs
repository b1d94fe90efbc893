//! The Debian package: what is in it, that it installs and starts on this machine's own system, and what it leaves behind.
//!
//! It is installed into an overlay over `/`, in a mount namespace that nobody else sees.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::deb::{Overlay, contents, errors, package};
use crate::harness::{Client, PASSWORD, REALM, RelayProcess, USER, program, receive, socket};
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};
use rustix::process::Signal;

const CONFIG: &str = "etc/towpath-relay/towpath-relay.toml";
const UNIT: &str = "usr/lib/systemd/system/towpath-relay.service";

#[test]
fn the_package_has_what_belongs_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(deb) = package(folder.path(), env!("CARGO_MANIFEST_DIR"), env!("CARGO_BIN_EXE_towpath-relay"))
    else {
        return;
    };
    let contents = contents(&deb);
    let (file, executable) = ("-rw-r--r-- 0/0", "-rwxr-xr-x 0/0");
    let examples = "usr/share/doc/towpath-relay/examples";
    let expected: BTreeMap<String, String> = [
        ("usr/bin/towpath-relay", executable),
        (CONFIG, file),
        (UNIT, file),
        ("usr/lib/sysusers.d/towpath-relay.conf", file),
        ("usr/share/man/man1/towpath-relay.1.gz", file),
        ("usr/share/man/man1/towpath-relay-import.1.gz", file),
        ("usr/share/man/man1/towpath-relay-status.1.gz", file),
        ("usr/share/bash-completion/completions/towpath-relay", file),
        ("usr/share/zsh/vendor-completions/_towpath-relay", file),
        ("usr/share/fish/vendor_completions.d/towpath-relay.fish", file),
        ("usr/share/doc/towpath-relay/copyright", file),
        (&format!("{examples}/towpath-relay.toml"), file),
        (&format!("{examples}/grafana-dashboard.json"), file),
        (&format!("{examples}/nftables.conf"), file),
        (&format!("{examples}/prometheus-rules.yml"), file),
    ]
    .map(|(name, mode)| (name.to_owned(), mode.to_owned()))
    .into();
    assert_eq!(contents, expected);
    let field = |name: &str| {
        let output = program("dpkg-deb").arg("-f").arg(&deb).arg(name).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((field("Package").as_str(), field("Section").as_str()), ("towpath-relay", "net"));
    assert!(field("Version").starts_with(env!("CARGO_PKG_VERSION")));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    let control = program("dpkg-deb").arg("-I").arg(&deb).arg("conffiles").output().unwrap();
    assert_eq!(String::from_utf8(control.stdout).unwrap().trim(), format!("/{CONFIG}"));
}

/// A command of the unit as systemd runs it: as its user, with its limits, and without a way to more privileges.
fn as_the_service(overlay: &Overlay, unit: &str, key: &str) -> Command {
    let one = |key| of_unit(unit, key).join(" ");
    let mut command = overlay.beside("prlimit");
    // The unit's units are those of systemd, powers of 1024.
    let locked = one("LimitMEMLOCK").replace('M', "000000");
    // The machine's own limits, where those are lower: only another privilege could raise them.
    let own = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum.unwrap_or(u64::MAX);
    let locked = locked.parse::<u64>().unwrap().min(own);
    command.args([format!("--memlock={locked}"), format!("--core={}", one("LimitCORE"))]);
    assert_eq!(one("NoNewPrivileges"), "yes");
    command.arg("chroot").arg(overlay.folder.path().join("root"));
    command.args(["setpriv", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]);
    command.args([format!("--reuid={}", one("User")), format!("--regid={}", one("Group"))]);
    command.args(of_unit(unit, key));
    command
}

/// The words of a line of the unit file, its program first.
fn of_unit(unit: &str, key: &str) -> Vec<String> {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

/// Asks for the own address, as a client without credentials.
fn binding(relay: std::net::SocketAddr) {
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([7; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    let socket = socket();
    socket.send_to(&buffer, relay).unwrap();
    let (reply, from) = receive(&socket);
    let message = Message::parse(&reply).unwrap();
    assert_eq!((message.class(), from), (Class::Success, relay));
    assert_eq!(message.xor_mapped_address().unwrap(), Some(socket.local_addr().unwrap()));
}

#[test]
fn the_package_installs_starts_and_leaves_nothing_when_it_is_purged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(deb) = package(folder.path(), env!("CARGO_MANIFEST_DIR"), env!("CARGO_BIN_EXE_towpath-relay"))
    else {
        return;
    };
    let Some(overlay) = Overlay::new() else { return };
    let (root, copy) = (overlay.folder.path().join("root"), "/tmp/towpath-relay.deb");
    let status = overlay.beside("cp").arg(&deb).arg(root.join(&copy[1..])).status().unwrap();
    assert!(status.success());
    overlay.run("export DEBIAN_FRONTEND=noninteractive; dpkg --purge towpath-relay 2>/dev/null; dpkg --force-unsafe-io --install /tmp/towpath-relay.deb");
    assert!(overlay.run("dpkg --verify towpath-relay").is_empty(), "files are as they were packaged");
    assert_eq!(
        overlay.run("stat -c '%a %U %G' /etc/towpath-relay/users"),
        "600 towpath-relay towpath-relay\n"
    );
    assert!(overlay.run("ls /etc/systemd/system/multi-user.target.wants").contains("towpath-relay.service"));

    assert!(overlay.added().len() > 10, "{:?}", overlay.added());

    let unit = overlay.run(&format!("cat /{UNIT}"));
    let check = as_the_service(&overlay, &unit, "ExecStartPre").output().unwrap();
    assert!(check.status.success() && errors(&check).contains("# 0 users"), "{}", errors(&check));
    assert!(!errors(&check).contains("warning"), "nothing in the file is without effect: {}", errors(&check));
    let mut command = as_the_service(&overlay, &unit, "ExecStart");
    command.args(["--listen", "127.0.0.1:0", "--admin", "off", "--realm", REALM]);
    let relay = RelayProcess::spawn(command);
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).unwrap();
    assert!(status.contains("Uid:\t") && !status.contains("Uid:\t0\t"), "{status}");
    binding(relay.listen[0]);
    assert!(relay.before_ready().contains("there are no users"), "{}", relay.before_ready());
    assert!(!relay.before_ready().contains("not confined"), "{}", relay.before_ready());

    // A user is added by root, and the unit's own command makes the relay read the file again.
    overlay.run(&format!("echo {USER}:{PASSWORD} >> /etc/towpath-relay/users"));
    let reload = of_unit(&unit, "ExecReload").join(" ");
    let told = overlay.command("sh").args(["-c", &reload]).env("MAINPID", relay.id().to_string()).status();
    assert!(told.unwrap().success(), "{reload}");
    assert!(relay.wait_for("the configuration ").contains("in force"), "{}", relay.seen());
    let mut client = Client::new(relay.listen[0]);
    client.allocate();
    // It drains as long as the file says: for ten minutes, unless everybody has gone.
    relay.signal(Signal::TERM);
    let draining = relay.wait_for("draining");
    assert!(draining.contains("600"), "{draining}");
    client.ask(Method::Refresh, |writer| {
        writer.lifetime(0);
    });
    assert!(relay.wait().0.success());

    // A second installation keeps what an administrator changed.
    overlay.run(&format!("echo '# mine' >> /{CONFIG}; dpkg --force-unsafe-io --install {copy}"));
    assert!(overlay.run(&format!("cat /{CONFIG} /etc/towpath-relay/users")).contains("# mine\n"));
    assert!(overlay.run("cat /etc/towpath-relay/users").contains(USER));

    overlay.run("dpkg --remove towpath-relay");
    assert!(overlay.run(&format!("cat /{CONFIG} /etc/towpath-relay/users")).contains("# mine"));
    overlay.run(&format!("test ! -e /usr/bin/towpath-relay && test ! -e /{UNIT}"));
    overlay.run(&format!("rm {copy}; dpkg --purge towpath-relay"));
    assert_eq!(overlay.added(), Vec::<String>::new(), "nothing is left");
}
