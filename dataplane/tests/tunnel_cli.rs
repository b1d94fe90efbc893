//! The command line of `towpath`: keys, usage errors, and what it says when something is missing.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "a test starts programs")]

#[path = "support/left_out.rs"]
mod left_out;

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use left_out::left_out;

const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");
const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

fn towpath(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(TOWPATH)
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may close it first.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn new_keys_are_clamped_different_and_derive_a_public_key() {
    let first = towpath(&["genkey"], "");
    let second = towpath(&["genkey"], "");
    assert!(first.status.success() && stdout(&first) != stdout(&second));
    let key = base64::engine::general_purpose::STANDARD.decode(stdout(&first).trim_end()).unwrap();
    assert_eq!((key.len(), key[0] & 7, key[31] & 0xc0), (32, 0, 0x40));
    let public = towpath(&["pubkey"], stdout(&first));
    assert!(public.status.success() && stdout(&public).len() == 45, "{public:?}");

    let preshared = towpath(&["genpsk"], "");
    assert_eq!(stdout(&preshared).len(), 45);
}

#[test]
fn public_keys_are_those_of_rfc_7748() {
    // Section 6.1: Alice's private and public key.
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(hex(text));
    let private = base64("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    let public = base64("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let output = towpath(&["pubkey"], &format!("{private}\n"));
    assert!(output.status.success());
    assert_eq!(stdout(&output), format!("{public}\n"));
}

#[test]
fn a_bare_name_is_not_looked_for_where_anybody_may_write() {
    let directory = tempfile::tempdir().unwrap();
    let trap = format!(
        "[Interface]\nPrivateKey = {PRIVATE}\nPreUp = touch {}/ran; false\n",
        directory.path().display()
    );
    for name in ["towplanted", "tow.planted"] {
        std::fs::write(directory.path().join(name), &trap).unwrap();
        let mut command = Command::new(TOWPATH);
        command
            .args(["up", name])
            .current_dir(directory.path())
            .env("RUNTIME_DIRECTORY", directory.path().join("run"));
        let output = command.env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
        assert!(!directory.path().join("ran").exists(), "{output:?}");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = stderr(&output);
        assert!(
            told.contains(&format!("/etc/wireguard/{name}.conf")) && told.contains(&format!("./{name}")),
            "{told}"
        );
    }
}

#[test]
fn a_key_in_a_file_for_everyone_is_warned_about() {
    let directory = tempfile::tempdir().unwrap();
    let to = |mode: u32, name: &str| {
        let path = directory.path().join(name);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let output =
            Command::new(TOWPATH).arg("genkey").stdout(file).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success());
        assert_eq!(std::fs::read(&path).unwrap().len(), 45);
        stderr(&output).to_owned()
    };
    assert!(to(0o644, "open").contains("umask 077"));
    assert_eq!(to(0o600, "closed"), "");
}

#[test]
fn usage_errors_exit_with_2_and_name_the_remedy() {
    let cases: &[(&[&str], &str, &str)] = &[
        (&["pubkey"], "nonsense\n", "base64"),
        (&["pubkey"], "", "base64"),
        (&["wg0.conf"], "", "towpath up wg0.conf"),
        (&["/etc/wireguard/wg0.conf", "-f"], "", "towpath up /etc/wireguard/wg0.conf"),
        (&["wg0", "wg1"], "", "wg1"),
        (&[".."], "", "use 1 to 15"),
        (&["."], "", "use 1 to 15"),
        (&["status"], "", "towpath show"),
        (&["stop"], "", "towpath down"),
        (&["shwo"], "", "did you mean towpath show?"),
        (&["genkye"], "", "did you mean towpath genkey?"),
        (&["reload", "/nonexistent/wg0.conf"], "", "/nonexistent/wg0.conf: cannot be read"),
        (&["strip", "/nonexistent/wg0.conf"], "", "/nonexistent/wg0.conf: cannot be read"),
        (&["-f"], "", "INTERFACE"),
        (&["-f", "wg0", "--io", "suspend", "--completions", "inline"], "", "--completions"),
        (&["up"], "", "FILE"),
        (&["up", "/nonexistent/wg0.conf"], "", "/nonexistent/wg0.conf: cannot be read"),
        (&["up", "wg0.conf", "--io", "magic"], "", "uring"),
        (&["up", "wg0.conf", "--io", "suspend", "--completions", "inline"], "", "--completions"),
        (&[], "", "Usage"),
    ];
    for (arguments, input, remedy) in cases {
        let output = towpath(arguments, input);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(remedy), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    let long = towpath(&["-f", "a-name-that-is-too-long"], "");
    assert!(long.status.code() == Some(2) && stderr(&long).contains("use 1 to 15"), "{long:?}");
    let help = towpath(&["--help"], "");
    assert!(help.status.success() && stdout(&help).contains("genkey"));
}

#[test]
fn a_tunnel_that_is_not_there_is_no_mistake_in_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("townone.conf");
    std::fs::write(&file, format!("[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1\n")).unwrap();
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 5] = [
        &["show", "townone"],
        &["down", "townone"],
        &["reload", file],
        &["ticket", "townone"],
        &["down", file],
    ];
    for arguments in commands {
        let output = towpath(arguments, "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains("townone"), "{arguments:?}: {}", stderr(&output));
    }
    let mistaken = towpath(&["ticket", "townone", "--accept", "nonsense"], "");
    assert_eq!(mistaken.status.code(), Some(2), "{mistaken:?}");
}

#[test]
fn configuration_errors_name_file_and_line_as_text_and_as_json() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wg0.conf");
    std::fs::write(&file, format!("[Interface]\nPrivateKey = {PRIVATE}\nMTU = 12\n")).unwrap();
    let file = file.to_str().unwrap();

    let output = towpath(&["up", file], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(&format!("towpath: {file}:3: ")), "{}", stderr(&output));

    let output = towpath(&["up", file, "--log-format", "json"], "");
    assert_eq!(output.status.code(), Some(2));
    let line: serde_json::Value = serde_json::from_str(stderr(&output).lines().last().unwrap()).unwrap();
    assert_eq!(line["severity"], "ERROR");
    assert!(line["message"].as_str().unwrap().contains("wg0.conf:3: "), "{line}");

    std::fs::write(
        file,
        format!(
            "[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {}\n\
         AllowedIPs = 10.0.0.1/32\nEndpoint = no such host:1\n",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
        ),
    )
    .unwrap();
    let output = towpath(&["up", file], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(&format!("{file}:6: \"no such host:1\" is not an endpoint")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_descriptor_that_is_none_is_named_and_the_foreground_ends_as_the_background_does() {
    let cases = [
        ("wg0", "-f", "WG_TUN_FD", "x", 2),
        ("wg0", "-f", "WG_TUN_FD", "999", 1),
        ("wg0", "--io=suspend", "WG_TUN_FD", "x", 2),
        // With -f it is no slip.
        ("shwo", "-f", "WG_TUN_FD", "999", 1),
    ];
    for (name, flag, variable, value, status) in cases {
        let output = Command::new(TOWPATH)
            .args([name, flag])
            .env(variable, value)
            .env_remove("WG_PROCESS_FOREGROUND")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(stderr(&output).starts_with(&format!("towpath: {variable}")), "{}", stderr(&output));
    }
}

#[test]
fn without_the_capability_one_sentence_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("towpath-test.conf");
    std::fs::write(&file, format!("[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.1\n")).unwrap();
    // A user namespace of its own takes the capability away for this network namespace, from root too.
    let output = Command::new("unshare").args(["--user", TOWPATH, "up"]).arg(&file).output();
    let output = match output {
        Ok(output) if !stderr(&output).starts_with("unshare:") => output,
        _ => {
            left_out("user namespaces, to take a capability away");
            return;
        }
    };
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let last = stderr(&output).lines().last().unwrap();
    assert!(last.starts_with("towpath: "), "{last}");
    assert!(last.contains("CAP_NET_ADMIN") || last.contains("/dev/net/tun"), "{last}");
}
