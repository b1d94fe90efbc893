//! What is wrong with flags or files, where, and what would be right.

use std::path::PathBuf;

use crate::stream::tls::TlsError;

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {source}; check the path and who may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file with passwords that group or others can read.
    #[error("{0}: group or others can read the passwords in it; run: chmod 600 {0}", path.display())]
    WorldReadable {
        /// The file.
        path: PathBuf,
    },
    /// A file that should hold secrets and has none.
    #[error("{}: there is no secret in it; write one on a line of its own", path.display())]
    NoSecret {
        /// The file.
        path: PathBuf,
    },
    /// A private key that everyone can read.
    #[error("{0}: everyone can read the private key in it; run: chmod 600 {0}", path.display())]
    KeyReadable {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A descriptor that the relay was not started with.
    #[error("{0}: there is no such descriptor; start the relay with {number}< FILE", path.display())]
    NoDescriptor {
        /// As it was named.
        path: PathBuf,
        /// Its number.
        number: u32,
    },
    /// A line that cannot be understood.
    #[error("{}:{line}: {text}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from one.
        line: usize,
        /// What is wrong and what would be right.
        text: String,
    },
    /// Flags that do not go together.
    #[error("{0}")]
    Usage(String),
}
