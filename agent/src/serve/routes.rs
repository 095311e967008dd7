//! Routes of the git port: which repository a path names, and what is wanted of it.

use http::Method;

use super::error::Failure;

/// What a request wants of a repository.
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

    /// Refuses other methods than those it has.
    pub(super) fn check(self, method: &Method) -> Result<(), Failure> {
        let (fits, allowed) = match self {
            Self::Snapshot | Self::LfsSnapshot => {
                (matches!(*method, Method::GET | Method::HEAD), "GET or HEAD")
            }
            Self::InfoRefs | Self::Bundle => (method == Method::GET, "GET"),
            Self::UploadPack | Self::ReceivePack | Self::EnsureRefs => (method == Method::POST, "POST"),
        };
        if fits { Ok(()) } else { Err(Failure::method(allowed)) }
    }

    /// Its label in metrics; a request for objects or refs finds its own when it is read.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::InfoRefs => "info-refs",
            Self::UploadPack => "other",
            Self::ReceivePack => "push",
            Self::EnsureRefs => "ensure-refs",
            Self::Snapshot => "snapshot",
            Self::LfsSnapshot => "lfs-snapshot",
            Self::Bundle => "bundle",
        }
    }
}

/// The services of smart HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    UploadPack,
    ReceivePack,
}

/// The service that a query names.
///
/// # Errors
/// None, or one that there is not.
pub(super) fn service(query: &str) -> Result<Service, Failure> {
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
