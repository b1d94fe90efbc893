//! Several sockets on one address, and which of them gets a packet: its source alone decides (SO_ATTACH_REUSEPORT_CBPF,
//! socket(7)).
//!
//! By itself the kernel chooses by a hash and the number of sockets, so that whoever binds the same address later changes
//! where everybody's packets go. The program here is a function of source address, source port and a number of members that
//! stays the same. The sockets of a group are numbered in the order in which they were bound, so that a later one, of this
//! program or of another, has a number that never comes up.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Where the network header begins, for loads of a classic program (linux/filter.h): the program runs on the payload.
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
/// IPv4: header length in the lower half of the first byte, source address, and behind the header the source port.
const V4_SOURCE: u32 = 12;
/// IPv6: next header, source address, and the source port where nothing is between.
const V6_NEXT_HEADER: u32 = 6;
const V6_SOURCE: u32 = 8;
const V6_PORT: u32 = 40;
/// Odd numbers with bits all over: the constants of Murmur's 32-bit finalizer, and the golden ratio.
const MIX: [u32; 3] = [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35];

/// Which family the sockets of a group are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6 alone.
    V6,
}

/// Lets sockets of the same user bind the address of this one, which may be bound already (SO_REUSEPORT).
///
/// A group begins with a socket that is bound without this: then it is refused where another program has the address.
///
/// # Errors
/// What setsockopt(2) answers.
pub fn open_group(socket: impl AsFd) -> io::Result<()> {
    super::socket::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
}

/// Has the first `members` sockets of a group, of which this is any, get packets by their source. `seed` makes it
/// unpredictable which: nobody can choose sources that all meet at one member.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] with what setsockopt(2) answers: ENOPROTOOPT before Linux 4.5, EINVAL where the socket is
/// not in a group.
///
/// # Panics
/// When there are no members.
pub fn steer(socket: impl AsFd, family: Family, members: u32, seed: u32) -> io::Result<()> {
    assert!(members > 0, "a group has members");
    let mut code = program(family, members, seed);
    let length = code.len().try_into().expect("a short program");
    let program = libc::sock_fprog { len: length, filter: code.as_mut_ptr() };
    attach(socket.as_fd(), &program).map_err(|error| {
        let text = format!("the kernel cannot choose a socket by the source of a packet: {error}");
        io::Error::new(io::ErrorKind::Unsupported, text)
    })
}

fn attach(fd: BorrowedFd<'_>, program: &libc::sock_fprog) -> io::Result<()> {
    let value: *const libc::sock_fprog = program;
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the program and the code it points to live in the caller's frame until the call returns; the kernel copies it.
    let answer = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, value.cast(), len)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The program: port and address, mixed, modulo the number of members.
fn program(family: Family, members: u32, seed: u32) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K,
        BPF_LD, BPF_LSH, BPF_MISC, BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
    };
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let branch =
        |k: u32, jt: u8, jf: u8| libc::sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt, jf, k };
    let alu = |operation: u32, k: u32| step(BPF_ALU | operation | BPF_K, k);
    let to_x = step(BPF_MISC | BPF_TAX, 0);
    let xor_x = step(BPF_ALU | BPF_XOR | BPF_X, 0);
    let word = |offset: u32| step(BPF_LD | BPF_W | BPF_ABS, NETWORK.wrapping_add(offset));
    let byte = |offset: u32| step(BPF_LD | BPF_B | BPF_ABS, NETWORK.wrapping_add(offset));
    let (mut code, source) = match family {
        Family::V4 => {
            let port = step(BPF_LD | BPF_H | BPF_IND, NETWORK);
            (vec![byte(0), alu(BPF_AND, 0xf), alu(BPF_LSH, 2), to_x, port], V4_SOURCE..V4_SOURCE + 4)
        }
        Family::V6 => {
            let port = step(BPF_LD | BPF_H | BPF_ABS, NETWORK.wrapping_add(V6_PORT));
            let no_port = step(BPF_LD | BPF_IMM, 0);
            // Behind other headers the port is nowhere in particular: those packets go by the address alone.
            let code = vec![
                byte(V6_NEXT_HEADER),
                branch(libc::IPPROTO_UDP as u32, 1, 0),
                branch(libc::IPPROTO_TCP as u32, 0, 2),
                port,
                step(BPF_JMP | BPF_JA, 1),
                no_port,
            ];
            (code, V6_SOURCE..V6_SOURCE + 16)
        }
    };
    code.push(alu(BPF_XOR, seed));
    for offset in source.step_by(4) {
        code.extend([alu(BPF_MUL, MIX[0]), to_x, word(offset), xor_x]);
    }
    for (shift, factor) in [(16, MIX[1]), (13, MIX[2])] {
        code.extend([to_x, alu(BPF_RSH, shift), xor_x, alu(BPF_MUL, factor)]);
    }
    code.extend([to_x, alu(BPF_RSH, 16), xor_x, alu(BPF_MOD, members), step(BPF_RET | BPF_A, 0)]);
    code
}
