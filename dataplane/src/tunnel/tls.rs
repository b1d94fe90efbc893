//! Whom we believe to be a relay, over TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

/// The application protocol of TURN (RFC 7443).
const PROTOCOL: &[u8] = b"stun.turn";

/// A configuration that trusts the certificates in a file, as authorities or the server's own, or the authorities of this
/// system.
///
/// # Errors
/// What is wrong with the file, or that there are no authorities; with the remedy.
pub(super) fn config(certificate: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match certificate {
        Some(file) => {
            let shown = file.display();
            let wrong = |error: rustls::pki_types::pem::Error| {
                format!("{shown}: {error}; it has to be PEM, with a line -----BEGIN CERTIFICATE-----")
            };
            for found in CertificateDer::pem_file_iter(file).map_err(wrong)? {
                let found = found.map_err(wrong)?;
                roots.add(found).map_err(|error| format!("{shown}: {error}; export it again"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err("no certificate authority is known here: apt-get install ca-certificates, or write \
                    #towpath: RelayCertificate = FILE"
            .to_owned());
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}
