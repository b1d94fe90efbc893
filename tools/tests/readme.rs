//! The README, and those of the programs, say what is so: commands and flags are accepted, examples parse, tables are complete.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;
#[path = "readme/markdown.rs"]
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::{Parser as _, ValueEnum as _};
use dataplane::config::Config;
use dataplane::drops::Cause;
use dataplane::engine::Io;
use dataplane::stun::{Class, Integrity, LongTermKey, Method, PasswordAlgorithm, TransactionId, Writer};
use left_out::left_out;
use markdown::{Document, commands_of_shell};
use relay::server::auth::{Secrets, TimedName};
use rustix::process::{Pid, Signal, kill_process};

const LAB: &str = env!("CARGO_BIN_EXE_towpath-lab");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document(name: &str) -> Document {
    Document::parse(&fs::read_to_string(root().join(name)).unwrap())
}

/// The README and those of the three programs that it leads to. Their headings count as one level below its own.
const READMES: [&str; 4] = ["README.md", "dataplane/README.md", "relay/README.md", "tools/README.md"];

/// All of them, one behind the other.
fn readme() -> Document {
    let mut all = String::new();
    for name in READMES {
        let mut in_block = false;
        for line in fs::read_to_string(root().join(name)).unwrap().lines() {
            in_block ^= line.starts_with("```");
            let is_below = name != READMES[0] && line.starts_with('#') && !in_block;
            all.extend([if is_below { "#" } else { "" }, line, "\n"]);
        }
    }
    Document::parse(&all)
}

/// One of the three programs. The lab runs the other two under hidden subcommands, so that one build tests all.
fn program(name: &str) -> Command {
    let mut command = Command::new(LAB);
    match name {
        "towpath" => _ = command.args(["__tunnel", "-", &std::process::id().to_string()]),
        "towpath-relay" => _ = command.args(["__relay", "-", &std::process::id().to_string()]),
        "towpath-lab" => {}
        other => panic!("there is no program {other}"),
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a command line is understood: with `--help` behind it, the flags and values before it are still checked.
fn accepts(words: &[String]) -> Result<(), String> {
    let words = match words {
        // Whatever stands behind the host is another program's.
        [_, _, exec, rest @ ..]
            if exec == "exec" && rest.first().is_some_and(|word| !word.starts_with("--")) =>
        {
            &words[..3]
        }
        _ => words,
    };
    let output = program(&words[0]).args(&words[1..]).arg("--help").output().unwrap();
    if output.status.success() { Ok(()) } else { Err(format!("{}: {}", words.join(" "), errors(&output))) }
}

/// A value for what stands in capitals or with an ellipsis.
fn filled(word: &str) -> String {
    let value = match word.trim_end_matches('…') {
        "KIND" => "udp",
        "NAME" => "x",
        "SECONDS" => "1",
        "TARGET" | "ADDR:PORT" => "127.0.0.1:9",
        "FILE" | "RUN" | "DIR" => "x",
        "NAME:PASSWORD" => "a:b",
        "CIDR" => "10.0.0.0/8",
        "FORMAT" => "csv",
        "LOW-HIGH" => "1-2",
        "ADDR" => "127.0.0.1",
        "ADDR:PORT[/NAME]" => "127.0.0.1:9/relay.example",
        "PUBLIC[/LOCAL]" => "203.0.113.1/10.0.0.1",
        "REALM" => "example.org",
        "PORTS" => "1-442,444-1023",
        "lab.key" => "x",
        "KEY" => "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
        "SECONDS,BYTES" => "1,100",
        "RATE" => "10mbit",
        "N" | "$!" => "1",
        "RULE" => "p99>+5%",
        "DESIGN,DESIGN" => "uring,suspend",
        "DURATION" => "1h",
        "TIME" => "1s",
        "VERDICT" => "pass",
        "WHAT" => "relay",
        other => other,
    };
    value.to_owned()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(filled).collect()
}

fn is_ours(word: &str) -> bool {
    matches!(word, "towpath" | "towpath-relay" | "towpath-lab")
}

#[test]
fn every_command_is_accepted_as_it_stands() {
    let readme = readme();
    let mut seen = 0;
    for block in readme.blocks("sh") {
        for command in commands_of_shell(block) {
            let name = command[0].as_str();
            let known = ["cargo", "umask", "mkdir", "echo", "sudo", "systemctl", "jq", "kill", "printf", "openssl", "base64", "docker"]
                .contains(&name)
                || name.starts_with("name=")
                // Run by the interop tests.
                || name.starts_with("WG_QUICK_USERSPACE_IMPLEMENTATION=");
            assert!(is_ours(name) || known, "{name} is nothing that this test knows: {command:?}");
            if is_ours(name) {
                let command: Vec<String> = command.iter().map(|word| filled(word)).collect();
                accepts(&command).unwrap();
                seen += 1;
            }
        }
    }
    for span in readme.spans().filter(|(_, span)| span.starts_with("towpath")).map(|(_, span)| span) {
        let command = words(span);
        // A program's name alone, a package, or a file.
        if command.len() < 2 || !is_ours(&command[0]) {
            continue;
        }
        accepts(&command).unwrap();
        seen += 1;
    }
    assert!(seen > 15, "only {seen} commands were found");
}

/// Command lines that flags are tried on.
const UP: &str = "towpath up x";
const DOWN: &str = "towpath down x";
const INTERFACE: &str = "towpath wg0";
const SHOW: &str = "towpath show";
const RELAY: &str = "towpath-relay";
const LABS: [&str; 20] = [
    "towpath-lab run udp 127.0.0.1:9",
    "towpath-lab demo",
    "towpath-lab reflect 127.0.0.1:9",
    "towpath-lab compare x",
    "towpath-lab gate x",
    "towpath-lab ab udp",
    "towpath-lab ab",
    "towpath-lab aa udp 127.0.0.1:9",
    "towpath-lab search udp 127.0.0.1:9",
    "towpath-lab sweep udp 127.0.0.1:9",
    "towpath-lab calibrate",
    "towpath-lab report x",
    "towpath-lab show x",
    "towpath-lab convert x x",
    "towpath-lab merge x --out x",
    "towpath-lab diff x x",
    "towpath-lab doctor",
    "towpath-lab replay x",
    "towpath-lab lab up x",
    "towpath-lab lab exec",
];

#[test]
fn every_flag_in_the_text_exists_where_the_text_says() {
    let readme = readme();
    let mut seen = 0;
    for (section, span) in readme.spans().filter(|(_, span)| span.starts_with("--")) {
        let bases: Vec<&str> = match section {
            "The tunnel" => vec![UP, INTERFACE, SHOW, RELAY],
            "The relay" => vec![RELAY],
            "The lab" => LABS.to_vec(),
            _ => [UP, RELAY].into_iter().chain(LABS).collect(),
        };
        let attempt = |base: &&str| {
            let mut line = words(base);
            line.extend(words(span));
            // A flag alone is shown without its value.
            accepts(&line)
                .or_else(|error| if error.contains("a value is required") { Ok(()) } else { Err(error) })
        };
        assert!(
            bases.iter().any(|base| attempt(base).is_ok()),
            "{section}: `{span}` is accepted by none of {bases:?}"
        );
        seen += 1;
    }
    assert!(seen > 30, "only {seen} flags were found");
}

/// What a command prints for `--help`.
fn help(base: &str) -> String {
    let line = words(base);
    let output = program(&line[0]).args(&line[1..]).arg("--help").output().unwrap();
    assert!(output.status.success(), "{base}: {}", errors(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The flags that a command has: those that begin a line of its help, not those that descriptions mention.
fn flags(base: &str) -> BTreeSet<String> {
    let flag = |line: &str| {
        let text = line.trim_start();
        let text = text
            .strip_prefix("-")
            .filter(|rest| rest.starts_with(char::is_alphabetic))
            .map_or(text, |rest| rest.split_once(", ").map_or(rest, |(_, long)| long));
        let name = text.split([' ', '=']).next().filter(|word| word.starts_with("--"))?;
        // Descriptions are farther to the right.
        (line.len() - line.trim_start().len() <= 6).then(|| name.trim_end_matches("...").to_owned())
    };
    let help = help(base);
    let found = help.lines().filter_map(flag).filter(|flag| flag != "--help" && flag != "--version");
    found.collect()
}

/// The flags in the code spans of a text.
fn flags_in(text: &str) -> BTreeSet<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let words = spans.filter_map(|span| span.split_whitespace().next());
    words.filter(|word| word.len() > 2 && word.starts_with("--")).map(str::to_owned).collect()
}

/// The commands that a program's help names.
fn commands(base: &str) -> Vec<String> {
    let help = help(base);
    let lines =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_flag_of_tunnel_and_relay_is_described_where_they_are() {
    let readme = readme();
    // What is said of one program describes no flag of another.
    for (bases, others) in [
        (&[UP, DOWN, INTERFACE, SHOW][..], &["The relay", "Seeing what the relay does", "The lab"][..]),
        // What both have is described where the tunnel is.
        (&[RELAY], &["The lab"]),
    ] {
        let spans = readme.spans().filter(|(section, _)| !others.contains(section));
        // Alone, or in a command that is shown.
        let words = spans.flat_map(|(_, span)| span.split_whitespace());
        let described: BTreeSet<&str> = words.filter(|word| word.starts_with("--")).collect();
        for base in bases {
            for flag in flags(base) {
                assert!(described.contains(flag.as_str()), "the README does not describe {flag} of {base}");
            }
        }
    }
}

#[test]
fn the_tables_of_the_lab_have_the_flags_that_each_command_has_and_no_others() {
    let readme = readme();
    let row = |(command, text): (&str, &str)| (command.to_owned(), flags_in(text));
    let table =
        readme.cells("Flags of the commands", "command").into_iter().map(|cell| cell.trim_matches('`'));
    let table: BTreeMap<String, BTreeSet<String>> =
        table.zip(readme.cells("Flags of the commands", "flags")).map(row).collect();
    let of_run = flags("towpath-lab run udp 127.0.0.1:9");
    let load: BTreeSet<String> = of_run.difference(&table["run"]).cloned().collect();
    let described = readme.cells("The lab", "what the load is like").into_iter().flat_map(flags_in).collect();
    assert_eq!(load, described, "flags of the load that there are, and that are in the table");
    let mut left: BTreeSet<&String> = table.keys().collect();
    let of_lab = commands("towpath-lab lab").into_iter().map(|name| format!("lab {name}"));
    let all: Vec<String> =
        commands("towpath-lab").into_iter().filter(|name| name != "lab").chain(of_lab).collect();
    assert!(all.len() > 20, "{all:?}");
    for command in all {
        let flags = flags(&format!("towpath-lab {command}"));
        let own = if flags.is_superset(&load) { flags.difference(&load).cloned().collect() } else { flags };
        let row = table.get(&command).unwrap_or_else(|| panic!("{command} is not in the table"));
        assert_eq!(*row, own, "flags of {command} in the table, and that it has");
        left.remove(&command);
    }
    assert!(left.is_empty(), "there are no such commands: {left:?}");
}

#[test]
fn every_drop_cause_and_design_has_its_row() {
    let readme = readme();
    let causes: Vec<&str> = readme.column("Drop causes", "cause");
    assert_eq!(causes, Cause::ALL.iter().map(|cause| cause.name()).collect::<Vec<_>>());
    let designs: BTreeSet<&str> = readme.column("I/O designs", "`--io`").into_iter().collect();
    let all: Vec<_> = Io::value_variants().iter().filter_map(|io| io.to_possible_value()).collect();
    assert_eq!(designs, all.iter().map(|value| value.get_name()).collect());
}

/// A directory with the files that the examples name.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("wg0.key"), "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n");
    write(&directory.path().join("wg0.relay-password"), "secret\n");
    write(&directory.path().join("users"), "alice:secret\n");
    write(&directory.path().join("secrets"), "# since\nnorth\n");
    directory
}

fn write(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn tunnel_config(text: &str) -> Result<(Config, Vec<String>), String> {
    let directory = directory();
    let file = directory.path().join("wg0.conf");
    write(&file, text);
    Config::load(&file).map_err(|error| error.to_string())
}

#[test]
fn the_examples_of_tunnel_configurations_are_good() {
    let readme = readme();
    let mut relays = Vec::new();
    for example in readme.blocks("ini") {
        let (config, warnings) = tunnel_config(example).unwrap();
        assert!(warnings.is_empty() && config.peers.len() == 1, "{warnings:?}");
        relays.push(!config.relays.is_empty());
    }
    assert_eq!(relays, [false, true]);

    let packaged = fs::read_to_string(root().join("dataplane/packaging/wg0.conf")).unwrap();
    let (config, warnings) = tunnel_config(&packaged).unwrap();
    assert!(warnings.is_empty() && config.relays.is_empty() && config.mtu == 1_420);
    let psk = "#PresharedKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    let whole = packaged.replace("#PresharedKey =", psk).replace("##towpath:", "#towpath:");
    let whole = whole.replace("#PresharedKey", "PresharedKey").replace("#Persistent", "Persistent");
    let whole = whole.replace("#DNS", "DNS").replace("#Post", "Post");
    let (config, _) = tunnel_config(&whole).unwrap();
    assert_eq!((config.host.hooks.post_up.len(), config.host.name_servers.len()), (1, 1));
    assert!(!config.relays.is_empty() && config.peers[0].preshared_key.is_some());
    assert_eq!(config.peers[0].persistent_keepalive, 25);
}

#[test]
fn the_examples_of_relay_configurations_are_good() {
    let directory = directory();
    let (users, secrets) = (directory.path().join("users"), directory.path().join("secrets"));
    let load = |text: &str| {
        let file = directory.path().join("relay.toml");
        let text = text.replace("/etc/towpath-relay/users", users.to_str().unwrap());
        write(&file, &text.replace("/etc/towpath-relay/secrets", secrets.to_str().unwrap()));
        let args = ["towpath-relay", "--config", file.to_str().unwrap()];
        let args = relay::config::Args::try_parse_from(args).unwrap();
        relay::config::Config::load(&args).unwrap()
    };
    let readme = readme();
    for example in readme.blocks("toml").filter(|example| !example.starts_with("[interface]")) {
        assert_eq!(load(example).relay_ports, 50_000..=59_999);
    }
    let packaged = fs::read_to_string(root().join("relay/packaging/towpath-relay.toml")).unwrap();
    let config = load(&packaged);
    assert_eq!((config.realm.0.as_str(), config.users.len()), ("relay.example", 1));
    // Every setting that is shown as a comment, too; those that show the default leave it as it is.
    let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.contains(" = ");
    let uncommented: Vec<&str> =
        packaged.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).collect();
    let whole = load(&uncommented.join("\n"));
    assert_eq!(
        (whole.listen.as_slice(), &whole.relay_ports),
        (config.listen.as_slice(), &config.relay_ports)
    );
    assert_eq!((config.secrets.len(), whole.secrets.len()), (0, 1));
    assert_eq!(whole.secret_validity_max, config.secret_validity_max);
    assert_eq!(whole.channel_numbers, config.channel_numbers);
    assert_eq!(whole.allocations_max, config.allocations_max);
    assert_eq!(whole.allocations_per_user_max, config.allocations_per_user_max);
    assert_eq!((&whole.deny_peer_ports, whole.deny_peers.len()), (&config.deny_peer_ports, 1));
    let limits = |config: &relay::config::Config| {
        let limits = &config.limits;
        (
            limits.allocations_per_source_max,
            limits.permissions_max,
            limits.channels_max,
            limits.new_peers_per_s,
        )
    };
    assert_eq!(limits(&whole), limits(&config));
    assert_eq!((whole.hairpin, whole.port_sharing), (config.hairpin, config.port_sharing));
    assert_eq!((whole.alternates.iter().count(), whole.alternates.tls_name()), (1, Some("relay2.example")));
    assert_eq!(
        (config.admin, whole.admin),
        (None, Some(relay::admin::AdminChoice::At(relay::admin::ADDRESS_DEFAULT)))
    );
    assert_eq!((whole.allow_peers.len(), whole.external.len(), whole.relay_addresses.len()), (1, 1, 2));
}

/// What an error says of a key that is not known.
const UNKNOWN: &str = "is unknown in";

#[test]
fn every_key_in_the_table_is_known_and_every_known_key_is_in_it() {
    let readme = readme();
    let keys = readme.column("Configuration", "key");
    let keys: BTreeSet<&str> = keys.iter().flat_map(|cell| cell.split(['`', ',', ' '])).collect();
    let keys: Vec<&str> = keys.into_iter().filter(|key| !matches!(*key, "" | "or")).collect();
    assert!(keys.len() >= 18, "{keys:?}");
    for key in &keys {
        // A PostUp may set the key, so that nothing is wrong there.
        let said = |lines: &str| tunnel_config(&format!("{lines}{key} = x\n")).err().unwrap_or_default();
        let (in_interface, in_peer) = (said("[Interface]\n"), said("[Interface]\n[Peer]\n"));
        assert!(!in_interface.contains(UNKNOWN) && !in_peer.contains(UNKNOWN), "{in_interface}\n{in_peer}");
    }
    for section in ["[Interface]", "[Interface]\n[Peer]"] {
        let error = tunnel_config(&format!("{section}\nNone = x\n")).unwrap_err();
        let (_, known) = error.split_once("known are ").unwrap();
        for key in known.split([',', ' ']).filter(|key| !matches!(*key, "" | "and")) {
            assert!(keys.contains(&key), "{key} is not in the table");
        }
    }
}

#[test]
fn the_example_in_toml_says_what_the_first_one_does() {
    let readme = readme();
    let example = readme.blocks("toml").find(|example| example.starts_with("[interface]")).unwrap();
    let directory = directory();
    let file = directory.path().join("wg0.toml");
    write(&file, example);
    let (config, warnings) = Config::load(&file).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let (first, _) = tunnel_config(readme.blocks("ini").next().unwrap()).unwrap();
    assert_eq!((&config.addresses, config.listen_port), (&first.addresses, first.listen_port));
    let peer = |config: &Config| {
        let peer = &config.peers[0];
        (
            peer.public_key,
            peer.allowed_ips.clone(),
            peer.endpoint.as_ref().map(|(endpoint, _)| endpoint.clone()),
        )
    };
    assert_eq!(peer(&config), peer(&first));
    assert_eq!((config.host.name_servers.len(), config.host.search_domains.len()), (1, 1));
    assert_eq!(config.host.hooks.post_up.len(), 1);
}

#[test]
fn the_key_commands_work_when_typed_into_a_shell() {
    let readme = readme();
    let script = readme.blocks("sh").find(|block| block.contains("genkey")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let towpath = directory.path().join("towpath");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o700).open(&towpath).unwrap();
    writeln!(file, "#!/bin/sh\nexec {LAB} __tunnel - $PPID \"$@\"").unwrap();
    drop(file);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("sh").args(["-ec", script]).env("PATH", path).current_dir(&directory).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let public: dataplane::tunnel::key::PublicKey =
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let private = fs::read_to_string(directory.path().join("wg0.key")).unwrap();
    assert_eq!(dataplane::tunnel::noise::public_key(&private.trim().parse().unwrap()), public);
}

#[test]
fn the_commands_for_a_time_limited_name_make_what_the_relay_takes() {
    let readme = readme();
    let script = readme.blocks("sh").find(|block| block.contains("openssl")).unwrap();
    let Ok(_) = Command::new("openssl").arg("version").output() else {
        return left_out("openssl is not installed: apt-get install openssl");
    };
    let output = Command::new("sh").args(["-ec", &format!("{script}\necho $name")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (password, name) = text.trim().split_once('\n').unwrap();
    let timed = TimedName::parse(name.as_bytes()).unwrap();
    let mut secrets = Secrets::default();
    secrets.add(b"SECRET");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(timed.id == b"alice" && secrets.is_in_time(timed, now), "{name}");
    let (md5, realm) = (PasswordAlgorithm::Md5, b"relay.example");
    let signed = |key: LongTermKey| {
        let mut buffer = [0; 100];
        let writer =
            Writer::new(&mut buffer, Class::Request, Method::Refresh, TransactionId([1; 12])).unwrap();
        let len = writer.finish(Some(&key.for_integrity(Integrity::Sha1)), false).unwrap();
        buffer[..len].to_vec()
    };
    let ours = secrets.long_term_keys(md5, name.as_bytes(), realm).map(signed).next().unwrap();
    assert_eq!(signed(LongTermKey::new(md5, name.as_bytes(), realm, password.as_bytes())), ours);
}

/// What a relay logs as JSON from its start to a SIGTERM once it is ready.
fn log() -> String {
    let flags = ["--listen", "127.0.0.1:0", "--log-format", "json", "--io", "suspend"];
    let mut relay = program("towpath-relay").args(flags).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = String::new();
    let mut lines = BufReader::new(relay.stderr.take().unwrap());
    while lines.read_line(&mut log).unwrap() > 0 {
        if log.ends_with('\n') && log.lines().last().is_some_and(|line| line.contains("\"ready\"")) {
            kill_process(Pid::from_raw(relay.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
        }
    }
    assert!(relay.wait().unwrap().success(), "{log}");
    log
}

#[test]
fn jq_reads_the_log_as_described() {
    let log = log();
    let readme = readme();
    let filters: Vec<Vec<String>> = readme
        .blocks("sh")
        .flat_map(commands_of_shell)
        .filter(|command| command[0] == "jq")
        .map(|command| command[1..].to_vec())
        .collect();
    let run = |arguments: &[String]| {
        let child = Command::new("jq").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.ok()?;
        child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "jq {arguments:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(text) = run(&filters[0]) else {
        return left_out("the README's jq commands: apt-get install jq");
    };
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let member = |name: &str| line[name].as_str().unwrap().to_owned();
        format!("{} {} {}\n", member("time"), member("severity"), member("message"))
    };
    assert_eq!(text, log.lines().map(line).collect::<String>());
    assert!(text.contains(" INFO ready\n") && text.contains(" WARN "), "{text}");
    let ledger: serde_json::Value = serde_json::from_str(&run(&filters[1]).unwrap()).unwrap();
    assert_eq!((&ledger["unexplained"], &ledger["offered"]), (&0.into(), &0.into()));
}

#[test]
fn the_cargo_commands_name_what_there_is() {
    let manifest = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let workspace = manifest("Cargo.toml");
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let mut seen = 0;
    for document in [readme(), document(".github/CONTRIBUTING.md")] {
        let spans = document.spans().map(|(_, span)| span);
        for command in document.blocks("sh").chain(spans).flat_map(commands_of_shell) {
            let Some(start) = command.iter().position(|word| word == "cargo") else { continue };
            let words = &command[start..];
            let after =
                |flag: &str| words.iter().position(|word| word == flag).map(|at| words[at + 1].as_str());
            let package = after("-p");
            assert!(package.is_none_or(|name| members.contains(&format!("\"{name}\""))), "{command:?}");
            if let Some(file) = after("--test") {
                let tests = root().join(package.unwrap()).join("tests");
                let places = [tests.join(format!("{file}.rs")), tests.join(file).join("main.rs")];
                assert!(places.iter().any(|place| place.exists()), "{command:?}");
            }
            if words.get(1).is_some_and(|word| word == "run") && package == Some("tools") {
                assert!(manifest("tools/Cargo.toml").contains("default-run = \"towpath-lab\""));
                accepts(&["towpath-lab".to_owned(), after("--").unwrap().to_owned()]).unwrap();
            }
            seen += 1;
        }
    }
    assert!(seen >= 6, "only {seen} cargo commands were found");
}

#[test]
fn every_link_leads_somewhere() {
    for name in
        READMES.into_iter().chain([".github/CONTRIBUTING.md", ".github/SECURITY.md", "benches/README.md"])
    {
        let folder = root().join(name).parent().unwrap().to_owned();
        for link in document(name).links().filter(|link| !link.starts_with("https://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let path = if file.is_empty() { root().join(name) } else { folder.join(file) };
            assert!(path.exists(), "{name}: {link}");
            if let Some(anchor) = anchor {
                let target = Document::parse(&fs::read_to_string(&path).unwrap());
                assert!(target.anchors().any(|other| other == anchor), "{name}: {link}");
            }
        }
    }
}
