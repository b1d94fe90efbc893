//! `towpath-relay import` as an operator runs it, and beside coturn's own list of options.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use crate::harness::{Client, RelayProcess, program};
use crate::left_out::left_out;
use relay::import::look_up;

const RELAY: &str = env!("CARGO_BIN_EXE_towpath-relay");

fn import(arguments: &[&str]) -> Output {
    program(RELAY).arg("import").args(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A word that may be the name of an option.
fn name(text: &str) -> Option<&str> {
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-' && letter != '_');
    let name = &text[..end.unwrap_or(text.len())];
    (!name.is_empty()).then_some(name)
}

/// The options that `turnserver -h` explains: those that begin a paragraph.
fn of_help(help: &str) -> BTreeSet<&str> {
    let begins = help.lines().filter(|line| line.len() - line.trim_start().len() < 8);
    let begins = begins.filter(|line| line.trim_start().starts_with('-'));
    let before_text = begins.map(|line| line.split_once('\t').map_or(line, |(names, _)| names));
    before_text.flat_map(|names| names.split("--").skip(1)).filter_map(name).collect()
}

/// The options that the example of Debian has, in use or behind a comment sign.
fn of_example(example: &str) -> BTreeSet<&str> {
    let is_option = |line: &&str| {
        let name = name(line).unwrap_or_default();
        let rest = &line[name.len()..];
        // Prose goes on in words, an option ends or has a value.
        !name.is_empty() && (rest.is_empty() || rest.starts_with('=') || rest.starts_with(" \""))
    };
    let lines = example.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
    lines
        .map(|line| line.strip_prefix(' ').filter(|line| line.contains('=')).unwrap_or(line))
        .filter(is_option)
        .filter_map(name)
        .collect()
}

#[test]
fn every_option_that_coturn_knows_is_known_here() {
    let Ok(help) = program("turnserver").arg("-h").output() else {
        return left_out("coturn's own options: apt-get install coturn");
    };
    let help = [help.stdout, help.stderr].concat();
    let help = String::from_utf8_lossy(&help);
    let options = of_help(&help);
    assert!(options.len() > 90, "{options:?}");
    for option in
        ["listening-port", "sql-userdb", "allocation-default-address-family", "Verbose", "ne", "user"]
    {
        assert!(options.contains(option), "{option} was not found in the help: {options:?}");
    }
    let unknown: Vec<_> = options.iter().filter(|option| look_up(option).is_none()).collect();
    assert!(unknown.is_empty(), "coturn has options that the importer does not know: {unknown:?}");
}

#[test]
fn every_option_of_the_example_that_debian_ships_is_known_here() {
    let Ok(example) = fs::read_to_string("/etc/turnserver.conf") else {
        return left_out("coturn's example, which only root may read: apt-get install coturn");
    };
    let options = of_example(&example);
    assert!(options.len() > 90, "{options:?}");
    for option in
        ["listening-ip", "no-rfc5780", "denied-peer-ip", "new-log-timestamp-format", "rest-api-separator"]
    {
        assert!(options.contains(option), "{option} was not found in the example: {options:?}");
    }
    let unknown: Vec<_> = options.iter().filter(|option| look_up(option).is_none()).collect();
    assert!(unknown.is_empty(), "the example has options that the importer does not know: {unknown:?}");
    // And as it is, it comes over without a word about a line of it.
    let output = import(&["/etc/turnserver.conf"]);
    assert!(output.status.success() && !errors(&output).contains("conf: line "), "{}", errors(&output));
}

#[test]
fn a_relay_that_was_imported_serves_the_users_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = at("turnserver.conf");
    let text = "listening-ip=127.0.0.1\nlistening-port=0\nno-tcp\nlt-cred-mech\nrealm=example.org\n\
                user=alice:secret\nstatic-auth-secret=frosty\ndenied-peer-ip=10.0.0.0-10.0.0.9\nfingerprint\nmobility\n\
                frobnicate=1\n";
    fs::write(&source, text).unwrap();
    let output = at("relay.toml");
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let run = import(&[source, "--output", output]);
    let said = errors(&run);
    assert!(run.status.success() && run.stdout.is_empty(), "{said}");
    assert!(said.contains("line 10: mobility: ") && said.contains("line 11: frobnicate: unknown"), "{said}");
    assert!(!said.contains("fingerprint") && !said.contains("frosty") && !said.contains("alice"), "{said}");
    let toml = fs::read_to_string(output).unwrap();
    assert!(toml.contains("# - line 10: mobility: ") && toml.contains("# - line 9: fingerprint: "), "{toml}");
    assert!(!toml.contains("alice:secret\n") && !toml.contains("frosty"), "{toml}");
    for name in ["users", "secrets"] {
        assert_eq!(fs::metadata(at(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_to_string(at("users")).unwrap(), "alice:secret\n");
    let both = format!("chown towpath-relay: {} {}", at("users").display(), at("secrets").display());
    assert!(said.contains(&both), "{said}");

    let check = program(RELAY).args(["--config", output, "--check-config"]).output().unwrap();
    let effective = String::from_utf8(check.stdout.clone()).unwrap();
    assert!(check.status.success(), "{check:?}");
    assert!(effective.contains("deny-peer = [\"10.0.0.0/29\", \"10.0.0.8/31\"]"), "{effective}");
    let mut command = program(RELAY);
    command.args(["--config", output, "--admin", "off", "--drain-timeout", "0"]);
    let relay = RelayProcess::spawn(command);
    Client::new(relay.listen[0]).allocate();
}

#[test]
fn nothing_is_overwritten_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("turnserver.conf"), "user=alice:new\n").unwrap();
    let (source, output) = (at("turnserver.conf"), at("relay.toml"));
    let arguments = [source.to_str().unwrap(), "--output", output.to_str().unwrap()];
    fs::write(at("users"), "alice:old\n").unwrap();
    fs::set_permissions(at("users"), fs::Permissions::from_mode(0o644)).unwrap();
    let run = import(&arguments);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        errors(&run).contains("users: it is there already") && errors(&run).contains("--force"),
        "{}",
        errors(&run)
    );
    assert!(!output.exists() && fs::read_to_string(at("users")).unwrap() == "alice:old\n");

    let run = import(&[&arguments[..], &["--force"]].concat());
    assert!(run.status.success(), "{}", errors(&run));
    assert_eq!(fs::read_to_string(at("users")).unwrap(), "alice:new\n");
    assert_eq!(
        fs::metadata(at("users")).unwrap().mode() & 0o777,
        0o600,
        "the mode is not that of the old file"
    );
    let left: BTreeSet<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "only what was asked for is there: {left:?}");
}

#[test]
fn without_a_file_to_write_the_configuration_is_printed_and_secrets_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("turnserver.conf");
    fs::write(&source, "user=alice:hunter2\nstatic-auth-secret=hunter3\nmin-port=5000\n").unwrap();
    let run = import(&[source.to_str().unwrap()]);
    let printed = String::from_utf8(run.stdout.clone()).unwrap();
    assert!(run.status.success() && printed.contains("\nrelay-ports = \"5000-65535\"\n"), "{printed}");
    assert!(printed.contains("\nuser-file = \"/etc/towpath-relay/users\"\n"), "{printed}");
    let said = errors(&run);
    assert!(!(printed + &said).contains("hunter"), "{said}");
    assert!(said.contains("write 1 of them into /etc/towpath-relay/secrets"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_read_is_said_and_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("turnserver.conf");
    let run = |path: &Path| {
        let output = import(&[path.to_str().unwrap()]);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{output:?}");
        errors(&output)
    };
    assert!(run(&source).contains("check the path"));
    fs::write(&source, b"realm=\xff\n").unwrap();
    assert!(run(&source).contains("UTF-8"));
    fs::write(&source, "\n\nmin-port=all\n").unwrap();
    assert!(run(&source).contains("turnserver.conf:3: min-port takes a port"));
}
