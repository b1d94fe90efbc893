//! Giving up what a relay that serves does not need (`--confine`): privileges, files, system calls, a core dump.
//!
//! It happens in two steps. [`Confinement::before_threads`] comes once the listening sockets are bound and before other
//! threads start, because capabilities and Landlock belong to a thread and are inherited. [`Confinement::when_ready`] comes
//! when everything is set up, because setting up takes system calls that serving does not; it reaches all threads at once.
//! The rings restrict themselves when they are made (`dataplane::sys::ring`), whatever the flag says: that costs nothing,
//! and system call filters do not see what a ring does.

mod files;
mod system_calls;

use std::io;
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use self::files::Readable;

/// What is to be kept.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Files that are read again at SIGHUP.
    pub files: Vec<PathBuf>,
    /// Relay sockets will be bound to ports below 1024.
    pub low_ports: bool,
}

/// A process on its way to being confined.
#[derive(Debug)]
pub struct Confinement {
    /// What is in force, for the log.
    capabilities: &'static str,
    files: Readable,
}

impl Confinement {
    /// The first step. What the kernel lacks or refuses is logged, and the rest goes on.
    #[must_use]
    pub fn before_threads(needs: &Needs) -> Self {
        let said = |what: &str, result: io::Result<()>| {
            if let Err(error) = &result {
                tracing::warn!(%error, "not confined: {what}");
            }
            result.is_ok()
        };
        // Whoever has no secrets yet may be given some by a reload.
        said("core dumps", forbid_core_dumps());
        said("new privileges", set_no_new_privs(true).map_err(io::Error::from));
        let dropped = said("capabilities", drop_capabilities(needs.low_ports));
        let files = files::restrict(&needs.files).unwrap_or_else(|error| {
            tracing::warn!("not confined: files, because {error}");
            Readable::everything()
        });
        for directory in &files.common {
            tracing::warn!(
                directory = %directory.display(),
                "not confined: files, because all in this directory stay readable; give the relay's a directory of their own, such as /etc/towpath-relay"
            );
        }
        let capabilities = match (dropped, needs.low_ports) {
            (true, false) => "none",
            (true, true) => "net_bind_service",
            (false, _) => "as before",
        };
        Self { capabilities, files }
    }

    /// The second step, which ends with the one line in the log that says what is in force.
    pub fn when_ready(&self) {
        let calls = match system_calls::restrict() {
            Ok(count) => format!("{count} allowed"),
            Err(error) => {
                tracing::warn!("not confined: system calls, because {error}");
                "all".to_owned()
            }
        };
        tracing::info!(
            capabilities = self.capabilities,
            files = self.files.in_words(),
            system_calls = calls,
            "confined"
        );
    }
}

/// Neither the kernel nor another process of the same user gets to see the memory.
fn forbid_core_dumps() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Drops every capability of this thread and of those it starts later; with `low_ports` all but CAP_NET_BIND_SERVICE.
fn drop_capabilities(low_ports: bool) -> io::Result<()> {
    let kept = if low_ports { CapabilitySet::NET_BIND_SERVICE } else { CapabilitySet::empty() };
    let own = capabilities(None)?;
    if own.effective.contains(CapabilitySet::IPC_LOCK) {
        // Rings are set up after this, and count as locked memory, which was not limited so far. Only who may raise the
        // limit succeeds; for others it is as large as they were given.
        let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    }
    if own.effective.contains(CapabilitySet::SETPCAP) {
        // Without no_new_privs these would be what a program with set-user-ID root could get back.
        for capability in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
            // EINVAL marks the end of what this kernel knows.
            match capability_is_in_bounding_set(capability) {
                Ok(true) if !kept.contains(capability) => remove_capability_from_bounding_set(capability)?,
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    clear_ambient_capability_set()?;
    let permitted = own.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: own.effective & permitted,
            permitted,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
