//! Configuration files as people write them, and as they get them wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use dataplane::config::{self, Config};
use proptest::prelude::*;

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        path
    }
}

fn load(text: &str) -> Result<(Config, Vec<String>), config::ConfigError> {
    let files = Files::new();
    Config::load(&files.write("wg0.conf", text, 0o600))
}

/// Line and text of the error.
fn problem(text: &str) -> (Option<usize>, String) {
    let error = load(text).expect_err("must be refused");
    let shown = error.to_string();
    for key in [PRIVATE, PEER, OTHER] {
        assert!(!shown.contains(&key[..10]), "a key is shown: {shown}");
    }
    assert!(shown.contains("wg0.conf"), "{shown}");
    (error.line, error.problem)
}

fn interface(lines: &str) -> String {
    format!("[Interface]\nPrivateKey = {PRIVATE}\n{lines}\n")
}

fn with_peer(lines: &str) -> String {
    format!("[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {PEER}\n{lines}\n")
}

#[test]
fn a_whole_file_is_understood() {
    let (config, warnings) = load(&format!(
        "# my tunnel\n\
         [interface]\n\
         privatekey={PRIVATE} # a comment\n\
         Address = 10.0.0.1/24, fd00::1/64\n\
         Address = 10.9.9.9\n\
         ListenPort = 51820\n\
         MTU = 1420\n\
         \n\
         [Peer]\n\
         PublicKey = {PEER}\n\
         PresharedKey = {PRIVATE}\n\
         AllowedIPs = 10.0.0.2/32, fd00::2\n\
         AllowedIPs = 10.1.2.3/16\n\
         Endpoint = [2001:db8::1]:51820\n\
         PersistentKeepalive = 25\n\
         [Peer]\n\
         PublicKey = {OTHER}\n\
         AllowedIPs = 10.0.0.3\n\
         Endpoint = vpn.example.org:1\n\
         PersistentKeepalive = off\n"
    ))
    .expect("valid");
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(*config.private_key.to_base64(), PRIVATE);
    let addresses: Vec<_> = config.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1/24", "fd00::1/64", "10.9.9.9/32"]);
    assert_eq!((config.listen_port, config.mtu), (51_820, 1_420));
    assert!(config.relay.is_none() && config.has_ipv6());

    let [first, second] = &config.peers[..] else { panic!("two peers") };
    assert_eq!(first.public_key.to_string(), PEER);
    assert!(first.preshared_key.is_some() && second.preshared_key.is_none());
    let allowed: Vec<_> = first.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.0.0.2/32", "fd00::2/128", "10.1.0.0/16"]);
    let endpoint =
        |peer: &config::PeerSection| peer.endpoint.as_ref().map(|(endpoint, _)| endpoint.to_string());
    assert_eq!(endpoint(first).as_deref(), Some("[2001:db8::1]:51820"));
    assert_eq!(endpoint(second).as_deref(), Some("vpn.example.org:1"));
    assert_eq!((first.persistent_keepalive, second.persistent_keepalive), (25, 0));
}

#[test]
fn what_may_be_missing_has_defaults() {
    let (config, warnings) = load(&interface("Address = 10.0.0.1")).expect("valid");
    assert_eq!((config.listen_port, config.mtu), (0, 1_280));
    assert!(config.peers.is_empty() && warnings.is_empty());
}

#[test]
fn mtu_ecn_and_dscp_are_understood() {
    use dataplane::tunnel::marking::{Dscp, Marking};
    let (config, _) = load(&interface("MTU = Auto")).expect("valid");
    assert!(config.mtu_auto);
    assert_eq!(config.marking, Marking { ecn: true, dscp: Dscp::Fixed(0) });
    let (config, warnings) =
        load(&interface("Address = 10.0.0.1\n#towpath: ECN = off\n# towpath: dscp = copy")).expect("valid");
    assert_eq!((config.mtu_auto, config.marking), (false, Marking { ecn: false, dscp: Dscp::Copy }));
    assert!(warnings.is_empty());
}

#[test]
fn keys_and_passwords_can_stand_in_files_of_their_own() {
    let files = Files::new();
    files.write("wg0.key", &format!("{PRIVATE}\n"), 0o600);
    files.write("password", "hunter2\n", 0o644);
    let text = "[Interface]\nPrivateKeyFile = wg0.key\nAddress = 10.0.0.1\n\
                #towpath: Relay = turn:relay.example:3479\n\
                # towpath: RelayUsername = alice\n\
                #towpath: RelayPasswordFile = password\n";
    let file = files.write("wg0.conf", text, 0o604);
    let (config, warnings) = Config::load(&file).expect("valid");
    assert_eq!(*config.private_key.to_base64(), PRIVATE);
    let relay = config.relay.expect("a relay");
    assert_eq!(relay.server.to_string(), "relay.example:3479");
    assert_eq!((relay.username.as_str(), relay.password.expose()), ("alice", "hunter2"));
    assert!(!format!("{relay:?}").contains("hunter2"));
    // The configuration itself holds no secret, so everyone may read it.
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("password") && warnings[0].contains("chmod 600"), "{warnings:?}");
    let inline = text.replace("PrivateKeyFile = wg0.key", &format!("PrivateKey = {PRIVATE}"));
    let (_, warnings) = Config::load(&files.write("wg1.conf", &inline, 0o604)).expect("valid");
    assert!(warnings[0].contains("wg1.conf") && warnings[0].contains("chmod 600"), "{warnings:?}");

    fs::remove_file(files.0.path().join("wg0.key")).expect("removed");
    let error = Config::load(&file).expect_err("no key file");
    assert_eq!(error.line, Some(2));
    assert!(error.problem.contains("wg0.key"), "{error}");
}

#[test]
fn relays_are_checked() {
    let relay = |uri: &str| {
        let files = Files::new();
        files.write("p", "x", 0o600);
        let text = interface(&format!(
            "#towpath: Relay = {uri}\n#towpath: RelayUsername = u\n#towpath: RelayPasswordFile = p"
        ));
        Config::load(&files.write("wg0.conf", &text, 0o600))
            .map(|(config, _)| config.relay.expect("a relay").server.to_string())
            .map_err(|error| (error.line, error.problem))
    };
    assert_eq!(relay("turn:192.0.2.1"), Ok("192.0.2.1:3478".to_owned()));
    assert_eq!(relay("turn:[2001:db8::1]:99?transport=udp"), Ok("[2001:db8::1]:99".to_owned()));
    for bad in
        ["192.0.2.1:3478", "turns:relay.example", "turn:relay.example?transport=tcp", "turn:", "turn:a:b"]
    {
        let (line, text) = relay(bad).expect_err(bad);
        assert_eq!(line, Some(3), "{bad}: {text}");
        assert!(text.contains("HOST:PORT"), "{bad}: {text}");
    }
    let (line, text) = problem(&interface("Address = 10.0.0.1\n#towpath: Relay = turn:192.0.2.1"));
    assert_eq!(line, Some(4));
    assert!(text.contains("RelayPasswordFile"), "{text}");
    assert!(problem(&interface("Relay = turn:192.0.2.1")).1.contains("#towpath: Relay"));
    assert!(problem(&interface("#towpath: RelayPassword = x")).1.contains("RelayPasswordFile"));
    assert!(problem(&with_peer("#towpath: Relay = turn:192.0.2.1")).1.contains("[Interface]"));
}

#[test]
fn each_mistake_names_its_line_and_the_remedy() {
    let cases: &[(String, usize, &str)] = &[
        (format!("PrivateKey = {PRIVATE}"), 1, "[Interface]"),
        (interface("[Pear]"), 3, "[Peer]"),
        (interface("[Peer"), 3, "[Peer]"),
        (interface("[Interface]"), 3, "merge"),
        (interface(PEER.trim_end_matches('=')), 3, "KEY = VALUE"),
        (interface(PEER), 3, "unknown"),
        (interface("Colour = blue"), 3, "Colour"),
        (interface("PublicKey = x"), 3, "[Peer]"),
        (interface(&format!("PrivateKey = {PRIVATE}")), 3, "line 2"),
        (interface("PrivateKeyFile = x"), 3, "keep one"),
        (interface("MTU = 9001"), 3, "9000"),
        (interface("MTU = 575"), 3, "576"),
        (interface("MTU = 1279\nAddress = fd00::1"), 3, "1280"),
        (interface("MTU = large"), 3, "auto"),
        (interface("#towpath: ECN = maybe"), 3, "on nor off"),
        (interface("#towpath: DSCP = 64"), 3, "0 to 63"),
        (interface("#towpath: ECN = on\n#towpath: ECN = on"), 4, "line 3"),
        (interface("DSCP = 1"), 3, "#towpath: DSCP"),
        (interface("ListenPort = 65536"), 3, "65535"),
        (interface("ListenPort = -1"), 3, "65535"),
        (interface("Address = 10.0.0.1/33"), 3, "10.0.0.0/24"),
        (interface("Address = 224.0.0.1"), 3, "unicast"),
        (interface("Address = ::"), 3, "unicast"),
        (interface("Address = 10.0.0.1/24, 10.0.0.1/32"), 3, "already"),
        (interface("PostUp = rm -rf /"), 3, "not supported yet"),
        (interface("DNS = 1.1.1.1"), 3, "not supported yet"),
        (interface("Table = off"), 3, "not supported yet"),
        (interface("FwMark = 1"), 3, "not supported yet"),
        (interface("SaveConfig = true"), 3, "not supported yet"),
        (with_peer("AllowedIPs = 0.0.0.0/0"), 5, "not supported yet"),
        (with_peer("AllowedIPs = ::/0"), 5, "not supported yet"),
        (with_peer("AllowedIPs = 10.0.0.0/8, ten"), 5, "address range"),
        (with_peer("Endpoint = 192.0.2.1"), 5, "HOST:PORT"),
        (with_peer("Endpoint = 2001:db8::1"), 5, "brackets"),
        (with_peer("Endpoint = [2001:db8::1]"), 5, "HOST:PORT"),
        (with_peer("Endpoint = 192.0.2.1:0"), 5, "port 0"),
        (with_peer("Endpoint = 224.0.0.5:1"), 5, "unicast"),
        (with_peer("Endpoint = 255.255.255.255:1"), 5, "unicast"),
        (with_peer("Endpoint = 0.0.0.0:1"), 5, "unicast"),
        (with_peer("Endpoint = a b:1"), 5, "HOST:PORT"),
        (with_peer("PersistentKeepalive = on"), 5, "off"),
        (with_peer("PersistentKeepalive = 65536"), 5, "65535"),
        (with_peer("MTU = 1280"), 5, "[Interface]"),
        (with_peer(&format!("PublicKey = {OTHER}")), 5, "line 4"),
        (with_peer(&format!("[Peer]\nPublicKey = {PEER}")), 5, "line 3"),
        (with_peer("[Peer]"), 5, "PublicKey"),
        (with_peer("PresharedKey = AAAA"), 5, "base64"),
        (format!("[Interface]\nPrivateKey = {}\n", &PRIVATE[1..]), 2, "base64"),
        ("[Interface]\nAddress = 10.0.0.1\n".to_owned(), 1, "genkey"),
    ];
    for (text, line, remedy) in cases {
        let (found, problem) = problem(text);
        assert_eq!(found, Some(*line), "{text}\n{problem}");
        assert!(problem.contains(remedy), "{text}\n{problem}");
    }
    assert_eq!(problem("").0, None, "no section at all");
}

#[test]
fn keys_that_cannot_be_a_peers_are_refused() {
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let one = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for low_order in [zero, one] {
        let text = format!("[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {low_order}\n");
        let (line, problem) = problem(&text);
        assert_eq!(line, Some(4));
        assert!(problem.contains("small order"), "{problem}");
    }
    let own = dataplane::tunnel::noise::public_key(&PRIVATE.parse().expect("key"));
    let (line, problem) =
        problem(&format!("[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {own}\n"));
    assert_eq!(line, Some(3));
    assert!(problem.contains("our own"), "{problem}");
}

#[test]
fn a_key_in_the_wrong_place_is_not_shown() {
    // `problem` checks that no key is shown.
    problem(&with_peer(&format!("Endpoint = {OTHER}")));
    problem(&with_peer(&format!("AllowedIPs = {OTHER}")));
    problem(&with_peer(&format!("PersistentKeepalive = {OTHER}")));
    problem(&interface(&format!("MTU = {OTHER}")));
    problem(&interface(OTHER));
    problem(&interface(&format!("{OTHER} = 1")));
    problem(&format!("[{OTHER}]"));
}

#[test]
fn a_prefix_of_two_peers_is_a_warning() {
    let text = with_peer(&format!(
        "AllowedIPs = 10.0.0.0/24\n[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.0.0.9/24, 10.0.1.0/24"
    ));
    let (_, warnings) = load(&text).expect("valid");
    let overlap: Vec<_> = warnings.iter().filter(|warning| warning.contains("10.0.0.0/24")).collect();
    assert_eq!(overlap.len(), 1, "{warnings:?}");
    assert!(overlap[0].contains("lines 3 and 6"), "{overlap:?}");
}

#[test]
fn many_peers_load() {
    use base64::Engine as _;
    let mut text = interface("Address = 10.0.0.1/8");
    for number in 0..20_000_u32 {
        let mut key = [9; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let [_, b, c, d] = number.to_be_bytes();
        text.push_str(&format!("[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{b}.{c}.{d}/32\n"));
    }
    assert_eq!(load(&text).expect("valid").0.peers.len(), 20_000);
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let files = Files::new();
    let missing = Config::load(&files.0.path().join("wg0.conf")).expect_err("missing").to_string();
    assert!(missing.contains("wg0.conf: cannot be read"), "{missing}");
    let path = files.0.path().join("wg1.conf");
    fs::write(&path, [0xff, 0xfe, 0]).expect("written");
    assert!(Config::load(&path).expect_err("binary").to_string().contains("UTF-8"));
}

#[test]
fn the_file_names_the_interface() {
    let name = |file: &str| config::interface_name(Path::new(file)).ok();
    assert_eq!(name("/etc/towpath/wg0.conf").as_deref(), Some("wg0"));
    assert_eq!(name("a.b_c-d.conf").as_deref(), Some("a.b_c-d"));
    assert_eq!(name("sixteen-letters1.conf"), None);
    assert_eq!(name("my tunnel.conf"), None);
    assert_eq!(name(".."), None);
}

proptest! {
    #[test]
    fn any_text_is_answered_without_showing_a_key(
        lines in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "[Interface]", "[Peer]", "[", "PrivateKey =", "PublicKey =", "PresharedKey=", "Address =",
                    "AllowedIPs =", "Endpoint =", "MTU =", "ListenPort =", "PersistentKeepalive =", "#towpath:",
                    "#towpath: Relay =", "#towpath: RelayUsername =", "#", "", "=",
                ]),
                prop_oneof![Just(PRIVATE.to_owned()), Just(PEER.to_owned()), Just("10.0.0.1/8".to_owned()), ".{0,40}"],
            ),
            0..12,
        )
    ) {
        let text: String = lines.iter().map(|(start, rest)| format!("{start} {rest}\n")).collect();
        if let Err(error) = load(&text) {
            let shown = error.to_string();
            prop_assert!(!shown.contains(&PRIVATE[..10]) && !shown.contains(&PEER[..10]), "{}", shown);
            prop_assert!(error.line.is_none_or(|line| (1..=text.lines().count()).contains(&line)));
        }
    }
}
