//! seccomp: the system calls of a relay that serves. Everything else answers EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// Why nothing is restricted.
#[derive(Debug, thiserror::Error)]
pub enum NotRestricted {
    /// No rules can be made for this processor.
    #[error("there are no rules for this processor: {0}")]
    Rules(#[from] BackendError),
    /// The kernel refuses them.
    #[error("seccomp: {0}")]
    Refused(#[from] seccompiler::Error),
}

/// Allowed with any arguments.
const ALLOWED: &[i64] = &[
    // Datagrams and streams, by the loop and by those who talk to an operator.
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_io_uring_enter,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Files: which ones is for Landlock to say.
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_fcntl,
    libc::SYS_close,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads that come and go, signals, and the end.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Where the vDSO cannot answer.
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
];

/// Names that only this processor has, or has kept.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// From linux/prctl.h: where the vDSO is, which rustix asks for when it first needs it.
const PR_GET_AUXV: u64 = 0x4155_5856;

/// IORING_UNREGISTER_PBUF_RING and IORING_REGISTER_SYNC_CANCEL, from linux/io_uring.h: what happens to a ring that exists.
const RING_REGISTRATIONS: [u64; 2] = [23, 24];

/// Restricts all threads of this process. The answer is how many system calls are left.
pub fn restrict() -> Result<usize, NotRestricted> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let rules = rules()?;
    let count = rules.len();
    // Arguments of clone3 are in memory, where no filter can look. The C library falls back to clone, which has its flags
    // in a register, when the call does not seem to exist. So the list lets it pass, and another filter has the last word:
    // of two answers the stricter counts.
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let no_clone3 = [(libc::SYS_clone3, Vec::new())].into();
    let no_clone3 = SeccompFilter::new(no_clone3, SeccompAction::Allow, absent, architecture)?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let allow_list = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?;
    // The list comes last, because it forbids to install more.
    for filter in [no_clone3, allow_list] {
        let program: BpfProgram = filter.try_into()?;
        apply_filter_all_threads(&program)?;
    }
    Ok(count)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|&call| (call, Vec::new())).collect();
    // New relay sockets, and the addresses of this machine at a reload. The type is in the lower four bits.
    const TYPE: u64 = 0xf;
    let udp = |family: i32| {
        rule(&[
            (0, SeccompCmpOp::Eq, family as u64),
            (1, SeccompCmpOp::MaskedEq(TYPE), libc::SOCK_DGRAM as u64),
        ])
    };
    let netlink = rule(&[
        (0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64),
        (2, SeccompCmpOp::Eq, libc::NETLINK_ROUTE as u64),
    ]);
    rules.insert(libc::SYS_socket, vec![udp(libc::AF_INET)?, udp(libc::AF_INET6)?, netlink?]);
    // Memory never becomes code.
    let not_executable = || rule(&[(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)]);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    // Threads, and no processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(&[(0, SeccompCmpOp::MaskedEq(thread), thread)])?]);
    let own_only =
        [libc::PR_SET_NAME as u64, PR_GET_AUXV].map(|option| rule(&[(0, SeccompCmpOp::Eq, option)]));
    rules.insert(libc::SYS_prctl, own_only.into_iter().collect::<Result<_, _>>()?);
    // Its own threads only: how the C library aborts.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(&[(0, SeccompCmpOp::Eq, own)])?]);
    rules.insert(libc::SYS_ioctl, vec![rule(&[(1, SeccompCmpOp::Eq, libc::FIONBIO)])?]);
    let registrations: Result<Vec<_>, _> =
        RING_REGISTRATIONS.into_iter().map(|operation| rule(&[(1, SeccompCmpOp::Eq, operation)])).collect();
    rules.insert(libc::SYS_io_uring_register, registrations?);
    Ok(rules)
}

/// A rule that holds when all of its conditions do: argument, comparison, value.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions: Result<Vec<_>, _> = conditions
        .iter()
        .map(|(argument, comparison, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)
        })
        .collect();
    SeccompRule::new(conditions?)
}
