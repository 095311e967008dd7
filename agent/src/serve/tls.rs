//! TLS of the git port: a certificate and its key from files, which may be replaced at any time, as cert-manager and the
//! kubelet do. Connections that are open go on with what they began with.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{sync::watch, time};

use crate::files::blocking;

/// Between two looks at the files. Certificates are renewed days before they expire.
const EVERY: Duration = Duration::from_secs(5);

/// More than any chain of certificates has.
const MAX_FILE: u64 = 1 << 20;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file has no certificate, or no key.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// They do not belong together, or are of a kind that cannot be used.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What the git port proves itself with.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: watch::Sender<Arc<ServerConfig>>,
    /// The certificate in use, and the one before: another pod may get the new one a minute later.
    own: Mutex<[Option<CertificateDer<'static>>; 2]>,
}

/// The files as they were read.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads the files. A provider of cryptography must be installed.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let (config, own) = configure(&read(&certificate, &key)?, &certificate, &key)?;
        Ok(Self { certificate, key, config: watch::Sender::new(config), own: Mutex::new([Some(own), None]) })
    }

    /// What connections that begin now are to have.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.borrow().clone()
    }

    /// Follows the files, for ever. What cannot be used is told once, and what was there before stays.
    pub async fn follow(self: Arc<Self>) {
        let mut known = None;
        loop {
            let this = self.clone();
            let pair = blocking(move || Ok(read(&this.certificate, &this.key))).await;
            match pair.unwrap_or_else(|source| Err(TlsError::Read { path: self.certificate.clone(), source }))
            {
                Ok(pair) if known.as_ref() != Some(&pair) => {
                    match configure(&pair, &self.certificate, &self.key) {
                        Ok((config, own)) => self.take(config, own),
                        // Half of a replacement, most often: the other file follows.
                        Err(error) => tracing::warn!(%error, "the certificate of before stays in use"),
                    }
                    known = Some(pair);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the certificate of before stays in use"),
            }
            time::sleep(EVERY).await;
        }
    }
}

impl Tls {
    fn take(&self, config: Arc<ServerConfig>, own: CertificateDer<'static>) {
        let mut known = self.known();
        // The first is what was loaded at the start.
        if known[0].as_ref() != Some(&own) {
            tracing::info!("a new certificate is used from now on");
            *known = [Some(own), known[0].take()];
        }
        self.config.send_replace(config);
    }

    fn known(&self) -> MutexGuard<'_, [Option<CertificateDer<'static>>; 2]> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this agent reaches others that have the same certificate: whoever proves to have its key is one of them,
    /// whatever names the certificate has. Pods are reached by address, and no certificate names those.
    ///
    /// # Errors
    /// No provider of cryptography fits.
    pub fn to_peers(self: &Arc<Self>) -> Result<ClientConfig, TlsError> {
        let provider = ServerConfig::builder().crypto_provider().clone();
        let verifier = Arc::new(Same { tls: self.clone(), provider: provider.clone() });
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Believes who has the certificate of this agent.
#[derive(Debug)]
struct Same {
    tls: Arc<Tls>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.tls.known().iter().flatten().any(|own| own.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Pair, TlsError> {
    let file = |path: &Path| {
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        read.map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
        Ok::<_, TlsError>(bytes)
    };
    Ok(Pair { certificate: file(certificate)?, key: file(key)? })
}

fn configure(
    pair: &Pair,
    certificate: &Path,
    key: &Path,
) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), TlsError> {
    let pem = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.certificate).collect();
    let chain =
        chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| pem(certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|_| pem(key, "private key"))?;
    let own = chain.first().cloned().ok_or_else(|| pem(certificate, "certificate"))?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(config), own))
}
