//! Scenario files: which hosts there are, how they are joined, what runs on them, what is measured and what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use dataplane::netlink::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::claim::Claim;
use crate::cli::run_spec;
use crate::format::bounded;
use crate::run::server::ServerAdmin;
use crate::units::Rate;

/// Longest name of a host: a device is called after both ends of its link, within the 15 bytes of IFNAMSIZ.
const NAME_LEN_MAX: usize = 7;
/// The demo's network, for whoever wants to look around in it.
pub const DEMO: &str = include_str!("../../scenarios/demo.toml");

/// What is wrong with a scenario, and where.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {text}")]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// What is wrong, with the remedy.
    pub text: String,
}

/// A scenario that has been looked through.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The hosts, by name.
    pub hosts: BTreeMap<String, Host>,
    /// What joins them.
    pub links: Vec<Link>,
    /// Files that programs need: name and content, with placeholders.
    pub files: Vec<(String, String)>,
    /// In the order in which they are started.
    pub programs: Vec<Program>,
    /// What is measured.
    pub load: Option<Load>,
}

/// A host.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct HostTable {
    #[serde(default)]
    forward: bool,
    #[serde(default = "yes")]
    ipv6: bool,
    #[serde(default)]
    masquerade: Vec<Spanned<String>>,
    #[serde(default)]
    routes: Vec<Spanned<String>>,
    nft: Option<String>,
}

fn yes() -> bool {
    true
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Whether it forwards packets.
    pub forward: bool,
    /// Whether its interfaces have IPv6.
    pub ipv6: bool,
    /// Devices behind which it hides what it forwards (NAT).
    pub masquerade: Vec<String>,
    /// Routes: destination and gateway.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Further rules for nft(8).
    pub nft: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LinkTable {
    ends: Spanned<[String; 2]>,
    addresses: Spanned<[String; 2]>,
    mtu: Option<Spanned<u32>>,
    rate: Option<Spanned<String>>,
    #[serde(default = "burst_default")]
    burst: u32,
    #[serde(default = "queue_default")]
    queue: u32,
}

/// Two full superpackets, as in the demo: a smaller bucket makes the kernel cut them.
fn burst_default() -> u32 {
    128 << 10
}

fn queue_default() -> u32 {
    1 << 20
}

/// A virtual cable between two hosts. Its devices are called after both: `a-b` on `a`, `b-a` on `b`.
#[derive(Clone, Debug)]
pub struct Link {
    /// The hosts.
    pub ends: [String; 2],
    /// Addresses of each end.
    pub addresses: [Vec<IpNet>; 2],
    /// MTU of both devices.
    pub mtu: Option<u32>,
    /// Limits both ends.
    pub bucket: Option<Bucket>,
}

/// A token bucket, tc-tbf(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u32,
    /// Bytes that pass at once.
    pub burst: u32,
    /// Bytes that wait; what is above is dropped without a word.
    pub queue: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ProgramTable {
    host: Spanned<String>,
    run: Spanned<String>,
    ready: Option<String>,
}

/// A program on a host.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it runs.
    pub host: String,
    /// Its name and arguments, with placeholders.
    pub words: Vec<String>,
    /// What it prints when it is ready; nothing is waited for otherwise.
    pub ready: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LoadTable {
    host: Spanned<String>,
    run: Spanned<String>,
    #[serde(default)]
    server_admin: Vec<Spanned<String>>,
    #[serde(default)]
    hold: Vec<Spanned<String>>,
}

/// What is measured, and what must hold.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the load starts.
    pub host: String,
    /// What follows `towpath-lab run`, with placeholders.
    pub words: Vec<String>,
    /// Servers that are asked what they lost, with their hosts.
    pub admins: Vec<(String, ServerAdmin)>,
    /// What must hold of the result.
    pub claims: Vec<Claim>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    host: BTreeMap<Spanned<String>, HostTable>,
    #[serde(default)]
    link: Vec<LinkTable>,
    #[serde(default)]
    file: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    program: Vec<ProgramTable>,
    load: Option<LoadTable>,
}

/// A place in the text, and what is wrong there.
type Wrong = (usize, String);

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or something in it is wrong.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = bounded::read_to_string(path, 1 << 20).map_err(|error| {
            crate::run::Problem::File(format!(
                "cannot read {}: {error}; give the name of a scenario file, or `demo`",
                path.display()
            ))
        })?;
        Self::parse(&path.display().to_string(), &text)
            .map_err(|error| crate::run::Problem::Usage(error.to_string()).into())
    }

    /// Reads a text; `name` is what it is called in errors.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let at = |(start, text_of_error): Wrong| ScenarioError {
            file: name.to_owned(),
            line: text.as_bytes()[..start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1,
            text: text_of_error,
        };
        let file: File = toml::from_str(text)
            .map_err(|error| at((error.span().map_or(0, |span| span.start), error.message().to_owned())))?;
        check(file).map_err(at)
    }
}

fn check(file: File) -> Result<Scenario, Wrong> {
    let mut hosts = BTreeMap::new();
    for (name, host) in &file.host {
        let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let text = name.get_ref();
        if text.is_empty() || text.len() > NAME_LEN_MAX || !text.chars().all(good) {
            let text = format!(
                "a host cannot be called {text:?}: use up to {NAME_LEN_MAX} small letters and digits"
            );
            return Err((name.span().start, text));
        }
        hosts.insert(text.clone(), check_host(host)?);
    }
    let known: BTreeSet<&str> = hosts.keys().map(String::as_str).collect();
    let known = |name: &str, at: usize| {
        if known.contains(name) {
            return Ok(());
        }
        let there = known.iter().copied().collect::<Vec<_>>().join(", ");
        Err((at, format!("there is no host {name:?}: add [host.{name}], or use one of {there}")))
    };
    let mut links: Vec<Link> = Vec::new();
    for table in &file.link {
        let link = check_link(table, &known)?;
        let same = |other: &Link| other.ends.iter().all(|end| link.ends.contains(end));
        if links.iter().any(same) {
            let [a, b] = &link.ends;
            return Err((
                table.ends.span().start,
                format!("{a} and {b} are joined already; one link can have several addresses"),
            ));
        }
        links.push(link);
    }
    check_devices(&file, &links)?;
    let mut programs = Vec::new();
    for table in &file.program {
        known(table.host.get_ref(), table.host.span().start)?;
        let words = words(table.run.get_ref());
        if words.is_empty() {
            return Err((
                table.run.span().start,
                "run names no program; write for example run = \"towpath up a.conf\"".to_owned(),
            ));
        }
        programs.push(Program { host: table.host.get_ref().clone(), words, ready: table.ready.clone() });
    }
    let mut files = Vec::new();
    for (name, content) in file.file {
        let (at, name) = (name.span().start, name.into_inner());
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err((
                at,
                format!(
                    "{name:?} is not the name of a file: it is made in the lab's own directory, so it has no '/' and no '.' in front"
                ),
            ));
        }
        files.push((name, content));
    }
    let load = file.load.as_ref().map(|table| check_load(table, &known)).transpose()?;
    Ok(Scenario { hosts, links, files, programs, load })
}

fn check_host(host: &HostTable) -> Result<Host, Wrong> {
    let route = |text: &Spanned<String>| {
        let wrong = || {
            let text_of_error = format!(
                "{:?} is not a route; write \"10.9.0.0/24 via 10.1.0.1\" or \"default via 10.1.0.1\"",
                text.get_ref()
            );
            (text.span().start, text_of_error)
        };
        let (net, gateway) = text.get_ref().split_once(" via ").ok_or_else(wrong)?;
        let gateway: IpAddr = gateway.trim().parse().map_err(|_| wrong())?;
        let net = match (net.trim(), gateway) {
            ("default", IpAddr::V4(_)) => "0.0.0.0/0",
            ("default", IpAddr::V6(_)) => "::/0",
            (net, _) => net,
        };
        Ok((net.parse().map_err(|_| wrong())?, gateway))
    };
    Ok(Host {
        forward: host.forward || !host.masquerade.is_empty(),
        ipv6: host.ipv6,
        masquerade: host.masquerade.iter().map(|device| device.get_ref().clone()).collect(),
        routes: host.routes.iter().map(route).collect::<Result<_, Wrong>>()?,
        nft: host.nft.clone(),
    })
}

fn check_link(table: &LinkTable, known: &impl Fn(&str, usize) -> Result<(), Wrong>) -> Result<Link, Wrong> {
    let at = table.ends.span().start;
    let ends = table.ends.get_ref().clone();
    for end in &ends {
        known(end, at)?;
    }
    if ends[0] == ends[1] {
        return Err((at, format!("a link joins two hosts, not {} with itself", ends[0])));
    }
    let addresses = |text: &String| {
        let net = |text: &str| {
            text.trim().parse::<IpNet>().map_err(|_| {
                let text = format!("{text:?} is not an address with its prefix; write \"10.1.0.1/24\", several with commas between them");
                (table.addresses.span().start, text)
            })
        };
        text.split(',').map(net).collect::<Result<Vec<_>, Wrong>>()
    };
    let [near, far] = table.addresses.get_ref();
    let addresses = [addresses(near)?, addresses(far)?];
    if let Some(mtu) = table.mtu.as_ref().filter(|mtu| !(68..=65_535).contains(mtu.get_ref())) {
        return Err((
            mtu.span().start,
            format!("an MTU of {} is impossible: use 68 to 65535, with IPv6 1280 or more", mtu.get_ref()),
        ));
    }
    let bucket = table.rate.as_ref().map(|rate| {
        let wrong = || {
            (rate.span().start, format!("{:?} is not a rate in bits; write it like 100Mbit", rate.get_ref()))
        };
        match rate.get_ref().parse() {
            Ok(Rate::Bits(bits)) if (8.0..=8.0 * f64::from(u32::MAX)).contains(&bits) => {
                Ok(Bucket { rate: (bits / 8.0) as u32, burst: table.burst, queue: table.queue })
            }
            _ => Err(wrong()),
        }
    });
    Ok(Link {
        ends,
        addresses,
        mtu: table.mtu.as_ref().map(|mtu| *mtu.get_ref()),
        bucket: bucket.transpose()?,
    })
}

/// What a link's device is called on `near`.
#[must_use]
pub fn device(near: &str, far: &str) -> String {
    format!("{near}-{far}")
}

/// Devices to hide behind have to be there.
fn check_devices(file: &File, links: &[Link]) -> Result<(), Wrong> {
    for (name, host) in &file.host {
        let devices: Vec<String> = links
            .iter()
            .flat_map(|link| [[&link.ends[0], &link.ends[1]], [&link.ends[1], &link.ends[0]]])
            .filter(|ends| ends[0] == name.get_ref())
            .map(|ends| device(ends[0], ends[1]))
            .collect();
        for wanted in &host.masquerade {
            if !devices.contains(wanted.get_ref()) {
                let text = format!(
                    "host {} has no device {:?}; its devices are {}",
                    name.get_ref(),
                    wanted.get_ref(),
                    devices.join(", ")
                );
                return Err((wanted.span().start, text));
            }
        }
    }
    Ok(())
}

fn check_load(table: &LoadTable, known: &impl Fn(&str, usize) -> Result<(), Wrong>) -> Result<Load, Wrong> {
    known(table.host.get_ref(), table.host.span().start)?;
    let words = words(table.run.get_ref());
    // Placeholders stand for text of the same form: what is wrong now stays wrong.
    run_spec(&words).map_err(|text| (table.run.span().start, format!("run: {text}")))?;
    let admin = |text: &Spanned<String>| {
        let wrong = |why: &str| {
            let form = "write HOST/ADDRESS:PORT, for example \"relay/127.0.0.1:9641\"";
            (text.span().start, format!("{:?}: {why}; {form}", text.get_ref()))
        };
        let (name, place) = match text.get_ref().split_once('=') {
            Some((name, place)) => (Some(name), place),
            None => (None, text.get_ref().as_str()),
        };
        let (host, address) = place.split_once('/').ok_or_else(|| wrong("no host is named"))?;
        known(host, text.span().start)?;
        let admin: ServerAdmin = address.parse().map_err(|error: String| wrong(&error))?;
        Ok((host.to_owned(), ServerAdmin { name: name.map(str::to_owned), ..admin }))
    };
    let claim =
        |text: &Spanned<String>| text.get_ref().parse::<Claim>().map_err(|error| (text.span().start, error));
    Ok(Load {
        host: table.host.get_ref().clone(),
        words,
        admins: table.server_admin.iter().map(admin).collect::<Result<_, Wrong>>()?,
        claims: table.hold.iter().map(claim).collect::<Result<_, Wrong>>()?,
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[host.a]
routes = ["default via 10.1.0.1"]
[host.r]
masquerade = ["r-a"]

[[link]]
ends = ["a", "r"]
addresses = ["10.1.0.2/24, fd01::2/64", "10.1.0.1/24"]
rate = "100Mbit"

[file]
x = "${password}"

[[program]]
host = "r"
run = "towpath-lab reflect 10.1.0.1:7"

[load]
host = "a"
run = "udp 10.1.0.1:7 --rate 1kpps"
server-admin = ["far=r/127.0.0.1:9642"]
hold = ["lost = 0"]
"#;

    #[test]
    fn what_a_scenario_says_is_what_it_means() {
        let scenario = Scenario::parse("x.toml", GOOD).unwrap();
        assert!(scenario.hosts["r"].forward && !scenario.hosts["a"].forward && scenario.hosts["a"].ipv6);
        assert_eq!(scenario.hosts["a"].routes, [("0.0.0.0/0".parse().unwrap(), "10.1.0.1".parse().unwrap())]);
        let link = &scenario.links[0];
        assert_eq!(link.bucket, Some(Bucket { rate: 12_500_000, burst: 131_072, queue: 1_048_576 }));
        assert_eq!((link.addresses[0].len(), link.addresses[1].len()), (2, 1));
        assert_eq!(scenario.programs[0].words.len(), 3);
        let load = scenario.load.unwrap();
        assert_eq!((load.admins[0].0.as_str(), load.admins[0].1.name.as_deref()), ("r", Some("far")));
        Scenario::parse("demo", DEMO).unwrap();
    }

    #[test]
    fn every_error_names_line_and_remedy() {
        for (good, bad, line, hint) in [
            ("[host.r]", "[host.Router]", 4, "small letters"),
            ("default via", "default through", 3, "default via 10.1.0.1"),
            ("[\"r-a\"]", "[\"r-b\"]", 5, "its devices are r-a"),
            ("ends = [\"a\", \"r\"]", "ends = [\"a\", \"b\"]", 8, "add [host.b], or use one of a, r"),
            ("ends = [\"a\", \"r\"]", "ends = [\"a\", \"a\"]", 8, "two hosts"),
            ("10.1.0.2/24,", "10.1.0.2,24", 9, "10.1.0.1/24"),
            ("100Mbit", "100kpps", 10, "100Mbit"),
            ("rate = ", "mtu = 9\nrate = ", 10, "68 to 65535"),
            ("rate = ", "speed = ", 10, "unknown field `speed`"),
            ("x = \"", "\"../x\" = \"", 13, "'/'"),
            ("run = \"towpath-lab reflect 10.1.0.1:7\"", "run = \"\"", 17, "towpath up"),
            ("--rate 1kpps", "--rate fast", 21, "20kpps"),
            ("--rate 1kpps", "--size 1", 21, "--size 56"),
            ("far=r/127.0.0.1:9642", "127.0.0.1:9642", 22, "relay/127.0.0.1:9641"),
            ("lost = 0", "lost", 23, "lost = 0"),
            ("[load]", "[load", 19, ""),
            (
                "[load]",
                "[[link]]\nends = [\"r\", \"a\"]\naddresses = [\"10.3.0.1/24\", \"10.3.0.2/24\"]\n[load]",
                20,
                "joined already",
            ),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let error = Scenario::parse("x.toml", &GOOD.replacen(good, bad, 1)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x.toml:{line}: ")) && error.contains(hint), "{bad}: {error}");
        }
    }
}
