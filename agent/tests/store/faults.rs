//! What a store that fails looks like: retried where that helps, never a part taken for the whole, always an
//! end, and a text that says what to do.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Method;
use tarn_agent::store::{
    Body, Meta, Page, PutMode, Store, StoreError, Version,
    dir::DirStore,
    probe::probe,
    s3::{S3Config, S3Credentials, S3Store},
};
use tarn_testkit::eventually::eventually;
use tarn_testkit::proxy::{HttpFault, HttpFaultProxy, Select, When};
use tarn_testkit::s3::S3Server;

use super::{config, noise, store, whole};

fn only(method: Method) -> Select {
    Select { method: Some(method), path: None }
}

/// A server, a proxy in front of it, and a store that goes through the proxy.
async fn scene() -> Result<(S3Server, HttpFaultProxy, S3Store)> {
    let server = S3Server::start().await?;
    let proxy = HttpFaultProxy::start(server.address())?;
    let store = store(&proxy.url())?;
    Ok((server, proxy, store))
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_is_waited_for() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    proxy.add(Select::default(), When::Always, HttpFault::Delay(Duration::from_millis(500)));
    store.put("v1/a", body("1"), PutMode::Create).await?;
    ensure!(store.get("v1/a", 10).await? == "1");
    ensure!(proxy.seen().len() == 2, "once each: {:?}", proxy.seen());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_retried() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable")] {
        proxy.add(Select::default(), When::First(2), HttpFault::Answer(status, code));
        store.put("v1/a", body("1"), PutMode::Overwrite).await?;
        proxy.mend();
        proxy.add(Select::default(), When::First(2), HttpFault::Answer(status, code));
        ensure!(store.get("v1/a", 10).await? == "1");
        proxy.mend();
        proxy.add(Select::default(), When::First(2), HttpFault::Answer(status, code));
        ensure!(store.list("", None).await?.objects.len() == 1);
        proxy.mend();
    }
    // Also conflicts of conditional writes, and answers that are lost.
    proxy.add(only(Method::PUT), When::First(2), HttpFault::Answer(409, "ConditionalRequestConflict"));
    store.put("v1/b", body("1"), PutMode::Create).await?;
    proxy.mend();
    proxy.add(Select::default(), When::First(1), HttpFault::LoseAnswer);
    ensure!(store.get("v1/b", 10).await? == "1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_stay_end_in_a_clear_text() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    proxy.add(Select::default(), When::Always, HttpFault::Answer(503, "SlowDown"));
    let begun = Instant::now();
    let error = store.put("v1/a", body("1"), PutMode::Create).await.unwrap_err();
    ensure!(matches!(&error, StoreError::Failed(text) if text.contains("SlowDown")), "{error}");
    ensure!(proxy.seen().len() == 5 && begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_stays_means_somebody_else_creates_it() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    proxy.add(only(Method::PUT), When::Always, HttpFault::Answer(409, "ConditionalRequestConflict"));
    let error = store.put("v1/a", body("1"), PutMode::Create).await.unwrap_err();
    ensure!(matches!(error, StoreError::Exists(_)), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_never_taken_for_the_whole() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    let content = noise(1 << 20);
    store.put("v1/a", Bytes::from(content.clone()), PutMode::Create).await?;
    proxy.forget();
    for cut in [0, 1, 65_536, 1 << 19, (1 << 20) - 1] {
        proxy.add(only(Method::GET), When::Always, HttpFault::Truncate(cut));
        // Nothing at all may be an answer that never began: then the opening fails.
        let read = match store.get_range("v1/a", 0..1 << 20, None).await {
            Ok(body) => whole(body).await,
            Err(error) => Err(error),
        };
        ensure!(matches!(read, Err(StoreError::Unreachable(_))), "cut at {cut}: {:?}", read.map(|b| b.len()));
        proxy.mend();
        let gets = proxy.seen().len();
        // The first bytes may be lost with the head; then the opening failed, and was retried.
        ensure!(gets == 1 || cut < 1 << 19, "a range whose body began was asked for {gets} times");
        proxy.forget();
    }
    // Who reads it whole gets it at the next attempt.
    proxy.add(only(Method::GET), When::First(2), HttpFault::Truncate(1000));
    ensure!(store.get("v1/a", 1 << 20).await? == content);
    proxy.mend();
    proxy.add(only(Method::GET), When::Always, HttpFault::Truncate(1000));
    let error = store.get("v1/a", 1 << 20).await.unwrap_err();
    ensure!(matches!(error, StoreError::Unreachable(_)), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_given_up() -> Result<()> {
    let content = noise(1 << 20);
    // A server that answers with half of what it announces, and then with nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let half = content[..1 << 19].to_vec();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut connection, _) = listener.accept().await?;
        let mut request = vec![0; 16 << 10];
        let _ = connection.read(&mut request).await?;
        let head = "HTTP/1.1 206 Partial Content\r\nContent-Length: 1048576\r\nETag: \"x\"\r\n\
                    Content-Range: bytes 0-1048575/1048576\r\n\r\n";
        connection.write_all(head.as_bytes()).await?;
        connection.write_all(&half).await?;
        tokio::time::sleep(Duration::from_secs(60)).await;
        std::io::Result::Ok(())
    });
    let store = store(&endpoint)?;
    let begun = Instant::now();
    let body = store.get_range("v1/a", 0..1 << 20, None).await?;
    let error = whole(body).await.unwrap_err();
    ensure!(matches!(error, StoreError::Unreachable(_)), "{error}");
    let took = begun.elapsed();
    ensure!((Duration::from_secs(5)..Duration::from_secs(25)).contains(&took), "{took:?}");
    server.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_with_a_remedy_and_without_the_secret() -> Result<()> {
    let server = S3Server::start().await?;
    let secret = "a-wrong-secret-0123456789";
    for (id, remedy) in [(S3Server::ACCESS_KEY, "correct the agent's credentials"), ("nobody", "credentials")]
    {
        let with_token = S3Credentials::new(id, secret, Some("a-token-0123456789"));
        ensure!(!format!("{with_token:?}").contains("0123456789"), "{with_token:?}");
        let credentials = S3Credentials::new(id, secret, None);
        let wrong = S3Store::new(S3Config { credentials: Some(credentials), ..config(&server.endpoint()) })?;
        ensure!(!format!("{wrong:?}").contains("0123456789"), "{wrong:?}");
        for error in [
            wrong.put("v1/a", body("1"), PutMode::Create).await.unwrap_err(),
            wrong.get("v1/a", 10).await.unwrap_err(),
            wrong.list("", None).await.unwrap_err(),
        ] {
            let text = error.to_string();
            ensure!(matches!(error, StoreError::Denied(_)) && text.contains(remedy), "{text}");
            ensure!(!format!("{error:?}").contains("0123456789"), "{error:?}");
        }
        // An answer to HEAD has no text, and to strangers versitygw says 404.
        if id == S3Server::ACCESS_KEY {
            let error = wrong.head("v1/a").await.unwrap_err();
            ensure!(matches!(error, StoreError::Denied(_)), "{error}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_set_up_is_told_with_a_remedy() -> Result<()> {
    let (server, proxy, store) = scene().await?;
    for (status, code, remedy) in [
        (400, "ExpiredToken", "renew"),
        (403, "AccessDenied", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "correct"),
    ] {
        proxy.add(Select::default(), When::Always, HttpFault::Answer(status, code));
        let error = store.put("v1/a", body("1"), PutMode::Create).await.unwrap_err();
        let text = error.to_string();
        ensure!(matches!(error, StoreError::Denied(_)), "{code}: {text}");
        ensure!(text.contains(code) && text.contains(remedy), "{text}");
        proxy.mend();
    }
    let elsewhere = S3Store::new(S3Config { bucket: "no-such-bucket".into(), ..config(&server.endpoint()) })?;
    for error in [
        elsewhere.get("v1/a", 10).await.unwrap_err(),
        elsewhere.put("v1/a", body("1"), PutMode::Create).await.unwrap_err(),
        elsewhere.list("", None).await.unwrap_err(),
    ] {
        ensure!(matches!(&error, StoreError::Failed(text) if text.contains("no-such-bucket")), "{error}");
    }
    for endpoint in ["127.0.0.1:9000", "ftp://a", "http://name:pass0123@host"] {
        let error = S3Store::new(config(endpoint)).map(drop).unwrap_err().to_string();
        ensure!(error.contains("endpoint") && !error.contains("pass0123"), "{error}");
    }
    Ok(())
}

/// A store that takes conditions and ignores them, as some do; all else is the inner one's.
#[derive(Debug)]
pub(crate) struct Careless(pub(crate) DirStore);

impl Store for Careless {
    fn location(&self) -> String {
        self.0.location()
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, _: PutMode) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.put(key, body, PutMode::Overwrite)
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.put_file(key, file)
    }

    fn get<'a>(&'a self, key: &'a str, limit: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.0.get(key, limit)
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: Range<u64>,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Body, StoreError>> {
        self.0.get_range(key, range, version)
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Meta, Version), StoreError>> {
        self.0.head(key)
    }

    fn list<'a>(&'a self, prefix: &'a str, from: Option<&'a str>) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.0.list(prefix, from)
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.delete(key)
    }

    fn abort_uploads<'a>(
        &'a self,
        prefix: &'a str,
        age: Duration,
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        self.0.abort_uploads(prefix, age)
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() -> Result<()> {
    let root = tempfile::tempdir()?;
    let store = Careless(DirStore::open(root.path())?);
    ensure!(!probe(&store).await?.conditional_create);
    ensure!(store.list("", None).await?.objects.is_empty());
    Ok(())
}

/// The condition is signed, so a server that checks signatures never takes such a request for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_strips_the_condition_is_found_out() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    ensure!(probe(&store).await?.conditional_create);
    proxy.add(only(Method::PUT), When::Always, HttpFault::WithoutHeader("if-none-match"));
    let error = probe(&store).await.unwrap_err();
    ensure!(matches!(&error, StoreError::Denied(text) if text.contains("proxy")), "{error}");
    ensure!(store.list("", None).await?.objects.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_told_in_bounded_time() -> Result<()> {
    let server = S3Server::start().await?;
    let store = store(&server.endpoint())?;
    store.put("v1/a", body("1"), PutMode::Create).await?;
    drop(server);
    let begun = Instant::now();
    let error = store.get("v1/a", 10).await.unwrap_err();
    ensure!(matches!(error, StoreError::Unreachable(_)), "{error}");
    let error = store.put("v1/b", body("1"), PutMode::Create).await.unwrap_err();
    ensure!(matches!(error, StoreError::Unreachable(_)), "{error}");
    ensure!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_survives_passing_errors() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    let content = noise(30 << 20);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &content)?;
    proxy.add(only(Method::PUT), When::Nth(2), HttpFault::Answer(503, "SlowDown"));
    proxy.add(only(Method::PUT), When::Nth(4), HttpFault::LoseAnswer);
    store.put_file("v1/a", file.path()).await?;
    ensure!(whole(store.get_range("v1/a", 0..30 << 20, None).await?).await? == content);
    // The store made the object, and the answer that says so is lost.
    let complete = proxy.seen().iter().filter(|seen| seen.method == Method::POST).count();
    ensure!(complete == 2, "one upload begun and ended: {complete}");
    proxy.add(only(Method::POST), When::Nth(2), HttpFault::LoseAnswer);
    store.put_file("v1/b", file.path()).await?;
    ensure!(whole(store.get_range("v1/b", 0..30 << 20, None).await?).await? == content);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_or_is_dropped_leaves_nothing() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), noise(30 << 20))?;
    proxy.add(only(Method::PUT), When::Always, HttpFault::Answer(400, "InvalidRequest"));
    let error = store.put_file("v1/a", file.path()).await.unwrap_err();
    ensure!(matches!(error, StoreError::Failed(_)), "{error}");
    let aborted = |proxy: &HttpFaultProxy| {
        proxy.seen().iter().filter(|seen| seen.method == Method::DELETE && seen.status == Some(204)).count()
    };
    ensure!(aborted(&proxy) == 1, "{:?}", proxy.seen());
    proxy.mend();
    // Dropped while parts are on their way.
    proxy.add(only(Method::PUT), When::Always, HttpFault::Delay(Duration::from_secs(60)));
    let dropped = tokio::time::timeout(Duration::from_secs(2), store.put_file("v1/a", file.path())).await;
    ensure!(dropped.is_err());
    eventually(Duration::from_secs(10), "the upload to be aborted", async || {
        if aborted(&proxy) == 2 { Ok(()) } else { Err("it is not") }
    })
    .await?;
    ensure!(store.abort_uploads("", Duration::ZERO).await? == 0);
    ensure!(matches!(store.head("v1/a").await, Err(StoreError::NotFound(_))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_upload_is_aborted_once_it_is_old() -> Result<()> {
    let (_server, proxy, store) = scene().await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), noise(20 << 20))?;
    // The upload and its abortion fail, as if the agent had been killed.
    proxy.add(only(Method::PUT), When::Always, HttpFault::Answer(400, "InvalidRequest"));
    proxy.add(only(Method::DELETE), When::Always, HttpFault::Answer(400, "InvalidRequest"));
    store.put_file("v1/a", file.path()).await.unwrap_err();
    proxy.mend();
    ensure!(store.abort_uploads("v1/", Duration::from_secs(3600)).await? == 0, "it is young");
    ensure!(store.abort_uploads("v2/", Duration::ZERO).await? == 0, "it is elsewhere");
    eventually(Duration::from_secs(10), "the upload to be old", async || {
        match store.abort_uploads("v1/", Duration::ZERO).await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    ensure!(store.abort_uploads("v1/", Duration::ZERO).await? == 0);
    Ok(())
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_told_at_once() -> Result<()> {
    let root = tempfile::tempdir()?;
    let file = root.path().join("file");
    std::fs::write(&file, "x")?;
    let error = DirStore::open(&file).map(drop).unwrap_err();
    ensure!(matches!(&error, StoreError::Failed(text) if text.contains("file")), "{error}");
    // Nobody may write into /proc, not even root.
    let error = DirStore::open(std::path::Path::new("/proc/tarn")).map(drop).unwrap_err();
    ensure!(matches!(error, StoreError::Failed(_) | StoreError::Denied(_)), "{error}");
    Ok(())
}
