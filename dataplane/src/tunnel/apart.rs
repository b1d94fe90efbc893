//! Work on keys in a part of the stack that is wiped behind it.
//!
//! A key that is owned by a type which wipes it leaves that memory clean, but not the stack: what computes with it is given
//! copies in arguments, temporaries and saved registers, some of them inside of other crates. They lie below the frame of who
//! called for the work, and would stay there until something else happens to use the same place.

use std::hint::black_box;

/// How much of the stack is wiped, bytes. A Diffie-Hellman and the hashes around it take less than half of that.
const WIPED: usize = 64 << 10;

/// Does some work in a frame of its own and wipes the stack that it has used; some microseconds. What it returns should hold
/// keys in memory of their own, not in itself.
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    let done = in_a_frame(work);
    wipe();
    done
}

/// Not inlined: else the work would use the frame of who asked for it.
#[inline(never)]
fn in_a_frame<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Its frame lies where those of the work lay.
#[inline(never)]
fn wipe() {
    // The compiler has to take it that somebody looks at the zeros.
    black_box(&mut [0_u8; WIPED]);
}
