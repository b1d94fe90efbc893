//! Whole files, and what they come to: texts, and configurations that are loaded.

use std::path::Path;

use clap::Parser as _;

use super::document::document;
use super::translate::{Translation, translate};
use super::{lines, name_files};
use crate::config::{Args, Config};
use crate::login::Proof;

fn translated(text: &str) -> Translation {
    translate(text, Path::new("/etc")).unwrap_or_else(|bad| panic!("{}: {}", bad.line, bad.text))
}

/// Loads what a turnserver.conf comes to, as `--config` does it.
fn loaded(text: &str) -> (Config, Translation) {
    let folder = tempfile::tempdir().unwrap();
    let mut translation = translated(text);
    let (users, secrets) = name_files(&mut translation, folder.path());
    for (path, values) in [(users, &translation.users), (secrets, &translation.secrets)] {
        if let Some(path) = path {
            super::write(&path, &lines(values), true, false).unwrap();
        }
    }
    let output = folder.path().join("relay.toml");
    let document = document("turnserver.conf", &translation);
    super::write(&output, &document, false, false).unwrap();
    let args = Args::try_parse_from(["towpath-relay", "--config", output.to_str().unwrap()]).unwrap();
    let config = Config::load(&args).unwrap_or_else(|error| panic!("{error}\n{document}"));
    (config, translation)
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_is_coturn_as_it_comes_out_of_the_box() {
    let (config, translation) = loaded("");
    assert!(config.listen_is_default && translation.missing.is_empty());
    assert_eq!(texts(&config.streams.tcp), ["0.0.0.0:3478", "[::]:3478"]);
    assert!(config.streams.tls.is_empty() && config.users.is_empty() && config.secrets.is_empty());
    assert!(translation.differences.iter().any(|note| note.text.contains("only STUN is served")));
}

#[test]
fn a_whole_configuration_comes_over() {
    let text = "listening-port=3479\nlistening-ip=192.0.2.1\nlistening-ip=2001:db8::1\ntls-listening-port=443\n\
                aux-server=192.0.2.1:5000\nrelay-ip=192.0.2.1\nrelay-ip=192.0.2.2\nrelay-ip=2001:db8::1\n\
                external-ip=198.51.100.1/192.0.2.1\nmin-port=50000\nmax-port=50999\nfingerprint\nlt-cred-mech\n\
                user=alice:pass:word\nuser=bob:0xbc807ee29df3c9ffa736523fb2c4e8ee\nrealm=north.gov\n\
                static-auth-secret=new\nstatic-auth-secret=old\nuser-quota=12\ntotal-quota=1200\nmax-bps=125000\nbps-capacity=2500000\n\
                allowed-peer-ip=10.1.0.5\ndenied-peer-ip=10.0.0.0-10.255.255.255\ndenied-peer-ip=203.0.113.7\n\
                cert=turn/cert.pem\npkey=/keys/key.pem\nprometheus\nprometheus-port=9700\nno-cli\nrelay-threads=0\n";
    let (config, translation) = loaded(text);
    let plain = ["192.0.2.1:3479", "192.0.2.1:5000", "[2001:db8::1]:3479"];
    assert_eq!(texts(&config.streams.tcp), plain);
    let udp =
        ["192.0.2.1:443", "192.0.2.1:3479", "192.0.2.1:5000", "[2001:db8::1]:443", "[2001:db8::1]:3479"];
    assert_eq!(texts(&config.listen), udp);
    assert_eq!(texts(&config.streams.tls), ["192.0.2.1:443", "[2001:db8::1]:443"]);
    let files = config.streams.tls_files.unwrap();
    assert_eq!((files.certificate, files.key), ("/etc/turn/cert.pem".into(), "/keys/key.pem".into()));
    assert_eq!(texts(&config.relay_addresses), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(config.external[0].public.to_string(), "198.51.100.1");
    assert_eq!((config.relay_ports, config.realm.0.as_str()), (50_000..=50_999, "north.gov"));
    assert!(matches!(&config.users[0].proof, Proof::Password(word) if word.as_str() == "pass:word"));
    assert!(matches!(&config.users[1].proof, Proof::Keys(keys) if keys.md5.is_some()));
    assert_eq!(
        texts(&config.secrets.iter().map(|secret| secret.as_str()).collect::<Vec<_>>()),
        ["new", "old"]
    );
    assert_eq!((config.allocations_per_user_max, config.allocations_max), (12, 1200));
    assert_eq!(config.limits.allocation_rate.bytes_per_s.unwrap().get(), 125_000);
    assert_eq!(config.limits.total_rate.bytes_per_s.unwrap().get(), 2_500_000);
    assert!(translation.differences.iter().any(|note| note.text.starts_with("there are 1000 ports, fewer")));
    assert_eq!(texts(&config.allow_peers), ["10.1.0.5/32"]);
    let denied = |address: &str| {
        config.deny_peers.iter().any(|net| net.contains(&address.parse::<std::net::IpAddr>().unwrap()))
    };
    assert!(denied("10.1.0.4") && denied("10.1.0.6") && denied("203.0.113.7") && !denied("10.1.0.5"));
    assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:9700");
    assert_eq!(config.workers, Some(1));
    let [second] = &translation.missing[..] else { panic!("{:?}", translation.missing) };
    assert_eq!(second.line, Some(7));
}

/// As coturn does it, whose words for such a line are "Bad configuration format".
#[test]
fn a_line_that_begins_with_dashes_is_passed_over_and_told() {
    let (config, translation) = loaded("realm=north.gov\n--max-port=50000\n--frobnicate\n");
    assert_eq!(config.relay_ports, 49_152..=65_535);
    let texts: Vec<_> = translation.missing.iter().map(|note| (note.line, note.text.as_str())).collect();
    let [(Some(2), dashes), (Some(3), unknown)] = texts[..] else { panic!("{texts:?}") };
    assert!(
        dashes.starts_with("--max-port: coturn passes over")
            && dashes.ends_with("write max-port where it is wanted")
    );
    assert!(unknown.starts_with("--frobnicate: unknown"), "{unknown}");
}

/// Unlike coturn, which refuses allocations when its ports are used up.
#[test]
fn a_range_of_few_ports_is_said_to_be_shared() {
    let is_said = |text: &str| {
        let (_, translation) = loaded(text);
        translation.differences.iter().any(|note| note.text.contains("port-sharing"))
    };
    assert!(
        is_said("min-port=50000\nmax-port=50003\n")
            && !is_said("min-port=50000\nmax-port=50003\ntotal-quota=4\n")
    );
    assert!(!is_said("") && !is_said("min-port=50000\nmax-port=59999\n"));
}

#[test]
fn listeners_that_are_switched_off_stay_off() {
    let (config, translation) = loaded("no-tcp\nno-tls\ncert=a\npkey=b\nno-udp\n");
    assert!(config.streams.tcp.is_empty() && config.streams.tls.is_empty());
    assert_eq!(texts(&config.listen), ["127.0.0.1:3478"]);
    assert!(translation.missing[0].text.starts_with("no-udp: UDP cannot be switched off"));
    let (config, _) = loaded("no-tcp=0\n");
    assert_eq!(config.streams.tcp.len(), 2, "a flag is taken back by its value");
    let (config, _) = loaded("stun-only\nuser=alice:a\nstatic-auth-secret=s\n");
    assert!(config.users.is_empty() && config.secrets.is_empty());
}

/// Coturn serves clients without TLS on the ports for it, and the other way round.
#[test]
fn clients_that_coturn_tells_apart_by_what_they_send_have_a_listener_or_are_named() {
    let says = |translation: &Translation, about: &str| {
        translation.differences.iter().any(|note| note.text.contains(about))
    };
    let files = "listening-ip=192.0.2.1\ncert=a\npkey=b\n";
    let (plain, tls) = ("192.0.2.1:3478", "192.0.2.1:5349");
    let notes = ["DTLS is not served", "TLS is served at `listen-tls` only", "plain TCP is served at"];
    for (more, udp, tcp, over_tls, said) in [
        ("", &[plain, tls][..], &[plain][..], &[tls][..], [true, true, true]),
        // Without DTLS coturn has no UDP socket there.
        ("no-dtls\n", &[plain], &[plain], &[tls], [false, true, true]),
        ("no-tls\n", &[plain, tls], &[plain], &[], [true, false, false]),
        ("no-tls\nno-dtls\n", &[plain], &[plain], &[], [false, false, false]),
        ("no-tcp\n", &[plain, tls], &[], &[tls], [true, true, false]),
        ("no-udp\n", &["127.0.0.1:3478"], &[plain], &[tls], [true, true, true]),
        // One port for all: an address is for one of the two here.
        ("tls-listening-port=3478\n", &[plain], &[], &[plain], [true, true, true]),
        // Said twice.
        ("aux-server=192.0.2.1:5349\nno-tls\n", &[plain, tls], &[plain, tls], &[], [true, false, false]),
    ] {
        let (config, translation) = loaded(&format!("{files}{more}"));
        assert_eq!(texts(&config.listen), udp, "{more}");
        assert_eq!((texts(&config.streams.tcp), texts(&config.streams.tls)), (texts(tcp), texts(over_tls)));
        assert_eq!(notes.map(|about| says(&translation, about)), said, "{more}");
    }
    let (config, translation) = loaded("cert=a\npkey=b\n");
    assert_eq!(texts(&config.listen), ["0.0.0.0:3478", "0.0.0.0:5349", "[::]:3478", "[::]:5349"]);
    assert!(says(&translation, "take [::] out"));
    let (config, translation) = loaded("listening-ip=192.0.2.1\nno-dtls\n");
    assert_eq!((texts(&config.listen), config.streams.tls.len()), (texts(&[plain]), 0));
    assert!(notes.iter().all(|about| !says(&translation, about)), "nobody loses a listener");
    assert_eq!(translation.already[0].line, Some(2));
}

#[test]
fn alternate_servers_become_those_of_a_drain_and_that_is_said() {
    let (config, translation) = loaded(
        "alternate-server=192.0.2.7\nalternate-server=192.0.2.8:3480\nalternate-server=[2001:db8::7]:3479\n\
         tls-alternate-server=192.0.2.7:443\ntls-alternate-server=[2001:db8::7]\n\
         tls-alternate-server=relay.example:443\ntls-alternate-server=0.0.0.0\n",
    );
    let plain: Vec<_> = config.alternates.iter().collect();
    let tls: Vec<_> = config.alternates.tls().collect();
    assert_eq!(texts(&plain), ["192.0.2.7:3478", "[2001:db8::7]:3479"]);
    assert_eq!(
        (texts(&tls), config.alternates.tls_name()),
        (texts(&["192.0.2.7:443", "[2001:db8::7]:5349"]), None)
    );
    let said: Vec<_> =
        translation.missing.iter().map(|note| (note.line.unwrap(), note.text.as_str())).collect();
    for (line, name, hint) in [
        (1, "alternate-server: ", "only while the relay drains"),
        (2, "alternate-server: ", "the first was taken"),
        (3, "alternate-server: ", "only while the relay drains"),
        (4, "tls-alternate-server: ", "only while the relay drains"),
        (5, "tls-alternate-server: ", "only while the relay drains"),
        (6, "tls-alternate-server: ", "names are not looked up"),
        (7, "tls-alternate-server: ", "has to be an address"),
    ] {
        let (at, text) = said[line - 1];
        assert!(at == line && text.starts_with(name) && text.contains(hint), "{at}: {text}");
    }
}

#[test]
fn loopback_is_allowed_where_coturn_allows_it() {
    let (config, _) = loaded("allow-loopback-peers\n");
    assert_eq!(texts(&config.allow_peers), ["127.0.0.0/8", "::1/128"]);
    let (config, _) = loaded("no-loopback-peers\n");
    assert!(config.allow_peers.is_empty());
}

#[test]
fn what_has_no_equivalent_is_named_with_its_line_and_a_reason_and_without_its_value() {
    let translation = translated(
        "cli-password=hunter2\npsql-userdb=\"host=h password=hunter2\"\nnonsense=hunter2\nmax-allocate-lifetime=7200\n\
         max-allocate-lifetime=3600\nuser-quota=0\nhunter2-hunter2-hunter2-hunter2-hunter2-hunter2\npkey-pwd=hunter2\n",
    );
    let missing: Vec<_> =
        translation.missing.iter().map(|note| (note.line.unwrap(), note.text.as_str())).collect();
    let begins = [
        (1, "cli-password: there is no telnet server"),
        (2, "psql-userdb: there is no database"),
        (3, "nonsense: unknown"),
        (4, "max-allocate-lifetime: an allocation lasts"),
        (6, "user-quota: 0 is no limit"),
        (7, "what stands here: unknown"),
        (8, "pkey-pwd: the key has to be without"),
    ];
    assert_eq!(missing.len(), begins.len(), "{missing:?}");
    for ((line, text), (expected, begin)) in missing.iter().zip(begins) {
        assert!(*line == expected && text.starts_with(begin), "{line}: {text}");
    }
    let document = document("x", &translation);
    assert!(!document.contains("hunter2"), "{document}");
    assert!(document.contains("# - line 3: nonsense: unknown"), "{document}");
    assert!(translation.already.iter().any(|note| note.line == Some(5)));
}

#[test]
fn values_that_make_no_sense_are_named_by_line_without_being_shown() {
    for (line, hint) in [
        ("listening-port=70000", "a port"),
        ("listening-ip=eth0", "an address"),
        ("external-ip=relay.example", "addresses and not names"),
        ("denied-peer-ip=10.0.0.9-10.0.0.1", "a range"),
        ("user=hunter2", "NAME:PASSWORD"),
        ("user=alice:0xhunter2", "32 hexadecimal digits"),
        ("user=#alice:hunter2", "another name"),
        ("static-auth-secret=", "not empty"),
        ("user-quota=many", "a number"),
        ("max-bps=-1", "bytes a second"),
        ("realm=", "1 to 255 bytes"),
        ("max-port=49151", "not above"),
        ("min-port=0", "at least 1"),
        ("aux-server=192.0.2.1", "ADDRESS:PORT"),
    ] {
        let Err(bad) = translate(&format!("no-cli\n{line}\n"), Path::new("/")) else { panic!("{line}") };
        assert!(
            bad.line == 2 && bad.text.contains(hint) && !bad.text.contains("hunter2"),
            "{line}: {}",
            bad.text
        );
    }
}

#[test]
fn what_would_refuse_clients_that_coturn_serves_is_said() {
    let says =
        |text: &str, about: &str| translated(text).differences.iter().any(|note| note.text.contains(about));
    for about in ["`allow-peer`", "`deny-peer-ports", "`new-peers-per-user`", "\"towpath\""] {
        assert!(says("user=alice:a\n", about), "{about}");
    }
    assert!(says("static-auth-secret=a\n", "`secret-validity-max`"));
    assert!(!says("user=alice:a\n", "`secret-validity-max`"));
    assert!(says("user=alice:0xbc807ee29df3c9ffa736523fb2c4e8ee\n", "good in one realm only"));
    assert!(says("use-auth-secret\n", "turn_secret"));
    assert!(!says("use-auth-secret\nstatic-auth-secret=a\n", "turn_secret"));
}

#[test]
fn secrets_are_not_in_the_document() {
    let translation = translated("user=alice:hunter2\nstatic-auth-secret=hunter3\n");
    let document = document("x", &translation);
    assert!(!document.contains("hunter"), "{document}");
}
