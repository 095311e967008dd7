//! Certificates for servers of the kit.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Shows the kit's certificate of this name.
pub(super) fn acceptor(name: &str) -> Result<TlsAcceptor> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tls");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem")))?.collect();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
    let config = config.with_single_cert(chain.context("a certificate")?, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
