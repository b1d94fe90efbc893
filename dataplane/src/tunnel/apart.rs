//! Work on keys in a part of the stack that is wiped behind it.
//!
//! A key that is owned by a type which wipes it leaves that memory clean, but not the stack: what computes with it is given
//! copies in arguments, temporaries and saved registers, some of them inside of other crates. They lie below the frame of who
//! called for the work, and would stay there until something else happens to use the same place.

use std::hint::black_box;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// How much of the stack is wiped, bytes. A Diffie-Hellman and the hashes around it take less than half of that.
const WIPED: usize = 64 << 10;

/// Does some work in a frame of its own and wipes the stack that it has used; some microseconds. What it returns should hold
/// keys in memory of their own, not in itself.
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    let done = in_a_frame(work);
    wipe();
    done
}

/// Keeps keys out of core dumps, and from other processes of the same user (PR_SET_DUMPABLE(2const)).
pub fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("the memory of this process may be dumped with the keys in it: {error}");
    }
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// What is left on the stack; each byte inverted, so that the test itself holds it nowhere.
    const INVERTED: [u8; 8] = [0x13, 0x9c, 0x5a, 0xe1, 0x77, 0x28, 0xd4, 0x4b];

    /// Fills a part of the stack, of which what is called later overwrites the upper end.
    #[inline(never)]
    fn leave() {
        let mut area = [0_u8; WIPED / 2];
        for (byte, inverted) in area.iter_mut().zip(INVERTED.iter().cycle()) {
            *byte = !black_box(*inverted);
        }
        black_box(&mut area);
    }

    /// How often it is found on the stack of this thread.
    fn left() -> usize {
        let mut local = 0_u8;
        let at = std::ptr::from_mut(black_box(&mut local)).addr();
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        let ranges = maps.lines().filter_map(|line| line.split(' ').next()?.split_once('-'));
        let mut stack = ranges
            .map(|(start, end)| {
                [start, end].map(|address| usize::from_str_radix(address, 16).expect("hexadecimal"))
            })
            .filter(|[start, end]| (*start..*end).contains(&at));
        let [start, end] = stack.next().expect("a stack");
        let mut bytes = vec![0; end - start];
        let memory = File::open("/proc/self/mem").expect("memory");
        let len = memory.read_at(&mut bytes, start as u64).expect("read");
        bytes[..len].windows(8).filter(|window| window.iter().zip(INVERTED).all(|(a, b)| *a == !b)).count()
    }

    #[test]
    fn what_work_leaves_on_the_stack_is_wiped() {
        leave();
        assert!(left() > 100, "it would be found");
        apart(leave);
        assert_eq!(left(), 0);
    }
}
