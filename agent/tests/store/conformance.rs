//! One suite for every store: what the contract of `tarn_agent::store` says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};
use tarn_agent::store::{
    PutMode, SharedStore, Store, StoreError, StoreLocation, dir::DirStore, probe::probe,
};
use tarn_testkit::s3::S3Server;

use super::{noise, store, whole};

/// Every check as a test against a directory and one against the S3 server.
macro_rules! every_store {
    ($($name:ident)*) => {
        mod directory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                let root = tempfile::tempdir()?;
                super::$name(std::sync::Arc::new(super::DirStore::open(root.path())?)).await
            })*
        }
        mod s3 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                let server = super::S3Server::start().await?;
                super::$name(std::sync::Arc::new(super::store(&server.endpoint())?)).await
            })*
        }
    };
}

every_store! {
    what_was_written_is_read
    of_two_creations_the_second_fails
    of_twelve_creators_one_wins
    who_reads_an_object_that_is_replaced_gets_one_whole_state
    ranges_have_exactly_the_bytes_asked_for
    a_range_of_a_version_that_is_gone_is_refused
    no_more_is_read_than_allowed
    files_of_any_length_arrive_whole
    lists_are_sorted_and_in_pages
    what_is_deleted_is_gone_and_may_be_again
    keys_no_agent_writes_are_refused
    old_uploads_are_ended_and_nothing_else
    the_probe_leaves_nothing
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn keys(store: &dyn Store, prefix: &str) -> Result<Vec<String>> {
    let (mut keys, mut from) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, from.as_deref()).await?;
        ensure!(page.objects.len() <= 1000, "a page of {}", page.objects.len());
        keys.extend(page.objects.into_iter().map(|meta| meta.key));
        from = page.next;
        if from.is_none() {
            return Ok(keys);
        }
    }
}

async fn what_was_written_is_read(store: SharedStore) -> Result<()> {
    let missing = store.get("v1/none", 10).await;
    ensure!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
    ensure!(matches!(store.head("v1/none").await, Err(StoreError::NotFound(_))));
    for key in ["top", "v1/a/b/c.json", "v1/[::1]:80/~u/a%20b@+.git/x-y_z", "v1/.hidden"] {
        for content in ["", "first", "second, longer"] {
            store.put(key, bytes(content), PutMode::Overwrite).await?;
            ensure!(store.get(key, 100).await? == content, "{key}");
            let (meta, _) = store.head(key).await?;
            ensure!((meta.key.as_str(), meta.bytes) == (key, content.len() as u64), "{meta:?}");
            let age = jiff::Timestamp::now().duration_since(meta.modified).unsigned_abs();
            ensure!(age < Duration::from_secs(600), "{meta:?}");
        }
    }
    // Where a directory stands, or below an object, there is none.
    ensure!(matches!(store.get("v1/a", 10).await, Err(StoreError::NotFound(_))));
    ensure!(matches!(store.get("top/below", 10).await, Err(StoreError::NotFound(_))));
    Ok(())
}

async fn of_two_creations_the_second_fails(store: SharedStore) -> Result<()> {
    store.put("v1/a", bytes("first"), PutMode::Create).await?;
    let second = store.put("v1/a", bytes("second"), PutMode::Create).await;
    ensure!(matches!(second, Err(StoreError::Exists(_))), "{second:?}");
    ensure!(store.get("v1/a", 100).await? == "first");
    store.delete("v1/a").await?;
    store.put("v1/a", bytes("third"), PutMode::Create).await?;
    Ok(())
}

async fn of_twelve_creators_one_wins(store: SharedStore) -> Result<()> {
    for round in 0..5 {
        let key = format!("v1/race/{round}");
        let creators = (0..12).map(|creator| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                match store.put(&key, bytes(&creator.to_string()), PutMode::Create).await {
                    Ok(()) => Ok(Some(creator)),
                    Err(StoreError::Exists(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            })
        });
        let mut winners = Vec::new();
        for outcome in join_all(creators).await {
            winners.extend(outcome??);
        }
        ensure!(winners.len() == 1, "winners: {winners:?}");
        ensure!(store.get(&key, 100).await? == winners[0].to_string());
    }
    Ok(())
}

async fn who_reads_an_object_that_is_replaced_gets_one_whole_state(store: SharedStore) -> Result<()> {
    let length = 3 << 20;
    let state = |byte: u8| Bytes::from(vec![byte; length]);
    store.put("v1/a", state(0), PutMode::Overwrite).await?;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for byte in 1..20 {
                store.put("v1/a", Bytes::from(vec![byte; 3 << 20]), PutMode::Overwrite).await?;
            }
            Ok::<(), StoreError>(())
        })
    };
    let mut read = 0;
    while !writer.is_finished() || read == 0 {
        let Ok(body) = store.get_range("v1/a", 0..length as u64, None).await else { continue };
        let Ok(body) = whole(body).await else { continue };
        ensure!(body.len() == length && body.iter().all(|byte| *byte == body[0]), "torn");
        let body = store.get("v1/a", length as u64).await?;
        ensure!(body.len() == length && body.iter().all(|byte| *byte == body[0]), "torn");
        read += 1;
    }
    writer.await??;
    ensure!(store.get("v1/a", length as u64).await? == state(19));
    Ok(())
}

async fn ranges_have_exactly_the_bytes_asked_for(store: SharedStore) -> Result<()> {
    let content = noise((1 << 20) + 17);
    let length = content.len() as u64;
    store.put("v1/a", Bytes::from(content.clone()), PutMode::Overwrite).await?;
    let (_, version) = store.head("v1/a").await?;
    for range in
        [0..1, 0..length, length - 1..length, 65_530..65_550, 1..length - 1, 0..0, 5..5, length..length]
    {
        for version in [None, Some(&version)] {
            let body = whole(store.get_range("v1/a", range.clone(), version).await?).await?;
            let (start, end) = (usize::try_from(range.start)?, usize::try_from(range.end)?);
            ensure!(body == content[start..end], "{range:?}");
        }
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that it is refused is what is tried")]
    let beyond = [0..length + 1, length..length + 1, length + 5..length + 9, length + 5..length + 5, 9..3];
    for range in beyond {
        let body = store.get_range("v1/a", range.clone(), None).await.map(drop);
        ensure!(matches!(body, Err(StoreError::Short { .. })), "{range:?}: {body:?}");
    }
    for range in [0..1, 0..0] {
        let body = store.get_range("v1/none", range, None).await.map(drop);
        ensure!(matches!(body, Err(StoreError::NotFound(_))), "{body:?}");
    }
    Ok(())
}

async fn a_range_of_a_version_that_is_gone_is_refused(store: SharedStore) -> Result<()> {
    store.put("v1/a", bytes("first"), PutMode::Overwrite).await?;
    let (_, first) = store.head("v1/a").await?;
    let under_way = store.get_range("v1/a", 0..5, Some(&first)).await?;
    store.put("v1/a", bytes("other"), PutMode::Overwrite).await?;
    let (_, second) = store.head("v1/a").await?;
    ensure!(first != second);
    for range in [0..5, 2..2] {
        let body = store.get_range("v1/a", range, Some(&first)).await.map(drop);
        ensure!(matches!(body, Err(StoreError::Changed(_))), "{body:?}");
    }
    ensure!(whole(store.get_range("v1/a", 0..5, Some(&second)).await?).await? == b"other");
    // What began before goes on with the old content, or breaks off.
    ensure!(whole(under_way).await.is_ok_and(|body| body == b"first"));
    Ok(())
}

async fn no_more_is_read_than_allowed(store: SharedStore) -> Result<()> {
    store.put("v1/a", bytes("12345"), PutMode::Overwrite).await?;
    ensure!(store.get("v1/a", 5).await? == "12345");
    let more = store.get("v1/a", 4).await;
    ensure!(matches!(more, Err(StoreError::TooLarge { limit: 4, .. })), "{more:?}");
    let huge = Bytes::from(vec![0; (64 << 20) + 1]);
    let put = store.put("v1/b", huge, PutMode::Overwrite).await;
    ensure!(matches!(put, Err(StoreError::TooLarge { .. })), "{put:?}");
    Ok(())
}

async fn files_of_any_length_arrive_whole(store: SharedStore) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("pack");
    let content = noise((40 << 20) + 3);
    for length in [0, 1, 16 << 20, (16 << 20) + 1, content.len()] {
        std::fs::write(&file, &content[..length])?;
        store.put_file("v1/packs/a.pack", &file).await?;
        let (meta, version) = store.head("v1/packs/a.pack").await?;
        ensure!(meta.bytes == length as u64, "{meta:?}");
        let body = store.get_range("v1/packs/a.pack", 0..length as u64, Some(&version)).await?;
        ensure!(whole(body).await? == content[..length], "{length} bytes");
    }
    let missing = store.put_file("v1/packs/b.pack", &dir.path().join("none")).await;
    ensure!(matches!(missing, Err(StoreError::Local { .. })), "{missing:?}");
    ensure!(keys(&*store, "").await? == ["v1/packs/a.pack"]);
    Ok(())
}

async fn lists_are_sorted_and_in_pages(store: SharedStore) -> Result<()> {
    ensure!(keys(&*store, "").await?.is_empty() && keys(&*store, "v1/").await?.is_empty());
    // `-` and `.` come before `/`.
    let few = ["v1/a/z", "v1/a-b/c", "v1/a.git/b", "v1/a.git/c/d", "v1/a0", "v2/x"];
    let many = (0..1100).map(|number| format!("v1/many/{number:04}"));
    let all: BTreeSet<String> = few.iter().map(|key| (*key).to_owned()).chain(many).collect();
    let puts = all.iter().map(|key| store.put(key, bytes("1"), PutMode::Create));
    stream::iter(puts).buffer_unordered(8).try_collect::<Vec<()>>().await?;
    for prefix in
        ["", "v1/", "v1/a", "v1/a/", "v1/a.git/c", "v1/many/", "v1/many/10", "v2/x", "v3", "v1/a.git/c/d"]
    {
        let expected: Vec<&String> = all.iter().filter(|key| key.starts_with(prefix)).collect();
        let listed = keys(&*store, prefix).await?;
        ensure!(listed.iter().eq(expected), "{prefix}: {} keys, {:?}", listed.len(), listed.first());
    }
    let first = store.list("v1/many/", None).await?;
    ensure!(first.objects.len() == 1000 && first.next.is_some());
    ensure!(first.objects.iter().all(|meta| meta.bytes == 1));
    Ok(())
}

async fn what_is_deleted_is_gone_and_may_be_again(store: SharedStore) -> Result<()> {
    for key in ["v1/a/b/c", "v1/a/b/d"] {
        store.put(key, bytes("1"), PutMode::Create).await?;
    }
    store.delete("v1/a/b/c").await?;
    store.delete("v1/a/b/c").await?;
    store.delete("v1/never/was").await?;
    ensure!(matches!(store.get("v1/a/b/c", 10).await, Err(StoreError::NotFound(_))));
    ensure!(keys(&*store, "").await? == ["v1/a/b/d"]);
    // Writers and deleters of neighbours do not meet.
    let turns = (0..8).map(|turn| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                let key = format!("v1/x/y/{turn}");
                store.put(&key, bytes("1"), PutMode::Create).await?;
                store.delete(&key).await?;
            }
            Ok::<(), StoreError>(())
        })
    });
    for turn in join_all(turns).await {
        turn??;
    }
    Ok(())
}

async fn keys_no_agent_writes_are_refused(store: SharedStore) -> Result<()> {
    let dir = tempfile::NamedTempFile::new()?;
    for key in [
        "",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "a//b",
        "a b",
        "ünïcode",
        "日本",
        "a\\b",
        "a\n",
        "a?b",
        ".staging/a",
    ] {
        let refused = |done: Result<(), StoreError>| matches!(done, Err(StoreError::BadKey(_)));
        ensure!(refused(store.put(key, bytes("1"), PutMode::Overwrite).await), "{key}");
        ensure!(refused(store.put_file(key, dir.path()).await), "{key}");
        ensure!(refused(store.get(key, 1).await.map(drop)), "{key}");
        ensure!(refused(store.get_range(key, 0..1, None).await.map(drop)), "{key}");
        ensure!(refused(store.head(key).await.map(drop)), "{key}");
        ensure!(refused(store.delete(key).await), "{key}");
    }
    for prefix in ["/", "../", "a/../b", "ü", ".staging/"] {
        let page = store.list(prefix, None).await;
        ensure!(matches!(page, Err(StoreError::BadKey(_))), "{page:?}");
    }
    Ok(())
}

async fn old_uploads_are_ended_and_nothing_else(store: SharedStore) -> Result<()> {
    store.put("v1/a", bytes("1"), PutMode::Create).await?;
    ensure!(store.abort_uploads("v1/", Duration::ZERO).await? == 0);
    ensure!(keys(&*store, "").await? == ["v1/a"]);
    Ok(())
}

async fn the_probe_leaves_nothing(store: SharedStore) -> Result<()> {
    ensure!(probe(&*store).await?.conditional_create);
    ensure!(keys(&*store, "").await?.is_empty());
    Ok(())
}

/// What only directories have: staged files, links, and files that no agent wrote.
#[tokio::test]
async fn a_directory_shows_only_what_agents_wrote() -> Result<()> {
    let (root, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    std::fs::write(outside.path().join("secret"), "secret")?;
    let location: StoreLocation = root.path().join("made/here").display().to_string().parse()?;
    let store = tarn_agent::store::open(&location, Default::default())?;
    let base = root.path().join("made/here");
    store.put("v1/a", bytes("1"), PutMode::Create).await?;
    std::os::unix::fs::symlink(outside.path(), base.join("out"))?;
    std::os::unix::fs::symlink(outside.path().join("secret"), base.join("v1/link"))?;
    std::fs::write(base.join("v1/with space"), "x")?;
    let (old, new) = (base.join(".staging/old"), base.join(".staging/new"));
    std::fs::write(&old, "x")?;
    std::fs::write(&new, "x")?;
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    std::fs::File::options().write(true).open(&old)?.set_modified(long_ago)?;

    ensure!(keys(&*store, "").await? == ["v1/a"]);
    for key in ["out/secret", "v1/link"] {
        let read = store.get(key, 100).await;
        ensure!(matches!(read, Err(StoreError::Failed(_))), "{read:?}");
        let written = store.put(key, bytes("2"), PutMode::Overwrite).await;
        ensure!(matches!(written, Err(StoreError::Failed(_))), "{written:?}");
    }
    ensure!(std::fs::read(outside.path().join("secret"))? == b"secret");
    ensure!(store.abort_uploads("", Duration::ZERO).await? == 1);
    ensure!(!old.exists() && new.exists());
    store.delete("v1").await?;
    ensure!(store.get("v1/a", 10).await? == "1", "a prefix is no object");
    store.delete("v1/a").await?;
    ensure!(base.join("v1").exists(), "a directory with other things stays");
    Ok(())
}

#[tokio::test]
async fn an_object_cut_short_on_the_disk_is_an_error() -> Result<()> {
    let root = tempfile::tempdir()?;
    let store = DirStore::open(root.path())?;
    store.put("v1/a", Bytes::from(noise(1 << 20)), PutMode::Create).await?;
    let mut body = store.get_range("v1/a", 0..1 << 20, None).await?;
    body.next().await.unwrap()?;
    std::fs::File::options().write(true).open(root.path().join("v1/a"))?.set_len(300_000)?;
    let error = whole(body).await.unwrap_err();
    ensure!(matches!(error, StoreError::Short { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn no_writer_leaves_anything_staged() -> Result<()> {
    let root = tempfile::tempdir()?;
    let store: SharedStore = Arc::new(DirStore::open(root.path())?);
    store.put("v1/a", bytes("1"), PutMode::Create).await?;
    store.put("v1/a", bytes("2"), PutMode::Create).await.unwrap_err();
    store.put("v1/a", bytes("3"), PutMode::Overwrite).await?;
    store.put_file("v1/b", &root.path().join("none")).await.unwrap_err();
    ensure!(std::fs::read_dir(root.path().join(".staging"))?.count() == 0);
    Ok(())
}
