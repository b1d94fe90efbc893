//! Starts programs by posix_spawn(3): nothing of this process is copied, so that an open ring does not mind, and the program
//! begins with no signal blocked and none ignored, whatever is blocked here.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::process::Pid;

/// Standard streams of a program; what is not given is ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams<'a> {
    /// Standard input.
    pub input: Option<BorrowedFd<'a>>,
    /// Standard output.
    pub output: Option<BorrowedFd<'a>>,
    /// Standard error.
    pub errors: Option<BorrowedFd<'a>>,
}

/// Starts the program of a file, with our environment. Whoever calls it waits for the process (waitpid(2)).
///
/// # Errors
/// What posix_spawn(3) answers: ENOENT, EACCES, EAGAIN. An argument with a zero byte is `InvalidInput`.
pub fn spawn(program: &Path, arguments: &[&OsStr], streams: Streams<'_>) -> io::Result<Pid> {
    let terminated = |text: &OsStr| CString::new(text.as_bytes());
    let path = terminated(program.as_os_str())?;
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().copied()).map(terminated);
    let words = words.collect::<Result<Vec<CString>, _>>()?;
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        variables.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    let attributes = Attributes::unblocked()?;
    let mut actions = Actions::new()?;
    for (number, stream) in (0..).zip([streams.input, streams.output, streams.errors]) {
        if let Some(stream) = stream {
            actions.put(stream, number)?;
        }
    }
    let (words, variables) = (pointers(&words), pointers(&variables));
    let mut pid = 0;
    // SAFETY: every string and both arrays, which end with a null pointer, live in this frame; both objects are initialised.
    let failed = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            words.as_ptr(),
            variables.as_ptr(),
        )
    };
    check(failed)?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn without a process"))
}

/// An array as execve(2) wants it. Nobody writes through the pointers: their type is that of C.
fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// These functions return the error number.
fn check(error: i32) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// No signal is blocked, and none that the standard library ignores is ignored.
    fn unblocked() -> io::Result<Self> {
        const FLAGS: i32 = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the pointer leads to memory for such an object.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: posix_spawnattr_init has initialised it.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let empty = empty_set();
        let mut broken_pipe = empty;
        // SAFETY: the set is initialised and the signal number is valid.
        unsafe { libc::sigaddset(&raw mut broken_pipe, libc::SIGPIPE) };
        // SAFETY: both are initialised and live here.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, &raw const empty) })?;
        // SAFETY: as above.
        check(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, &raw const broken_pipe) })?;
        // SAFETY: as above.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, FLAGS as libc::c_short) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and nobody uses it after this.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set through a pointer to memory of the right type.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised it.
    unsafe { set.assume_init() }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer leads to memory for such an object.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: posix_spawn_file_actions_init has initialised it.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    /// The program has `stream` under this number.
    fn put(&mut self, stream: BorrowedFd<'_>, number: i32) -> io::Result<()> {
        // SAFETY: it is initialised; the descriptor is open until the program is started, as long as it is borrowed.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, stream.as_raw_fd(), number) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and nobody uses it after this.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _};
    use std::os::fd::AsFd as _;

    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    #[test]
    fn a_program_begins_with_its_streams_and_nothing_blocked() {
        let mut output = tempfile::tempfile().expect("a file");
        let input = File::open("/proc/self/stat").expect("open");
        let script = "cat > /dev/null; echo $0 $1; grep -e SigBlk -e SigIgn /proc/self/status";
        let arguments = ["-c", script, "one two", "three"].map(OsStr::new);
        let signals = crate::sys::signal::StopSignals::new().expect("blocked");
        let streams = Streams { input: Some(input.as_fd()), output: Some(output.as_fd()), errors: None };
        let pid = spawn(Path::new("/bin/sh"), &arguments, streams).expect("started");
        drop(signals);
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("waited").expect("a status");
        assert_eq!(status.exit_status(), Some(0));
        let mut text = String::new();
        output.rewind().expect("a file");
        output.read_to_string(&mut text).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["one two three", "SigBlk:\t0000000000000000"]);
        // The standard library ignores SIGPIPE; what the C library does with signals of its own is nobody's concern.
        let ignored = u64::from_str_radix(lines[2].trim_start_matches("SigIgn:\t"), 16).expect("a mask");
        assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0, "{text}");
    }

    #[test]
    fn what_cannot_be_started_says_why() {
        let error = spawn(Path::new("/nonexistent"), &[], Streams::default()).expect_err("nothing there");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let zero = OsStr::from_bytes(b"a\0b");
        let error = spawn(Path::new("/bin/true"), &[zero], Streams::default()).expect_err("no argument");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
