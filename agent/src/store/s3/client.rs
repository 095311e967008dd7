//! The SDK's client: where it finds what the flags do not say, how long it waits, how often it tries.

use std::{path::Path, time::Duration};

use super::{ATTEMPTS, S3Config};
use crate::{authorities, store::StoreError};
use aws_config::{
    BehaviorVersion, environment::EnvironmentVariableRegionProvider, meta::region::RegionProviderChain,
};
use aws_sdk_s3::{
    Client,
    config::{
        Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig,
        retry::{RetryConfig, RetryPartition, TokenBucket},
        timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};

/// A SYN is sent again after 1 s and after 3 s: this leaves room for both. It is the SDK's own value.
const CONNECT: Duration = Duration::from_millis(3100);

/// How long an answer may take to begin, besides the time for what is sent.
const ANSWER: Duration = Duration::from_secs(15);

/// A link that carries less than this in a second, for one connection, is as good as down.
const SLOWEST: u64 = 64 << 10;

/// A body that brings nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// The most that the second attempt waits; it doubles with every further one.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(300);

/// The most that any attempt waits.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(5);

pub(super) async fn build(config: &S3Config, trusted: &[u8]) -> Client {
    let own = config.region.clone().map(Region::new);
    // Only AWS's machines know a region by themselves; asking them elsewhere is seconds of waiting.
    let region = match (own, &config.endpoint) {
        (None, None) => RegionProviderChain::default_provider(),
        (own, _) => RegionProviderChain::first_try(own).or_else(EnvironmentVariableRegionProvider::new()),
    };
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(region.or_else("us-east-1"))
        .http_client(http_client(trusted))
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(SILENCE).build())
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(ATTEMPTS)
                .with_initial_backoff(FIRST_WAIT)
                .with_max_backoff(LONGEST_WAIT),
        )
        .timeout_config(timeouts(ANSWER));
    if let Some(endpoint) = &config.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(own) = &config.credentials {
        let (id, secret) = (own.access_key.clone(), own.secret_key.clone());
        loader = loader.credentials_provider(Credentials::new(
            id,
            secret,
            own.session_token.clone(),
            None,
            "given to the store",
        ));
    }
    let sdk = Box::pin(loader.load()).await;
    let config = Builder::from(&sdk)
        .force_path_style(config.path_style)
        // Bodies are sent from memory, so checksums stand in headers: some stores read no trailers.
        .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
        .response_checksum_validation(ResponseChecksumValidation::WhenSupported)
        // The SDK's budget of retries is one for the whole process; a store that is down must not take
        // that of another.
        .retry_partition(RetryPartition::custom("tarn-store").token_bucket(TokenBucket::default()).build())
        .build();
    Client::from_conf(config)
}

/// What a call that sends `bytes` may take, for each attempt. Bodies of answers are not limited by it.
pub(super) fn limits(bytes: u64) -> Builder {
    let sending = Duration::from_secs(bytes / SLOWEST);
    aws_sdk_s3::Config::builder().timeout_config(timeouts(ANSWER + sending))
}

/// A call that makes the store put an object together, which takes S3 up to minutes.
pub(super) fn patient() -> Builder {
    aws_sdk_s3::Config::builder().timeout_config(timeouts(Duration::from_secs(300)))
}

fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(attempt).build()
}

/// The authorities that are trusted, in PEM: the system's, and those of the file `bundle`.
///
/// # Errors
/// The file cannot be read, or holds no certificates: the SDK would end the process over it.
pub(super) fn trusted(bundle: Option<&Path>) -> Result<Vec<u8>, StoreError> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| StoreError::local(path, &error));
    let own = bundle.map(read).transpose()?.map(|text| String::from_utf8_lossy(&text).into_owned());
    let all = authorities::pem(own.as_deref()).map_err(|_| {
        let path = bundle.map(Path::display).map(|path| path.to_string()).unwrap_or_default();
        StoreError::Failed(format!(
            "AWS_CA_BUNDLE: {path} holds something else than certificates; give a PEM file"
        ))
    })?;
    Ok(all.into_bytes())
}

/// TLS by ring, trusting these authorities; the proxies that the environment names, as for
/// upstreams.
fn http_client(trusted: &[u8]) -> aws_sdk_s3::config::SharedHttpClient {
    let mut store = TrustStore::empty();
    if !trusted.is_empty() {
        store.add_pem_certificate(trusted);
    }
    let tls = TlsContext::builder().with_trust_store(store).build().expect("the certificates have been read");
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls.clone()).build()
    })
}
