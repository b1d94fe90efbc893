//! `towpath up FILE` beside `wg-quick up FILE`: the same file does the same to the host, and nothing of it stays.

use std::fs;

use super::world::{Process, World, keys, sh};

/// What a tunnel makes of host `a`. The port is the kernel's choice, the table of the firewall has another name, and addresses
/// have a broadcast address and no duplicate detection.
fn state(world: &World, interface: &str) -> String {
    let names = fs::read_to_string(world.file("names.now", "").with_file_name("names")).unwrap_or_default();
    let text = sh(&format!(
        "ip netns exec a sh -ec '
         wg showconf {interface} 2> /dev/null | grep -v ListenPort || true
         ip -o addr show {interface} 2> /dev/null | grep -v fe80 | sed \"s/ brd [0-9.]*//; s/ nodad//\" || true
         ip -4 rule; ip -6 rule
         ip -4 route show table all; ip -6 route show table all | grep -v -e fe80 -e multicast
         nft list tables | sort; cat /proc/sys/net/ipv4/conf/all/src_valid_mark'"
    ));
    format!("{text}{names}").replace("wg-quick-", "towpath-")
}

pub fn it_does_to_the_host_what_wg_quick_does(world: World) {
    let (private, _) = keys();
    let (_, public) = keys();
    let bin = world.file("bin", "").with_file_name("programs");
    fs::create_dir_all(&bin).unwrap();
    let here = bin.parent().unwrap().display().to_string();
    let program = |name: &str, script: &str| {
        fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        sh(&format!("chmod 755 {}", bin.join(name).display()));
    };
    let lab = env!("CARGO_BIN_EXE_towpath-lab");
    program("towpath", &format!("exec {lab} __tunnel - $PPID \"$@\""));
    program(
        "resolvconf",
        &format!(
            "case $1 in -a) (echo \"$@\"; cat) >> {here}/names;; -d) echo \"$@\" >> {here}/names;; esac"
        ),
    );
    let path = format!(
        "export PATH={}:$PATH WG_QUICK_USERSPACE_IMPLEMENTATION=towpath; unset RUST_LOG",
        bin.display()
    );
    let configurations = [
        ("Table = auto", "10.77.0.2/32, 10.80.0.0/16, fd80::/32, 0.0.0.0/0, ::/0"),
        ("FwMark = 0x1234\nDNS = 10.77.0.2, example.org", "0.0.0.0/0, 10.77.0.0/24"),
        ("Table = 4321\nFwMark = 7", "0.0.0.0/0, ::/0, 10.80.0.0/16"),
        ("Table = off", "0.0.0.0/0, ::/0, 10.80.0.0/16"),
        ("Table = main", "10.80.0.0/16, fd80::/32"),
    ];
    for (lines, allowed) in configurations {
        let hook = |key: &str| format!("{key} = echo {key} %i | tr a-z A-Z >> {here}/names");
        let hooks = ["PreUp", "PostUp", "PreDown", "PostDown"].map(hook).join("\n");
        // Comments, capitals and spaces as people write them.
        let text = format!(
            "# mine\n[interface]\nprivatekey={private}\nAddress = 10.77.0.1/24 , fd77::1/64\nMTU=1380 # bytes\n{lines}\n{hooks}\n\n\
             [Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\nEndpoint = 10.2.0.2:51820\nPersistentKeepalive = 25\n"
        );
        let file = world.file("wgq.conf", &text);
        let clear = || {
            let _ = fs::remove_file(format!("{here}/names"));
            // wg-quick leaves it as it has set it.
            sh("ip netns exec a sh -c 'echo 0 > /proc/sys/net/ipv4/conf/all/src_valid_mark'");
        };
        clear();
        let before = state(&world, "wgq");
        let quick = |verb: &str| sh(&format!("{path}; ip netns exec a wg-quick {verb} {}", file.display()));
        quick("up");
        let theirs = state(&world, "wgq");
        quick("down");
        let their_names = fs::read_to_string(format!("{here}/names")).unwrap();

        clear();
        let ours =
            world.start("a", &["sh", "-c", &format!("{path}; exec towpath up {}", file.display())], "ready");
        settled(&ours, &format!("{here}/names"), "POSTUP");
        // One thing we do beyond: what goes to a default route does not leave beside a tunnel that is gone.
        let state_of_ours = state(&world, "wgq");
        let is_guard =
            |line: &&str| line.starts_with("unreachable default") && line.contains("metric 4294967295");
        let guards = state_of_ours.lines().filter(is_guard).count();
        assert_eq!(guards > 0, theirs.contains("suppress_prefixlength"), "{state_of_ours}");
        let rest: Vec<&str> = state_of_ours.lines().filter(|line| !is_guard(line)).collect();
        assert_eq!(without_index(&rest.join("\n")), without_index(theirs.trim_end_matches('\n')), "{lines}");
        sh(&format!("{path}; ip netns exec a towpath down {}", file.display()));
        assert_eq!(fs::read_to_string(format!("{here}/names")).unwrap(), their_names, "{lines}");
        fs::remove_file(format!("{here}/names")).unwrap();
        assert_eq!(state(&world, "wgq"), before, "{lines}");
        drop(ours);
    }
}

/// The index of an interface is another one each time.
fn without_index(text: &str) -> String {
    let digits = |word: &str| {
        word.strip_suffix(':').is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let lines = text.lines().map(|line| match line.split_once(' ') {
        Some((first, rest)) if digits(first) && !rest.contains("lookup") => rest.to_owned(),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Waits until the hook has run.
fn settled(running: &Process, file: &str, word: &str) {
    #[expect(clippy::disallowed_methods, reason = "a test may read the clock")]
    let now = std::time::Instant::now;
    let deadline = now() + std::time::Duration::from_secs(10);
    while !fs::read_to_string(file).is_ok_and(|text| text.contains(word)) {
        assert!(now() < deadline, "process {} has not run {word}", running.pid());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
