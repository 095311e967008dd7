//! Routes of the git port: which repository a path names, and what is wanted of it.

use http::Method;

use super::error::Failure;

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Have what the mirror has: the door judges who may.
    Read,
    /// Hand something to the upstream, which judges who may.
    Push,
}

/// Declares the endpoints once: the enum, the list of all, and what is true of each.
macro_rules! endpoints {
    ($($(#[$doc:meta])+ $name:ident: $purpose:ident, [$($method:ident),+], $allowed:literal, $label:literal;)+) => {
        /// Everything that can be asked for of a repository. Whatever the router serves is one of these.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Endpoint {
            $($(#[$doc])+ $name,)+
        }

        impl Endpoint {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What it is for.
            pub const fn purpose(self) -> Purpose {
                match self {
                    $(Self::$name => Purpose::$purpose,)+
                }
            }

            /// The methods that it has.
            pub const fn methods(self) -> &'static [Method] {
                match self {
                    $(Self::$name => &[$(Method::$method),+],)+
                }
            }

            /// Refuses other methods than those it has.
            pub(super) fn check(self, method: &Method) -> Result<(), Failure> {
                let allowed = match self {
                    $(Self::$name => $allowed,)+
                };
                if self.methods().contains(method) { Ok(()) } else { Err(Failure::method(allowed)) }
            }

            /// Its label in metrics; a request for objects or refs finds its own when it is read.
            pub(super) const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

endpoints! {
    /// `info/refs?service=git-upload-pack`
    Refs: Read, [GET], "GET", "info-refs";
    /// `info/refs?service=git-receive-pack`
    PushRefs: Push, [GET], "GET", "info-refs";
    /// `git-upload-pack`
    UploadPack: Read, [POST], "POST", "other";
    /// `git-receive-pack`
    ReceivePack: Push, [POST], "POST", "push";
    /// `ensure-refs`
    EnsureRefs: Read, [POST], "POST", "ensure-refs";
    /// `snapshot.tar.zst`
    Snapshot: Read, [GET, HEAD], "GET or HEAD", "snapshot";
    /// `lfs-snapshot.tar.zst`
    LfsSnapshot: Read, [GET, HEAD], "GET or HEAD", "lfs-snapshot";
    /// `snapshot.bundle`
    Bundle: Read, [GET], "GET", "bundle";
    /// `info/lfs/objects/batch`, for downloads and uploads: only its body tells which, so whoever uploads has to be let in
    /// here, and then by the upstream.
    LfsBatch: Read, [POST], "POST", "lfs-batch";
    /// `info/lfs/objects/OID`
    LfsObject: Read, [GET, HEAD], "GET or HEAD", "lfs-object";
    /// `info/lfs/locks`
    LfsLocks: Read, [GET, POST], "GET or POST", "lfs-locks";
    /// `info/lfs/locks/verify`
    LfsVerify: Read, [POST], "POST", "lfs-locks";
    /// `info/lfs/locks/ID/unlock`
    LfsUnlock: Read, [POST], "POST", "lfs-locks";
}

impl Endpoint {
    /// Whether it serves what `spec.snapshot.suspend` turns off.
    pub(super) fn is_snapshot(self) -> bool {
        matches!(self, Self::Snapshot | Self::LfsSnapshot | Self::Bundle)
    }
}

/// What a request wants of a repository, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    InfoRefs,
    UploadPack,
    ReceivePack,
    EnsureRefs,
    Snapshot,
    LfsSnapshot,
    Bundle,
}

impl Verb {
    const ALL: [(&'static str, Self); 7] = [
        ("/info/refs", Self::InfoRefs),
        ("/git-upload-pack", Self::UploadPack),
        ("/git-receive-pack", Self::ReceivePack),
        ("/ensure-refs", Self::EnsureRefs),
        ("/snapshot.tar.zst", Self::Snapshot),
        ("/lfs-snapshot.tar.zst", Self::LfsSnapshot),
        ("/snapshot.bundle", Self::Bundle),
    ];

    /// Splits `/git/{repository}{verb}`. The path is still percent-encoded, so an encoded slash in the
    /// repository cannot forge a verb.
    pub(super) fn split(path: &str) -> Result<(&str, Self), Failure> {
        let rest = path.strip_prefix("/git/").ok_or_else(Failure::no_route)?;
        Self::ALL
            .iter()
            .find_map(|(suffix, verb)| Some((rest.strip_suffix(suffix)?, *verb)))
            .ok_or_else(Failure::no_route)
    }

    /// What is asked for, the query counted in.
    ///
    /// # Errors
    /// The query names no service.
    pub(super) fn endpoint(self, query: &str) -> Result<Endpoint, Failure> {
        Ok(match self {
            Self::InfoRefs => match service(query)? {
                Service::UploadPack => Endpoint::Refs,
                Service::ReceivePack => Endpoint::PushRefs,
            },
            Self::UploadPack => Endpoint::UploadPack,
            Self::ReceivePack => Endpoint::ReceivePack,
            Self::EnsureRefs => Endpoint::EnsureRefs,
            Self::Snapshot => Endpoint::Snapshot,
            Self::LfsSnapshot => Endpoint::LfsSnapshot,
            Self::Bundle => Endpoint::Bundle,
        })
    }
}

/// The services of smart HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    UploadPack,
    ReceivePack,
}

/// The service that a query names.
///
/// # Errors
/// None, or one that there is not.
fn service(query: &str) -> Result<Service, Failure> {
    match query.split('&').find_map(|pair| pair.strip_prefix("service=")) {
        Some("git-upload-pack") => Ok(Service::UploadPack),
        Some("git-receive-pack") => Ok(Service::ReceivePack),
        Some(_) => Err(Failure::bad_request(
            "UnknownService",
            "the services are git-upload-pack and git-receive-pack",
        )),
        None => Err(Failure::bad_request("DumbHttp", "only smart HTTP is served: use git 1.6.6 or newer")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tarn_crds::repo::RepoId;

    use super::*;

    #[test]
    fn routes_are_split_at_the_verb() {
        assert_eq!(Verb::split("/git/h/o/r/info/refs").unwrap(), ("h/o/r", Verb::InfoRefs));
        assert_eq!(
            Verb::split("/git/h/info/refs/git-upload-pack").unwrap(),
            ("h/info/refs", Verb::UploadPack)
        );
        assert!(Verb::split("/git/h/o/r/HEAD").is_err());
        assert!(Verb::split("/h/o/r/info/refs").is_err());
        assert!(Verb::split("/git/h%2Finfo%2Frefs").is_err());
    }

    proptest! {
        #[test]
        fn any_declared_repository_is_reached(path in "[a-z]{1,8}(/[a-zA-Z0-9._~ +-]{1,12}){1,4}") {
            let url = format!("https://example.com/{}", path.replace(' ', "%20"));
            if let Ok(id) = RepoId::from_url(&url) {
                let route = format!("/git/{}/info/refs", id.route());
                let (repository, verb) = Verb::split(&route).unwrap();
                prop_assert_eq!(verb, Verb::InfoRefs);
                prop_assert_eq!(RepoId::from_route(repository).unwrap(), id);
            }
        }

        #[test]
        fn any_path_is_judged_without_panic(path in "/git/\\PC{0,80}") {
            if let Ok((repository, _)) = Verb::split(&path)
                && let Ok(id) = RepoId::from_route(repository) {
                    let dir = id.dir();
                    prop_assert!(dir.is_relative() && dir.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                }
        }
    }
}
