//! The Containerfile: what it copies is there, what it builds and starts exists, and its last stage works in a root with
//! nothing else in it.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::harness::{Client, PASSWORD, REALM, RelayProcess, USER, program, receive, socket, write_private};
use crate::left_out::left_out;
use clap::Parser as _;
use dataplane::stun::{Class, Message, Method, TransactionId, Writer};
use relay::config::Args;
use rustix::process::Signal;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap()
}

/// Instruction and what follows it, by stage.
fn stages() -> Vec<Vec<(String, String)>> {
    let mut stages = Vec::new();
    for line in read("relay/packaging/Containerfile")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        assert!(!line.ends_with('\\'), "this test reads one line an instruction: {line}");
        let (instruction, rest) = line.split_once(' ').unwrap();
        if instruction == "FROM" {
            stages.push(Vec::new());
        }
        stages.last_mut().unwrap().push((instruction.to_owned(), rest.to_owned()));
    }
    stages
}

fn of<'a>(stage: &'a [(String, String)], instruction: &str) -> Vec<&'a str> {
    stage.iter().filter(|(name, _)| name == instruction).map(|(_, rest)| rest.as_str()).collect()
}

/// A command as a list, which no shell takes apart.
fn list(text: &str) -> Vec<String> {
    serde_json::from_str(&text[text.find('[').unwrap()..]).unwrap()
}

#[test]
fn what_is_copied_is_there_and_enough_for_the_workspace() {
    let stages = stages();
    let [build, run] = &stages[..] else { panic!("{} stages", stages.len()) };
    let ignored = read(".dockerignore");
    let mut copied = Vec::new();
    for copy in
        of(build, "COPY").into_iter().chain(of(run, "COPY")).filter(|copy| !copy.starts_with("--from="))
    {
        let words: Vec<&str> = copy.split(' ').collect();
        for source in &words[..words.len() - 1] {
            assert!(workspace().join(source).exists(), "{source} is not there");
            assert!(!ignored.lines().any(|line| line == *source), "{source} is left out by .dockerignore");
            copied.push((*source).to_owned());
        }
    }
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        assert!(copied.iter().any(|source| source == member.as_str().unwrap()), "cargo needs {member}");
    }
    for file in ["Cargo.toml", "Cargo.lock", ".cargo"] {
        assert!(copied.iter().any(|source| source == file), "cargo needs {file}");
    }
}

#[test]
fn what_is_built_is_what_is_started_by_the_compiler_of_this_project() {
    let stages = stages();
    let (build, run) = (&stages[0], &stages[1]);
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().unwrap();
    let version = toolchain["toolchain"]["channel"].as_str().unwrap();
    assert_eq!(of(build, "FROM"), [format!("rust:{version}-slim-bookworm AS build")]);
    assert_eq!(of(build, "ENV"), [format!("RUSTUP_TOOLCHAIN={version}")]);
    assert_eq!(of(run, "FROM"), ["debian:bookworm-slim"]);

    let command: Vec<&str> = of(build, "RUN")[0].split(' ').collect();
    let after = |flag: &str| command[command.iter().position(|word| *word == flag).unwrap() + 1];
    let relay: toml::Table = read(&format!("{}/Cargo.toml", after("-p"))).parse().unwrap();
    let names: Vec<_> =
        relay["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap()).collect();
    assert!(names.contains(&after("--bin")), "{names:?}");
    let copy = of(run, "COPY")[0];
    let expected = format!(
        "--from=build {}/target/release/{name} /usr/bin/{name}",
        of(build, "WORKDIR")[0],
        name = after("--bin")
    );
    assert_eq!(copy, expected);
    assert_eq!(list(of(run, "ENTRYPOINT")[0]), [format!("/usr/bin/{}", after("--bin"))]);

    for arguments in [list(of(run, "CMD")[0]), list(of(run, "HEALTHCHECK")[0])[1..].to_vec()] {
        let words = std::iter::once("towpath-relay".to_owned()).chain(arguments);
        Args::try_parse_from(words).unwrap();
    }
    let user = of(run, "USER")[0].split(':').next().unwrap();
    assert!(user.parse::<u32>().unwrap() > 0, "a number, so that a cluster can tell it is not root");
    let deployment = read("relay/packaging/kubernetes/deployment.yaml");
    assert!(deployment.contains(&format!("runAsUser: {user}\n")), "the pod is the same user");
}

/// A directory with the last stage's files and the libraries of the program, and nothing else.
fn root(folder: &Path) -> Option<()> {
    let binary = env!("CARGO_BIN_EXE_towpath-relay");
    let libraries = program("ldd").arg(binary).output();
    let Ok(libraries) = libraries else {
        left_out("running the last stage of the Containerfile: apt-get install libc-bin");
        return None;
    };
    let place = |source: &Path, target: &str| {
        let target = folder.join(target.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(source, target).unwrap();
    };
    for word in
        String::from_utf8(libraries.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
    {
        place(Path::new(word), word);
    }
    for copy in of(&stages()[1], "COPY") {
        let words: Vec<&str> = copy.split(' ').collect();
        match words[..] {
            ["--from=build", _, target] => place(Path::new(binary), target),
            [source, target] => place(&workspace().join(source), target),
            _ => panic!("{copy}"),
        }
    }
    // As others than root see it.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    Some(())
}

/// Where the image listens, and how long it wants to have for its end.
#[test]
fn the_image_listens_on_both_families_and_says_how_long_it_drains() {
    let check = program(env!("CARGO_BIN_EXE_towpath-relay"))
        .args(["--check-config", "--config"])
        .arg(workspace().join("relay/packaging/container.toml"))
        .output()
        .unwrap();
    let effective: toml::Table = String::from_utf8(check.stdout).unwrap().parse().unwrap();
    for setting in ["listen", "listen-tcp"] {
        let addresses: Vec<_> =
            effective[setting].as_array().unwrap().iter().map(|at| at.as_str().unwrap()).collect();
        assert_eq!(addresses, ["0.0.0.0:3478", "[::]:3478"], "{setting}");
    }
    assert_eq!(of(&stages()[1], "EXPOSE"), ["3478/udp 3478/tcp"]);
    let drain = effective["drain-timeout"].as_integer().unwrap();
    for name in ["relay/packaging/Containerfile", "relay/README.md"] {
        let text = read(name);
        let (_, rest) = text.split_once("--stop-timeout ").unwrap();
        let given: i64 = rest.split(' ').next().unwrap().parse().unwrap();
        assert!(given > drain, "{name}: {given} s for a drain of {drain} s");
    }
}

#[test]
fn the_last_stage_serves_as_nobody_with_nothing_else_around_it() {
    if !rustix::process::geteuid().is_root() {
        return left_out("running the last stage of the Containerfile: root, for chroot");
    }
    let folder = tempfile::tempdir().unwrap();
    if root(folder.path()).is_none() {
        return;
    }
    let stages = stages();
    let run = &stages[1];
    let (user, entry) = (of(run, "USER")[0], list(of(run, "ENTRYPOINT")[0]));
    let inside = |arguments: &[String]| {
        let mut command = program("chroot");
        command.arg(format!("--userspec={user}")).arg("--groups=").arg(folder.path()).args(arguments);
        command
    };
    let arguments = [entry, list(of(run, "CMD")[0])].concat();
    let mut command = inside(&arguments);
    command.args(["--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let relay = RelayProcess::spawn(command);
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, Method::Binding, TransactionId([7; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    let socket = socket();
    socket.send_to(&buffer, relay.listen[0]).unwrap();
    let reply = receive(&socket).0;
    assert_eq!(Message::parse(&reply).unwrap().class(), Class::Success);

    let health = list(of(run, "HEALTHCHECK")[0]);
    let check = |admin: &str| inside(&health).args(["--admin", admin]).output().unwrap();
    let healthy = check(&relay.admin().to_string());
    assert!(healthy.status.success(), "{healthy:?}");
    let (_, admin) = (relay.stop(), "127.0.0.1:1");
    assert!(!check(admin).status.success(), "nobody is there");
    // The relay that is checked without a word about where is the one of the configuration.
    let config: toml::Table = read("relay/packaging/container.toml").parse().unwrap();
    assert_eq!(config["admin"].as_str(), Some(relay::admin::ADDRESS_DEFAULT.to_string().as_str()));
}

/// As the README has it: a directory over that of the image, with users who can be changed while the container runs.
#[test]
fn a_directory_with_users_in_place_of_the_images_is_read_again_at_a_signal() {
    if !rustix::process::geteuid().is_root() {
        return left_out("users in a directory of a container: root, for chroot");
    }
    let folder = tempfile::tempdir().unwrap();
    if root(folder.path()).is_none() {
        return;
    }
    let stages = stages();
    let run = &stages[1];
    let readme = read("relay/README.md");
    let (_, mount) = readme.split_once("--volume /srv/towpath-relay:").unwrap();
    let directory = folder.path().join(mount.split(':').next().unwrap().trim_start_matches('/'));
    let config = workspace().join("relay/packaging/debian/towpath-relay.toml");
    fs::copy(config, directory.join("towpath-relay.toml")).unwrap();
    let owner = of(run, "USER")[0].split(':').next().unwrap();
    assert!(readme.contains(&format!("sudo install -m 600 -o {owner} -g {owner} /dev/null")), "{owner}");
    let users = directory.join("users");
    write_private(&users, "");
    let id = Some(owner.parse::<u32>().unwrap());
    std::os::unix::fs::chown(&users, id, id).unwrap();
    let mut command = program("chroot");
    command.arg(format!("--userspec={}", of(run, "USER")[0])).arg("--groups=").arg(folder.path());
    command.args(list(of(run, "ENTRYPOINT")[0])).args(list(of(run, "CMD")[0]));
    command.args(["--listen", "127.0.0.1:0", "--admin", "off", "--realm", REALM]);
    // The client is still there at the end.
    command.args(["--drain-timeout", "0"]);
    let relay = RelayProcess::spawn(command);
    fs::write(&users, format!("{USER}:{PASSWORD}\n")).unwrap();
    relay.signal(Signal::HUP);
    relay.wait_for("in force");
    Client::new(relay.listen[0]).allocate();
    assert!(relay.stop().0.success());
}
