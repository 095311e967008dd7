//! What the cluster says of callers: whose a token is, and whether they may clone a mirror.
//!
//! A TokenReview with the cache's audiences, then a review of access in the cache's own namespace, by the GitMirror's name.
//! While the API server is away, answers hold as long as they would have anyway, and then nobody is let in.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{LocalSubjectAccessReview, ResourceAttributes, SubjectAccessReviewSpec},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Refusal,
    answers::{Answers, Hashes, Key},
};
use crate::upstream::Secret;

/// How long one question may take. Git's users wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most questions under way: a flood of made-up tokens is no flood at the API server.
const AT_A_TIME: usize = 16;

/// What a Role grants: a verb on a subresource of one object.
#[derive(Clone, Copy)]
struct Right<'a> {
    verb: &'static str,
    resource: &'static str,
    subresource: &'static str,
    name: &'a str,
}

/// Asks the API server.
pub struct Reviews {
    client: Client,
    namespace: String,
    audiences: Vec<String>,
    places: Arc<Semaphore>,
    users: Answers<Arc<User>>,
    grants: Answers<()>,
}

/// Whose a token is, as the API server says.
#[derive(Debug)]
pub struct User {
    /// The name, such as `system:serviceaccount:ci:job`.
    pub name: String,
    spec: SubjectAccessReviewSpec,
    digest: Key,
}

impl Reviews {
    /// Asks `client` of tokens for one of `audiences`, and of GitMirrors in `namespace`.
    pub fn new(client: Client, namespace: String, audiences: Vec<String>) -> Self {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        Self { client, namespace, audiences, places, users: Answers::default(), grants: Answers::default() }
    }

    /// Asks for tokens of another audience, with the same limits.
    pub fn for_audience(&self, audience: &str) -> Self {
        Self {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            audiences: vec![audience.to_owned()],
            places: self.places.clone(),
            users: Answers::default(),
            grants: Answers::default(),
        }
    }

    /// The audiences of which a token must name one.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Whose a token is.
    ///
    /// # Errors
    /// The API server does not vouch for it, or does not answer.
    pub(super) async fn user(&self, hashes: &Hashes, token: &Secret) -> Result<Arc<User>, Refusal> {
        let key = hashes.key("token", &[token.expose().as_bytes()]);
        self.users.get(key, self.ask_whose(hashes, token)).await
    }

    async fn ask_whose(&self, hashes: &Hashes, token: &Secret) -> Result<Arc<User>, Refusal> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.expose().to_owned()),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = self.ask("whose a token is", api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        let refused = || {
            let audiences = self.audiences.join(" or ");
            let text = format!(
                "the cluster does not vouch for this token: it must be valid and for the audience {audiences}"
            );
            Refusal::Unauthenticated(text)
        };
        if status.authenticated != Some(true) {
            return Err(refused());
        }
        // An API server that knows nothing of audiences would let any token pass: it names none.
        let named = status.audiences.unwrap_or_default();
        if !named.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(refused());
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.filter(|name| !name.is_empty()).ok_or_else(refused)?;
        let spec = SubjectAccessReviewSpec {
            user: Some(name.clone()),
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            ..SubjectAccessReviewSpec::default()
        };
        let written = serde_json::to_vec(&spec).map_err(|_| refused())?;
        let digest = hashes.key("user", &[&written]);
        Ok(Arc::new(User { name, spec, digest }))
    }

    /// Makes sure that a user may clone a mirror.
    ///
    /// # Errors
    /// No right leads there, or the API server does not answer.
    pub(super) async fn may_clone(&self, hashes: &Hashes, user: &User, mirror: &str) -> Result<(), Refusal> {
        let right = Right { verb: "get", resource: "gitmirrors", subresource: "clone", name: mirror };
        self.may(hashes, user, right).await
    }

    /// Makes sure that a user may use the admin port of a cache's agents, as this verb says.
    ///
    /// # Errors
    /// No right leads there, or the API server does not answer.
    pub(super) async fn may_administer(
        &self,
        hashes: &Hashes,
        user: &User,
        verb: &'static str,
        cache: &str,
    ) -> Result<(), Refusal> {
        let right = Right { verb, resource: "gitcaches", subresource: "admin", name: cache };
        self.may(hashes, user, right).await
    }

    async fn may(&self, hashes: &Hashes, user: &User, right: Right<'_>) -> Result<(), Refusal> {
        let Right { verb, resource, subresource, name } = right;
        let parts = [verb, resource, subresource, name].map(str::as_bytes);
        let key = hashes.key("right", &[&[user.digest.as_bytes().as_slice()][..], &parts].concat());
        self.grants.get(key, self.ask_whether(user, right)).await
    }

    async fn ask_whether(&self, user: &User, right: Right<'_>) -> Result<(), Refusal> {
        let Right { verb, resource, subresource, name } = right;
        let attributes = ResourceAttributes {
            namespace: Some(self.namespace.clone()),
            verb: Some(verb.into()),
            group: Some(tarn_crds::GROUP.into()),
            version: Some("v1alpha1".into()),
            resource: Some(resource.into()),
            subresource: Some(subresource.into()),
            name: Some(name.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = LocalSubjectAccessReview {
            metadata: ObjectMeta { namespace: Some(self.namespace.clone()), ..ObjectMeta::default() },
            spec: SubjectAccessReviewSpec { resource_attributes: Some(attributes), ..user.spec.clone() },
            status: None,
        };
        let api: Api<LocalSubjectAccessReview> = Api::namespaced(self.client.clone(), &self.namespace);
        let answer = self.ask("what a user may do", api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        if status.allowed && status.denied != Some(true) {
            return Ok(());
        }
        let (user, namespace) = (&user.name, &self.namespace);
        Err(Refusal::Denied(format!(
            "{user} may not {verb} {resource}/{subresource} {name:?} in the namespace {namespace}: a Role must grant it"
        )))
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        question: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Refusal> {
        let away = |reason: &str| Refusal::Away(format!("the cluster cannot be asked {what}: {reason}"));
        let asked = async {
            // Never closed, so that nobody is refused for it.
            let _place = self.places.acquire().await;
            question.await
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                // Without what the server said: that may repeat anything.
                let reason = match &error {
                    kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                        "the API server does not allow it to the agent"
                    }
                    kube::Error::Api(_) => "the API server answers with an error",
                    _ => "the API server cannot be reached",
                };
                tracing::warn!(
                    what,
                    reason,
                    "callers cannot be judged; those not known already are turned away"
                );
                Err(away(reason))
            }
            Err(_) => {
                tracing::warn!(what, "the API server is silent; callers not known already are turned away");
                Err(away("the API server does not answer"))
            }
        }
    }
}
