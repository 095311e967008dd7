//! The certificate authorities that this agent trusts: one list for looks, LFS, the store and git.
//!
//! The system's are those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, without them those of the machine; they are read once. What a
//! Secret's `ca.crt` or `AWS_CA_BUNDLE` holds is trusted besides, for its own connections alone.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Weak},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Characters in a line of PEM (RFC 7468).
const LINE: usize = 64;

/// A text that holds something else than certificates in PEM, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds no certificates in PEM")]
pub struct NoCertificates;

static SYSTEM: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "an authority of the system cannot be read");
    }
    // As everywhere, one that cannot be understood spoils no other.
    found.certs.into_iter().filter(usable).collect()
});

fn usable(certificate: &CertificateDer<'static>) -> bool {
    RootCertStore::empty().add(certificate.clone()).is_ok()
}

/// The certificates of a text in PEM.
///
/// # Errors
/// There is none, or one that cannot be used.
pub fn parse(pem: &str) -> Result<Vec<CertificateDer<'static>>, NoCertificates> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|found| !found.is_empty() && found.iter().all(usable)).ok_or(NoCertificates)
}

/// The system's authorities, and those of `own` in PEM.
///
/// # Errors
/// `own` holds something else.
pub fn trusted(own: Option<&str>) -> Result<Vec<CertificateDer<'static>>, NoCertificates> {
    let own = own.map(parse).transpose()?.unwrap_or_default();
    Ok(SYSTEM.iter().cloned().chain(own).collect())
}

/// The same in PEM; empty where there are none.
///
/// # Errors
/// `own` holds something else.
pub fn pem(own: Option<&str>) -> Result<String, NoCertificates> {
    let mut pem = String::new();
    for certificate in trusted(own)? {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64_STANDARD.encode(&certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    Ok(pem)
}

/// A file with the system's authorities and others, for git; one for all who trust the same. It goes with the last of them.
#[derive(Debug)]
pub struct BundleFile {
    path: PathBuf,
}

type Files = HashMap<(PathBuf, blake3::Hash), Weak<BundleFile>>;

static FILES: LazyLock<Mutex<Files>> = LazyLock::new(Mutex::default);

impl BundleFile {
    /// The file below `dir` for those who trust `own` as well.
    ///
    /// # Errors
    /// `own` holds no certificates, or the file cannot be written.
    pub fn below(dir: &Path, own: &str) -> io::Result<Arc<Self>> {
        let key = (dir.to_owned(), blake3::hash(own.as_bytes()));
        let mut files = FILES.lock();
        if let Some(known) = files.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let pem = pem(Some(own)).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // A name of its own: the one before may be going just now.
        let path = dir.join(format!("{:016x}.ca", rand::random::<u64>()));
        let made = Arc::new(Self { path });
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&made.path)?;
        file.write_all(pem.as_bytes())?;
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(key, Arc::downgrade(&made));
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BundleFile {
    fn drop(&mut self) {
        // A leftover is removed at the next start as well.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: &str = include_str!("../../testkit/tls/ca.pem");

    #[test]
    fn an_authority_of_ones_own_stands_beside_the_systems() {
        let (system, own) = (trusted(None).unwrap(), parse(AUTHORITY).unwrap());
        let all = trusted(Some(AUTHORITY)).unwrap();
        assert_eq!(all.len(), system.len() + own.len());
        assert_eq!(parse(&pem(Some(AUTHORITY)).unwrap()).unwrap(), all, "git reads what the agent trusts");
        for none in ["", "canary", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n"] {
            assert!(!trusted(Some(none)).unwrap_err().to_string().contains("canary"));
        }
    }

    #[test]
    fn those_who_trust_the_same_share_a_file_that_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let one = BundleFile::below(dir.path(), AUTHORITY).unwrap();
        let two = BundleFile::below(dir.path(), AUTHORITY).unwrap();
        assert_eq!(one.path(), two.path());
        drop(one);
        assert!(parse(&fs::read_to_string(two.path()).unwrap()).is_ok());
        drop(two);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(BundleFile::below(dir.path(), "canary").is_err());
    }
}
