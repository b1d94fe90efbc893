//! What this machine allows: namespaces, io_uring, the clock.

#[path = "left_out.rs"]
mod left_out;

use std::time::{Duration, Instant};

use left_out::left_out;

/// Set for the process that runs inside the user namespace.
const INSIDE: &str = "TOWPATH_TEST_INSIDE_NAMESPACE";

/// Says what is missing; fails where everything was asked for.
pub fn lacks(what: &str) {
    left_out(&format!("a test that needs {what}"));
}

/// Whether a ring can be set up; if not, says so.
pub fn has_io_uring() -> bool {
    match io_uring::IoUring::new(4) {
        Ok(_) => true,
        Err(error) => {
            lacks(&dataplane::egress::probe::setup_reason(&error));
            false
        }
    }
}

/// Runs `body` in a thread with a network namespace of its own, loopback up. Without the privilege the whole test runs
/// again as root of a user namespace, which only a process with one thread can make (unshare(2)), so that util-linux's
/// `unshare` makes it.
pub fn in_namespace(test: &str, body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        dataplane::sys::namespace::unshare_net()?;
        loopback_up();
        body();
        Ok::<(), std::io::Error>(())
    });
    match thread.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => again_inside_namespace(test, &error),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Takes the loopback interface of the calling thread's namespace up.
pub fn loopback_up() {
    let mut handle = dataplane::netlink::Handle::open().expect("netlink");
    let loopback = handle.link_index("lo").expect("lo");
    handle.set_up(loopback).expect("lo goes up");
}

/// Runs the calling test again as root of a user namespace, because `error` says that it may not do here what it wants.
#[expect(clippy::print_stdout, reason = "passes on what the test inside printed")]
pub fn again_inside_namespace(test: &str, error: &std::io::Error) {
    if std::env::var_os(INSIDE).is_some() {
        return lacks(&error.to_string());
    }
    #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().expect("this test"));
    let output = match command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output() {
        Ok(output) => output,
        Err(error) => return lacks(&format!("root, or util-linux's `unshare` ({error})")),
    };
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    for line in errors.lines() {
        if let Some(what) = line.strip_prefix("left out: ") {
            left_out(what);
        }
    }
    if !text.contains("running 1 test") {
        return lacks(&format!(
            "root, or user namespaces (`sysctl kernel.unprivileged_userns_clone=1`, or \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0`): {errors}"
        ));
    }
    assert!(output.status.success() && text.contains("1 passed"), "{errors}");
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calls `done` every half millisecond until it answers `true` or `patience` is over; the answer is the last one.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = now() + patience;
    loop {
        if done() {
            return true;
        }
        if now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
