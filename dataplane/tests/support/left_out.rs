//! What a test cannot do on this machine.

use std::io::Write as _;

/// Says what is left out, and fails where everything was asked for (`TOWPATH_REQUIRE_ALL=1`).
///
/// Written to standard error itself: what `println!` and `eprintln!` print is only shown for tests that fail.
pub fn left_out(what: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "left out: {what}");
    assert!(
        std::env::var_os("TOWPATH_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "required here: {what}"
    );
}
