//! What this machine allows: namespaces, io_uring, the clock.

#[path = "user_namespace.rs"]
mod user_namespace;

use std::time::{Duration, Instant};

use user_namespace::Lack;
use user_namespace::left_out::left_out;

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
/// again as root of a user namespace.
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
pub fn again_inside_namespace(test: &str, error: &std::io::Error) {
    if user_namespace::is_inside() {
        return lacks(&error.to_string());
    }
    match user_namespace::again(test) {
        Ok(()) => {}
        Err(Lack::Program(error)) => lacks(&format!("root, or util-linux's `unshare` ({error})")),
        Err(Lack::Namespaces(refusal)) => lacks(&format!(
            "root, or user namespaces (`sysctl kernel.unprivileged_userns_clone=1`, or \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0`): {refusal}"
        )),
    }
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "a test has its own clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Calls `done` every half millisecond until it answers `true` or `patience` is over; the answer is the last one. It is
/// asked once more after that, however late this thread gets its turn.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = now() + patience;
    loop {
        let over = now() >= deadline;
        if done() {
            return true;
        }
        if over {
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
