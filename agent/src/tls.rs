//! The certificate that the git port shows: from two files, read again when they change. A connection keeps what it began
//! with, so that a renewed certificate cuts no stream.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::files;

/// The longest file: a chain of some dozens of certificates.
const MAX_FILE: u64 = 256 << 10;

/// Why the certificate cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What a file holds.
    #[error("{} holds no {what} in PEM", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The two do not go together, or cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Pair(#[from] Error),
}

/// The certificate and its key, as the files have them now.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    now: RwLock<Loaded>,
}

struct Loaded {
    digest: blake3::Hash,
    config: Arc<ServerConfig>,
    own: CertificateDer<'static>,
    /// The one before: other agents of the cache may still show it.
    before: Option<CertificateDer<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.cert.display())
    }
}

impl Tls {
    /// Reads a certificate, with those that lead to its authority, and its key.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let now = RwLock::new(Content::read(cert, key)?.load(cert, key)?);
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), now }))
    }

    /// Reads the files again whenever they change, for ever. What cannot be used leaves all as it was.
    pub async fn follow(self: Arc<Self>) {
        let (mut seen, mut complained) = (self.digest(), None);
        loop {
            tokio::time::sleep(files::LOOK_AGAIN).await;
            let (cert, key) = (self.cert.clone(), self.key.clone());
            let loaded = match files::blocking(move || Ok(Content::read(&cert, &key))).await {
                // Looked at before, whether it can be used or not.
                Ok(Ok(content)) if content.digest == seen => continue,
                Ok(Ok(content)) => {
                    seen = content.digest;
                    content.load(&self.cert, &self.key)
                }
                Ok(Err(error)) => Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the certificate cannot be read");
                    continue;
                }
            };
            match loaded {
                Ok(loaded) => self.take(loaded),
                Err(error) => {
                    // Once: it is so until somebody mends it, or the second of the two files has changed as well.
                    let text = error.to_string();
                    if complained.replace(text.clone()) != Some(text) {
                        tracing::warn!(%error, "the certificate stays as it was");
                    }
                }
            }
        }
    }

    fn take(&self, loaded: Loaded) {
        let mut now = self.now.write();
        if loaded.digest == now.digest {
            return;
        }
        let before = Some(now.own.clone());
        *now = Loaded { before, ..loaded };
        tracing::info!(certificate = %self.cert.display(), "new connections get a renewed certificate");
    }

    fn digest(&self) -> blake3::Hash {
        self.now.read().digest
    }

    /// What a new connection gets.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.now.read().config.clone()
    }

    /// Whether this is the certificate of this agent, or was until it was renewed.
    fn is_own(&self, certificate: &CertificateDer<'_>) -> bool {
        let now = self.now.read();
        now.own == *certificate || now.before.as_ref().is_some_and(|before| before == certificate)
    }

    /// For a client of the other agents of the cache, which have the same certificate: they are called by their
    /// addresses, which no certificate names, and are known by its key.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn for_peers(self: &Arc<Self>) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let same = Arc::new(Same { tls: self.clone(), provider: provider.clone() });
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(builder.dangerous().with_custom_certificate_verifier(same).with_no_client_auth())
    }
}

/// What the two files hold.
struct Content {
    chain: Vec<u8>,
    key: Vec<u8>,
    digest: blake3::Hash,
}

impl Content {
    fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            let content = files::read_bounded(path, MAX_FILE);
            content.map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        let (chain, key) = (read(cert)?, read(key)?);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&chain).update(&key);
        Ok(Self { chain, key, digest: hasher.finalize() })
    }

    /// Of two files that are renewed one after the other, this refuses what does not go together.
    fn load(&self, cert: &Path, key: &Path) -> Result<Loaded, TlsError> {
        let content = |path: &Path, what| TlsError::Content { path: path.to_owned(), what };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.chain).collect();
        let chain = chain.map_err(|_| content(cert, "certificate"))?;
        let own = chain.first().cloned().ok_or_else(|| content(cert, "certificate"))?;
        let secret = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| content(key, "private key"))?;
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, secret)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded { digest: self.digest, config: Arc::new(config), own, before: None })
    }
}

/// Believes whoever has the key of this agent's own certificate.
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
    ) -> Result<ServerCertVerified, Error> {
        if self.tls.is_own(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General("the certificate is not that of this cache's agents".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
