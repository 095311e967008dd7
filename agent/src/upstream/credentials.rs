//! Credentials for an upstream: as HTTP headers for looks, as a private configuration file for git.
//!
//! Git gets credentials in a file that only this user can read, named on
//! its command line and removed with the value: never in an argument, a URL or the environment.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tarn_crds::repo::{Scheme, UpstreamUrl};

use super::{github_app::App, secret::Secret};
use crate::{
    authorities::{self, BundleFile},
    git::command::{aside, trusting},
};

/// How the agent proves itself to an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    authorization: Option<Secret>,
    identity: Option<Secret>,
    known_hosts: Option<Secret>,
    app: Option<App>,
    ca: Option<Secret>,
}

/// Why a Secret's data are no credentials. Names keys, never values.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A key that does not fit.
    #[error("the Secret's key {key:?} {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// None of the known keys is there.
    #[error(
        "the Secret has none of the keys username and password, bearerToken, identity and known_hosts, githubAppID \
         with githubAppInstallationID and githubAppPrivateKey, ca.crt"
    )]
    Empty,
    /// The transport takes other credentials.
    #[error("the Secret has no credentials for {0} upstreams")]
    Scheme(&'static str),
}

impl Credentials {
    /// Takes credentials for `url` from a Secret's data.
    ///
    /// # Errors
    /// Which key is missing or wrong.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>, url: &UpstreamUrl) -> Result<Self, CredentialsError> {
        let text = |key: &'static str| -> Result<Option<&str>, CredentialsError> {
            let Some(bytes) = data.get(key) else { return Ok(None) };
            let text = std::str::from_utf8(bytes)
                .map_err(|_| CredentialsError::Key { key, problem: "is not UTF-8" })?;
            Ok(Some(text.trim_end_matches(['\r', '\n'])))
        };
        let one_line = |key: &'static str| match text(key)? {
            Some(text) if text.contains(|c: char| c.is_control()) => {
                Err(CredentialsError::Key { key, problem: "holds control characters" })
            }
            other => Ok(other),
        };
        let authorization = match (one_line("username")?, one_line("password")?, one_line("bearerToken")?) {
            (Some(user), Some(password), None) if !user.contains(':') => {
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            (Some(_), Some(_), None) => {
                return Err(CredentialsError::Key { key: "username", problem: "holds a colon" });
            }
            (None, None, Some(token)) => Some(format!("Bearer {token}")),
            (None, None, None) => None,
            (Some(_), None, _) => {
                return Err(CredentialsError::Key { key: "password", problem: "is missing" });
            }
            (None, Some(_), _) => {
                return Err(CredentialsError::Key { key: "username", problem: "is missing" });
            }
            (_, _, Some(_)) => {
                return Err(CredentialsError::Key {
                    key: "bearerToken",
                    problem: "excludes username and password",
                });
            }
        };
        let app = match ["githubAppID", "githubAppInstallationID", "githubAppPrivateKey"] {
            keys if keys.iter().all(|key| !data.contains_key(*key)) => None,
            [id, installation, key] => {
                let needed = |key: &'static str, found: Option<&'_ str>| {
                    found.map(str::to_owned).ok_or(CredentialsError::Key { key, problem: "is missing" })
                };
                let ids = (needed(id, one_line(id)?)?, needed(installation, one_line(installation)?)?);
                let pem = needed(key, text(key)?)?;
                if authorization.is_some() {
                    let problem = "excludes username, password and bearerToken";
                    return Err(CredentialsError::Key { key: id, problem });
                }
                let app = App::new((&ids.0, &ids.1), &pem, one_line("githubAppBaseURL")?, url);
                Some(app.map_err(|(key, problem)| CredentialsError::Key { key, problem })?)
            }
        };
        // Whatever editor wrote it: ssh takes no key whose lines end as Windows' do.
        let secret = |key| Ok(text(key)?.map(|text| Secret::new(text.replace("\r\n", "\n"))));
        let ca: Option<Secret> = secret("ca.crt")?;
        if ca.as_ref().is_some_and(|ca| authorities::parse(ca.expose()).is_err()) {
            return Err(CredentialsError::Key { key: "ca.crt", problem: "holds no certificates in PEM" });
        }
        let found = Self {
            app,
            authorization: authorization.map(Secret::new),
            identity: secret("identity")?,
            known_hosts: secret("known_hosts")?,
            ca,
        };
        if found == Self::default() {
            return Err(CredentialsError::Empty);
        }
        match url.scheme() {
            Scheme::Ssh if found.identity.is_none() => {
                Err(CredentialsError::Key { key: "identity", problem: "is missing" })
            }
            Scheme::Ssh if found.known_hosts.is_none() => {
                Err(CredentialsError::Key { key: "known_hosts", problem: "is missing" })
            }
            Scheme::File => Err(CredentialsError::Scheme("file")),
            Scheme::Ssh if found.app.is_some() => {
                Err(CredentialsError::Key { key: "githubAppID", problem: "is for https upstreams" })
            }
            Scheme::Https | Scheme::Http if found.identity.is_some() => {
                Err(CredentialsError::Key { key: "identity", problem: "is for ssh upstreams" })
            }
            _ => Ok(found),
        }
    }

    /// The `Authorization` header, if any.
    pub fn authorization(&self) -> Option<&Secret> {
        self.authorization.as_ref()
    }

    /// The GitHub App whose installation's tokens take the place of a password.
    pub(super) fn app(&self) -> Option<&App> {
        self.app.as_ref()
    }

    /// Certificates (PEM) to trust besides the system's.
    pub fn ca(&self) -> Option<&Secret> {
        self.ca.as_ref()
    }

    /// Writes what git needs into files below `dir`, mode 0600, removed when the value is dropped.
    /// `None` where git needs nothing.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn install(&self, dir: &Path, url: &UpstreamUrl) -> io::Result<Option<Arc<Installed>>> {
        if *self == Self::default() {
            return Ok(None);
        }
        let name = format!("{:016x}", rand::random::<u64>());
        let file = dir.join(format!("{name}.config"));
        // For this host only; git follows no redirects (see `git::remote`).
        let origin = format!("{}://{}/", url.scheme().as_str(), url.id().host());
        let (rest, authorized) = (String::new(), Mutex::default());
        let authorities = self.ca.as_ref().map(|ca| BundleFile::below(dir, ca.expose())).transpose()?;
        let mut config = authorities.as_ref().map(|file| trusting(file.path())).unwrap_or_default();
        let mut installed = Installed {
            config: file,
            files: Vec::new(),
            origin,
            rest,
            authorized,
            _authorities: authorities,
        };
        if let (Some(identity), Some(known_hosts)) = (&self.identity, &self.known_hosts) {
            let identity =
                installed.write(&dir.join(format!("{name}.key")), &format!("{}\n", identity.expose()))?;
            let known_hosts = installed
                .write(&dir.join(format!("{name}.hosts")), &format!("{}\n", known_hosts.expose()))?;
            let ssh = aside(&format!(
                "ssh -F none -oBatchMode=yes -oIdentitiesOnly=yes -oIdentityAgent=none -oStrictHostKeyChecking=yes \
                 -oUserKnownHostsFile={known_hosts} -oGlobalKnownHostsFile=none -i {identity}"
            ));
            let quoted = ssh.replace('\\', "\\\\").replace('"', "\\\"");
            config.push_str(&format!("[core]\n\tsshCommand = \"{quoted}\"\n"));
        }
        installed.rest = config;
        installed.files.extend([installed.config.clone(), installed.staged()]);
        installed.replace(self.authorization.as_ref())?;
        Ok(Some(Arc::new(installed)))
    }
}

/// Files with credentials; dropping it removes them.
#[derive(Debug)]
pub struct Installed {
    config: PathBuf,
    files: Vec<PathBuf>,
    /// Where the authorization may be sent.
    origin: String,
    /// What else git is told.
    rest: String,
    /// The authorization that is in the file.
    authorized: Mutex<Option<Secret>>,
    /// What the file names.
    _authorities: Option<Arc<BundleFile>>,
}

impl Installed {
    /// The configuration file for git to include.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Gives git this authorization from its next start on, in one instant.
    ///
    /// # Errors
    /// The file cannot be written; git then has the one before.
    pub(super) fn authorize(&self, header: &Secret) -> io::Result<()> {
        let mut authorized = self.authorized.lock().unwrap_or_else(PoisonError::into_inner);
        if authorized.as_ref() != Some(header) {
            self.replace(Some(header))?;
            *authorized = Some(header.clone());
        }
        Ok(())
    }

    fn staged(&self) -> PathBuf {
        self.config.with_extension("new")
    }

    fn replace(&self, header: Option<&Secret>) -> io::Result<()> {
        let header = header.map(|header| {
            let value = header.expose().replace('\\', "\\\\").replace('"', "\\\"");
            format!("[http \"{}\"]\n\textraHeader = \"Authorization: {value}\"\n", self.origin)
        });
        let staged = self.staged();
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(header.unwrap_or_default().as_bytes())?;
        file.write_all(self.rest.as_bytes())?;
        drop(file);
        fs::rename(&staged, &self.config)
    }

    fn write(&mut self, path: &Path, content: &str) -> io::Result<String> {
        self.files.push(path.to_owned());
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content.as_bytes())?;
        Ok(path.display().to_string())
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        for file in &self.files {
            // Leftovers are removed at the next start as well.
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)], url: &str) -> Result<Credentials, CredentialsError> {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        Credentials::from_data(&data, &UpstreamUrl::parse(url).unwrap())
    }

    const HTTPS: &str = "https://h/o/r";

    #[test]
    fn every_kind_is_understood() {
        let basic = parse(&[("username", "u"), ("password", "p\n")], HTTPS).unwrap();
        assert_eq!(basic.authorization().unwrap().expose(), "Basic dTpw");
        let bearer = parse(&[("bearerToken", "t")], HTTPS).unwrap();
        assert_eq!(bearer.authorization().unwrap().expose(), "Bearer t");
        assert!(parse(&[("identity", "k"), ("known_hosts", "h")], "ssh://git@h/o/r").is_ok());
    }

    #[test]
    fn keys_written_on_windows_are_ssh_keys_all_the_same() {
        let pairs = [("identity", "-----BEGIN\r\nk\r\n-----END\r\n"), ("known_hosts", "h a\r\nh b\r\n")];
        let found = parse(&pairs, "ssh://git@h/o/r").unwrap();
        assert_eq!(found.identity.unwrap().expose(), "-----BEGIN\nk\n-----END");
        assert_eq!(found.known_hosts.unwrap().expose(), "h a\nh b");
    }

    #[test]
    fn what_is_wrong_is_named_without_values() {
        for (pairs, url) in [
            (vec![], HTTPS),
            (vec![("username", "canary")], HTTPS),
            (vec![("username", "canary:x"), ("password", "canary")], HTTPS),
            (vec![("username", "canary"), ("password", "p"), ("bearerToken", "canary")], HTTPS),
            (vec![("bearerToken", "canary\r\nX: y")], HTTPS),
            (vec![("identity", "canary")], "ssh://git@h/o/r"),
            (vec![("identity", "canary")], HTTPS),
        ] {
            let error = parse(&pairs, url).unwrap_err().to_string();
            assert!(!error.contains("canary"), "{error}");
        }
        assert!(!format!("{:?}", parse(&[("bearerToken", "canary")], HTTPS)).contains("canary"));
    }

    #[test]
    fn files_for_git_are_private_and_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let url = UpstreamUrl::parse(HTTPS).unwrap();
        let credentials = parse(&[("bearerToken", "t")], HTTPS).unwrap();
        let installed = credentials.install(dir.path(), &url).unwrap().unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(installed.config()).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        drop(installed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
