//! Certificate and key for TLS, from PEM files. Loading them again gives a configuration that may replace the one in use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::time::Validity;

use crate::config::ConfigError;
use crate::secrets::{Secrets, path_to_open};

/// The application protocols of RFC 7443. A client that names others and none of these is refused, because it does not
/// mean to speak to a relay.
const PROTOCOLS: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that lead to its authority, its own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A configuration for TLS, and for how long it is good.
#[derive(Clone, Debug)]
pub struct Tls {
    /// To give to [`super::Streams::reconfigure`].
    pub config: Arc<ServerConfig>,
    path: PathBuf,
    validity: Validity,
}

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}; check the path and who may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is nothing of the right kind in a file.
    #[error("{}: there is no {what} in it; it has to be PEM, with a line -----BEGIN {label}-----", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What its first line should say.
        label: &'static str,
    },
    /// A file is damaged, or holds something that TLS cannot use.
    #[error("{}: {text}; make it again, or export it as PEM", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// The key is another certificate's.
    #[error("{}: this is not the key of the certificate in {}; give the two that belong together, the server's own certificate first in its file", key.display(), certificate.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
}

/// Reads both files and checks that they belong together.
///
/// # Errors
/// Which file is wrong, and the remedy.
pub fn load(files: &TlsFiles, secrets: &mut Secrets) -> Result<Tls, ConfigError> {
    let key = secrets.read_key(&files.key)?;
    Ok(assemble(files, &key)?)
}

fn assemble(files: &TlsFiles, key: &str) -> Result<Tls, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key, key)?;
    let unusable = |path: &Path, text: String| TlsError::Unusable { path: path.to_owned(), text };
    let own = chain.first().and_then(|own| Certificate::from_der(own).ok());
    let own = own.ok_or_else(|| unusable(&files.certificate, "the certificate is damaged".to_owned()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| unusable(&files.certificate, error.to_string()))?;
    let mut config =
        builder.with_no_client_auth().with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { key: files.key.clone(), certificate: files.certificate.clone() }
            }
            rustls::Error::InvalidCertificate(_) => unusable(&files.certificate, error.to_string()),
            error => unusable(&files.key, error.to_string()),
        })?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    // A client connects once and stays: there is nothing to resume, and nothing to keep for it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Tls {
        config: Arc::new(config),
        path: files.certificate.clone(),
        validity: own.tbs_certificate.validity,
    })
}

impl Tls {
    /// What is wrong with the certificate's dates at this time: clients that look will refuse it.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let (path, Validity { not_before, not_after }) = (self.path.display(), self.validity);
        if now > not_after.to_system_time() {
            return Some(format!("{path}: the certificate has expired at {not_after}: renew it"));
        }
        if now < not_before.to_system_time() {
            return Some(format!(
                "{path}: the certificate is good from {not_before} on: is the clock right?"
            ));
        }
        None
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let missing = || TlsError::Missing { path: path.to_owned(), what: "certificate", label: "CERTIFICATE" };
    let opened = path_to_open(path).unwrap_or_else(|| path.to_owned());
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_file_iter(opened).and_then(Iterator::collect);
    let chain = chain.map_err(|error| explain(path, error, missing()))?;
    if chain.is_empty() { Err(missing()) } else { Ok(chain) }
}

fn private_key(path: &Path, text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let missing = TlsError::Missing { path: path.to_owned(), what: "private key", label: "PRIVATE KEY" };
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| explain(path, error, missing))
}

fn explain(path: &Path, error: pem::Error, missing: TlsError) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::Unreadable { path, source },
        pem::Error::NoItemsFound => missing,
        error => TlsError::Unusable { path, text: error.to_string() },
    }
}
