//! What the kernel refused, in one sentence that names the remedy.

use std::fmt;
use std::io;

use netlink_packet_core::{ErrorMessage, NlasIterator};

/// Length of the header of the refused message, which precedes the kernel's explanation (NETLINK_CAP_ACK).
const REFUSED_HEADER_BYTES: usize = 16;
/// The explanation in words (NLMSGERR_ATTR_MSG of linux/netlink.h).
const EXPLANATION: u16 = 1;

/// A failed operation: what was tried, what the kernel answered, what to do.
#[derive(Debug)]
pub struct Error {
    operation: String,
    explanation: Option<String>,
    remedy: Option<&'static str>,
    source: io::Error,
}

impl Error {
    pub(super) fn new(operation: impl Into<String>, source: io::Error) -> Self {
        Failure::from(source).named(operation)
    }

    /// The class of the error: `PermissionDenied`, `AlreadyExists`, `NotFound`…
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The error number, when the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Replaces the remedy by one that knows more about the operation.
    pub(super) fn with_remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {}: {}", self.operation, self.source)?;
        if let Some(explanation) = &self.explanation {
            write!(formatter, " ({explanation})")?;
        }
        if let Some(remedy) = self.remedy {
            write!(formatter, "; {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

/// A failure that does not know yet what it was part of.
pub(super) struct Failure {
    explanation: Option<String>,
    source: io::Error,
}

impl Failure {
    /// From the kernel's refusal, with its explanation in words when it gave one.
    pub(super) fn refused(message: &ErrorMessage) -> Self {
        let attributes = message.header.get(REFUSED_HEADER_BYTES..).unwrap_or_default();
        let explanation = NlasIterator::new(attributes)
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == EXPLANATION)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
        Self { explanation, source: message.to_io() }
    }

    pub(super) fn named(self, operation: impl Into<String>) -> Error {
        let remedy = remedy(&self.source);
        Error { operation: operation.into(), explanation: self.explanation, remedy, source: self.source }
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self { explanation: None, source }
    }
}

/// What usually helps against an error number.
fn remedy(source: &io::Error) -> Option<&'static str> {
    Some(match source.raw_os_error()? {
        libc::EPERM | libc::EACCES => {
            "needs CAP_NET_ADMIN in this network namespace: run as root, or give the program the capability \
             with `setcap cap_net_admin+ep`"
        }
        libc::ENODEV | libc::ENXIO => "the interface does not exist (any more): check its name",
        libc::EEXIST => "it is there already: remove it first or choose another name or address",
        libc::ENETUNREACH | libc::EHOSTUNREACH => {
            "the gateway cannot be reached: set the interface's address first and bring it up"
        }
        libc::ENETDOWN => "bring the interface up first",
        libc::EOPNOTSUPP => "this kernel lacks the feature: load its module or use a kernel that has it",
        libc::EAFNOSUPPORT => "this kernel has the address family switched off: use the other family",
        libc::ENOBUFS => "raise net.core.rmem_default",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_operation_reason_and_remedy() {
        let error = Error::new("add address 10.0.0.1/24", io::Error::from_raw_os_error(libc::EPERM));
        let text = error.to_string();
        assert!(text.starts_with("cannot add address 10.0.0.1/24: "), "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn the_kernels_own_words_are_kept() {
        let mut message = ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-libc::EINVAL);
        message.header = vec![0; REFUSED_HEADER_BYTES];
        message.header.extend_from_slice(&[9, 0, 1, 0]);
        message.header.extend_from_slice(b"oops\0\0\0\0");
        assert!(Failure::refused(&message).named("do it").to_string().contains("(oops)"));
    }

    #[test]
    fn a_refusal_cut_short_is_survived() {
        let mut message = ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-libc::EINVAL);
        for length in 0..24 {
            message.header = vec![0xff; length];
            assert!(Failure::refused(&message).named("do it").errno() == Some(libc::EINVAL));
        }
    }
}
