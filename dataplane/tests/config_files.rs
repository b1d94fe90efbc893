//! Configuration files as people write them, and as they get them wrong.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use dataplane::config::{self, Config, Table};
use dataplane::tunnel::key::SecretKey;
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
    assert!(config.relays.is_empty() && config.has_ipv6());

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
    let [relay] = &config.relays[..] else { panic!("{:?}", config.relays) };
    assert_eq!(relay.server.to_string(), "relay.example:3479");
    let found = &relay.credentials;
    assert_eq!((found.username.as_str(), found.password.expose()), ("alice", "hunter2"));
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
            .map(|(config, _)| config.relays[0].server.to_string())
            .map_err(|error| (error.line, error.problem))
    };
    assert_eq!(relay("turn:192.0.2.1"), Ok("192.0.2.1:3478".to_owned()));
    assert_eq!(relay("turn:[2001:db8::1]:99?transport=udp"), Ok("[2001:db8::1]:99".to_owned()));
    assert_eq!(relay("turn:relay.example?transport=tcp"), Ok("relay.example:3478".to_owned()));
    assert_eq!(relay("turns:relay.example"), Ok("relay.example:5349".to_owned()));
    for bad in [
        "192.0.2.1:3478",
        "turns:relay.example?transport=sctp",
        "turns:r?transport=udp",
        "turn:r?x=tcp",
        "turn:",
        "turn:a:b",
    ] {
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
        (interface("PostUp ="), 3, "command"),
        (interface("DNS = 1.1.1"), 3, "name server"),
        (interface("DNS = 10.9.0.2, a b/c"), 3, "domain"),
        (interface("Table = nowhere-at-all"), 3, "51820"),
        (interface("Table = off\nTable = auto"), 4, "line 3"),
        (interface("FwMark = 0x1ffffffff"), 3, "0xca6c"),
        (interface("SaveConfig = yes"), 3, "true"),
        (with_peer("PostUp = true"), 5, "[Interface]"),
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
        (interface("ListenPort 51820"), 3, "ListenPort = 51820"),
        (interface("SaveConfig = yes"), 3, "write one of the two"),
        (interface("DNS = \"1.1.1.1\""), 3, "without quotation marks"),
        (interface("DNS = 1.1.1.1:53"), 3, "without a port"),
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
fn what_is_to_be_done_to_the_host_is_read_as_wg_quick_reads_it() {
    let (config, warnings) = load(&format!(
        "{}[Peer]\nPublicKey = {PEER}\nAllowedIPs = 0.0.0.0/0, ::/0\n",
        interface(
            "Address = 10.0.0.1/24\nDNS = 10.0.0.2,fd00::2 example.org\ndns = corp.example # ours\nTable=1234\nFwMark = 0xca6c\n\
             SaveConfig = TRUE\nPostUp = one %i; two = 2 # three\nPostUp = four\nPreUp = a\nPreDown = b\nPostDown = c"
        )
    ))
    .expect("valid");
    assert_eq!(warnings, Vec::<String>::new());
    let host = &config.host;
    assert_eq!((host.table, host.firewall_mark, host.save_config), (Table::Number(1234), 0xca6c, true));
    let servers: Vec<String> = host.name_servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.2", "fd00::2"]);
    assert_eq!(host.search_domains, ["example.org", "corp.example"]);
    assert_eq!(host.hooks.post_up, ["one %i; two = 2", "four"]);
    let others = [&host.hooks.pre_up, &host.hooks.pre_down, &host.hooks.post_down];
    assert_eq!(others.map(|hooks| hooks.join("|")), ["a", "b", "c"]);
    assert_eq!(config.peers[0].allowed_ips.len(), 2);

    let (config, _) = load(&interface("FwMark = off\nTable = main\nSaveConfig = false")).expect("valid");
    assert_eq!((config.host.firewall_mark, config.host.table), (0, Table::Number(254)));
    assert!(!config.host.save_config && config.host.hooks.is_empty());
}

#[test]
fn commands_that_everyone_can_write_are_not_run() {
    let files = Files::new();
    let text = interface("Address = 10.0.0.1\nPostUp = true");
    let error = Config::load(&files.write("wg0.conf", &text, 0o602)).expect_err("refused").to_string();
    assert!(error.contains("chmod o-w"), "{error}");
    assert!(Config::load(&files.write("wg0.conf", &text, 0o600)).is_ok());
    assert!(Config::load(&files.write("wg1.conf", &interface("Address = 10.0.0.1"), 0o602)).is_ok());
}

/// Both formats of a configuration, whose files lie in one folder.
fn both(conf: &str, toml: &str) -> [Config; 2] {
    let files = Files::new();
    files.write("p", "secret", 0o600);
    [("wg0.conf", conf), ("wg0.toml", toml)].map(|(name, text)| {
        let (config, warnings) = Config::load(&files.write(name, text, 0o600)).expect(name);
        assert_eq!(warnings, Vec::<String>::new());
        config
    })
}

#[test]
fn toml_says_the_same() {
    let conf = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1/24, fd00::1/64\nListenPort = 51820\nMTU = 1420\n\
         DNS = 10.0.0.2, example.org\nTable = off\nFwMark = 0xca6c\nPostUp = echo \"one\"\nPostUp = two\n\
         #towpath: Relay = turns:relay.example\n#towpath: RelayUsername = u\n#towpath: RelayPasswordFile = p\n\
         #towpath: RelayCertificate = c\n\
         [Peer]\nPublicKey = {PEER}\nPresharedKey = {PRIVATE}\nAllowedIPs = 10.0.0.2, ::/0\nEndpoint = [2001:db8::1]:1\n\
         PersistentKeepalive = 25\n[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.0.0.3\nPersistentKeepalive = off\n"
    );
    let toml = format!(
        "# mine\n[interface]\nprivate-key = \"{PRIVATE}\"\naddress = [\"10.0.0.1/24\", \"fd00::1/64\"]\nlisten-port = 51820\n\
         mtu = 1420\ndns = [\"10.0.0.2\", \"example.org\"]\ntable = \"off\"\nfw-mark = 0xca6c\n\
         post-up = ['echo \"one\"', \"two\"]\nrelay = \"turns:relay.example\"\nrelay-username = \"u\"\nrelay-password-file = \"p\"\n\
         relay-certificate = \"c\"\n\
         [[peer]]\npublic-key = \"{PEER}\"\npreshared-key = \"{PRIVATE}\"\nallowed-ips = [\"10.0.0.2\", \"::/0\"]\n\
         endpoint = \"[2001:db8::1]:1\"\npersistent-keepalive = 25\n\
         [[peer]]\nPublicKey = \"{OTHER}\"\nAllowedIPs = \"10.0.0.3\"\npersistent-keepalive = \"off\"\n"
    );
    let shown = both(&conf, &toml).map(|mut config| {
        // Those are where they stand in each.
        for peer in &mut config.peers {
            peer.line = 0;
            peer.endpoint.iter_mut().for_each(|(_, line)| *line = 0);
        }
        (format!("{config:?}"), config.private_key.to_base64().to_string())
    });
    assert_eq!(shown[0], shown[1]);
}

#[test]
fn mistakes_in_toml_name_their_line_too() {
    let files = Files::new();
    let key = format!("private-key = \"{PRIVATE}\"");
    let cases = [
        (format!("[interface]\n{key}\nmtu = 9001\n"), Some(3), "9000"),
        (format!("[interface]\n{key}\nmtu = 1420.5\n"), Some(3), "whole number"),
        (format!("[interface]\n{key}\ncolour = \"blue\"\n"), Some(3), "colour"),
        (
            format!("[interface]\n{key}\naddress = [\n  \"10.0.0.1\",\n  \"ten\",\n]\n"),
            Some(5),
            "address range",
        ),
        (format!("[interface]\n{key}\nsave-config = true\n"), Some(3), "wg-quick"),
        (format!("[interface]\n{key}\n[[peer]]\nallowed-ips = \"10.0.0.2\"\n"), Some(3), "PublicKey"),
        (format!("[interface]\n{key}\n[peer]\npublic-key = \"{PEER}\"\n"), Some(3), "[[peer]]"),
        (format!("peer = [1]\n[interface]\n{key}\n"), Some(1), "[[peer]]"),
        (format!("[interface]\n{key}\n[server]\n"), Some(3), "[interface]"),
        (format!("[interface]\n{key}\nprivate-key = \"{OTHER}\"\n"), Some(3), "TOML"),
        (format!("[interface]\nprivate-key = {PRIVATE}\n"), Some(2), "TOML"),
        (
            format!("[Interface]\nPrivateKey = \"{PRIVATE}\"\nprivate-key = \"{PRIVATE}\"\n"),
            Some(3),
            "line 2",
        ),
        (String::new(), None, "[Interface]"),
    ];
    for (text, line, remedy) in cases {
        let error = Config::load(&files.write("wg0.toml", &text, 0o600)).expect_err(&text);
        assert_eq!(error.line, line, "{text}\n{error}");
        assert!(error.problem.contains(remedy), "{text}\n{error}");
        assert!(!error.to_string().contains(&PRIVATE[..10]), "{error}");
    }
    let text = format!("[interface]\n{key}\naddress = \"10.0.0.1\"\n");
    let (_, warnings) = Config::load(&files.write("wg0.toml", &text, 0o604)).expect("valid");
    assert!(warnings.len() == 1 && warnings[0].contains("chmod 600"), "{warnings:?}");
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
    let of = |given: &str| config::interface_of(Path::new(given)).ok();
    for given in ["wg.0", "/etc/towpath/wg.0.conf", "wg.0.toml", "./wg.0.conf"] {
        assert_eq!(of(given).as_deref(), Some("wg.0"), "{given}");
    }
    assert_eq!(of("/etc/towpath/wg0.txt").as_deref(), Some("wg0"));
    for path in ["no-such-one.conf", "no-such-one.toml", "./no-such-one", "/no-such-one"] {
        assert_eq!(config::find(Path::new(path)).as_deref(), Ok(Path::new(path)), "{path}");
    }
    let error = config::find(Path::new("no-such-one")).expect_err("nowhere").to_string();
    assert!(error.contains("/etc/towpath/no-such-one.conf"), "{error}");
}

/// How often a text is found in memory that this process has written to. Given with every bit inverted, so that it is not found
/// in itself.
fn copies_in_memory(inverted: &[u8]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let memory = fs::File::open("/proc/self/mem").expect("memory");
    let mut copies = 0;
    for map in maps.lines().filter(|line| line.contains(" rw-p ") && !line.contains('/')) {
        let (start, end) = map.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
        let mut bytes = vec![0; (end - start) as usize];
        // A thread of another test may have ended meanwhile.
        let len = memory.read_at(&mut bytes, start).unwrap_or(0);
        copies += bytes[..len]
            .windows(inverted.len())
            .filter(|window| window[0] == !inverted[0] && window.iter().zip(inverted).all(|(a, b)| *a == !*b))
            .count();
    }
    copies
}

#[test]
fn no_key_stays_behind_in_memory() {
    let key = || {
        let bytes = std::array::from_fn(|at| if at == 0 { 0x68 } else { (at * 37 + 11) as u8 });
        SecretKey::new(bytes).clamped().to_base64()
    };
    // Not its beginning: over that the allocator writes what it notes about free memory.
    let inverted: Vec<u8> = key().bytes().skip(20).map(|byte| !byte).collect();
    let held = key();
    assert!(copies_in_memory(&inverted) >= 1, "it would be found");
    drop(held);
    let files = Files::new();
    let long = "# nothing\n".repeat(2_000);
    for (name, before, after) in [
        ("wg0.conf", "[Interface]\nPrivateKey = ", "\n[Peer]\nPublicKey = OTHER\n"),
        ("wg0.toml", "[interface]\nprivate-key = \"", "\"\n[[peer]]\npublic-key = \"OTHER\"\n"),
        // An escape, so that the value is not what stands in the file.
        ("wg1.toml", "[interface]\nprivate-key = \"\\u0061", "\"\n"),
    ] {
        let path = files.write(name, "", 0o600);
        let mut file = fs::File::options().append(true).open(&path).expect("open");
        let key = key();
        // The escape stands for the first letter.
        let skipped = usize::from(before.ends_with("61"));
        assert!(skipped == 0 || key.starts_with('a'), "{}", &key[..1]);
        for part in [before, &key[skipped..], &after.replace("OTHER", OTHER), &long] {
            file.write_all(part.as_bytes()).expect("written");
        }
        drop((file, key));
        let (config, _) = Config::load(&path).expect("good");
        assert_eq!(copies_in_memory(&inverted), 0, "{name}");
        drop(config);
    }
}

proptest! {
    #[test]
    fn any_text_is_answered_without_showing_a_key(
        lines in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "[Interface]", "[Peer]", "[", "PrivateKey =", "PublicKey =", "PresharedKey=", "Address =",
                    "AllowedIPs =", "Endpoint =", "MTU =", "ListenPort =", "PersistentKeepalive =", "#towpath:",
                    "#towpath: Relay =", "#towpath: RelayUsername =", "#", "", "=", "DNS =", "Table =", "FwMark =", "PostUp =",
                    "SaveConfig =",
                ]),
                prop_oneof![Just(PRIVATE.to_owned()), Just(PEER.to_owned()), Just("10.0.0.1/8".to_owned()), ".{0,40}"],
            ),
            0..12,
        )
    ) {
        let text: String = lines.iter().map(|(start, rest)| format!("{start} {rest}\n")).collect();
        let files = Files::new();
        let as_toml = Config::load(&files.write("wg0.toml", &text, 0o600));
        for error in [load(&text).err(), as_toml.err()].into_iter().flatten() {
            let shown = error.to_string();
            prop_assert!(!shown.contains(&PRIVATE[..10]) && !shown.contains(&PEER[..10]), "{}", shown);
            prop_assert!(error.line.is_none_or(|line| (1..=text.lines().count()).contains(&line)));
        }
    }
}
