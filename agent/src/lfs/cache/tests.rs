use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

use super::*;
use crate::tail::TailError;

fn repo() -> RepoId {
    RepoId::from_route("h/o/r").unwrap()
}

fn object(content: &[u8]) -> Object {
    let name: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    Object { oid: LfsOid::parse(&name).unwrap(), bytes: content.len() as u64 }
}

fn open(dir: &Path) -> Cache {
    Cache::open(dir.join("lfs"), dir.join("incoming"), 300, Metrics::new()).unwrap()
}

/// Brings `object`, for which the upstream sends `content`.
fn bring(cache: &Cache, object: Object, content: &[u8]) -> Reading {
    let content = content.to_vec();
    let fill = |mut intake: Intake| async move {
        for chunk in content.chunks(7) {
            intake.take(chunk)?;
            tokio::task::yield_now().await;
        }
        intake.finish()
    };
    cache.open_or_fill(&repo(), object, fill).unwrap()
}

async fn read(reading: &Reading) -> Result<Vec<u8>, TailError> {
    let whole = reading.read(0..u64::MAX);
    whole.try_fold(Vec::new(), |all, chunk| async move { Ok([all, chunk.to_vec()].concat()) }).await
}

/// Waits until nothing is on its way.
async fn settled(cache: &Cache) {
    while !cache.lock().growing.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn objects_are_brought_once_kept_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = [7; 80];
    let cache = open(dir.path());
    let (first, joined) = (bring(&cache, object(&content), &content), bring(&cache, object(&content), b""));
    assert_eq!(read(&first).await.unwrap(), content);
    assert_eq!(read(&joined).await.unwrap(), content);
    settled(&cache).await;
    joined.link(&dir.path().join("a/link")).unwrap();
    assert_eq!(fs::read(dir.path().join("a/link")).unwrap(), content);
    drop(cache);
    let cache = open(dir.path());
    assert!(cache.holds(&repo(), object(&content)));
    assert_eq!(read(&cache.kept(&repo(), object(&content).oid).unwrap()).await.unwrap(), content);
    assert!(cache.kept(&RepoId::from_route("h/o/other").unwrap(), object(&content).oid).is_none());
    assert_eq!(cache.lock().bytes, 80);
}

#[tokio::test]
async fn what_is_not_the_object_is_never_whole_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for (wanted, sent) in
        [(&b"right"[..], &b"wrong"[..]), (b"right", b"righ"), (b"right", b"right!"), (b"", b"x")]
    {
        let reading = bring(&cache, object(wanted), sent);
        assert!(read(&reading).await.is_err());
        assert!(matches!(*reading.whole().await.unwrap_err(), FetchError::Mismatch(_)));
        settled(&cache).await;
        assert!(cache.kept(&repo(), object(wanted).oid).is_none());
    }
    assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    assert_eq!(read(&bring(&cache, object(b""), b"")).await.unwrap(), b"");
}

#[tokio::test]
async fn the_least_recently_used_object_goes_first_and_none_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut held = None;
    for digit in [1, 2, 3, 2, 4] {
        let content = [digit; 80];
        let reading = bring(&cache, object(&content), &content);
        read(&reading).await.unwrap();
        settled(&cache).await;
        if digit == 1 {
            held = Some(reading);
        }
    }
    let kept = [1, 2, 3, 4].map(|digit| cache.holds(&repo(), object(&[digit; 80])));
    assert_eq!(kept, [true, true, false, true]);
    assert_eq!(read(&held.unwrap()).await.unwrap(), [1; 80]);
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_is_given_up_and_can_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let content = [7; 80];
    let stuck = cache.open_or_fill(&repo(), object(&content), |_| std::future::pending()).unwrap();
    drop(stuck);
    assert_eq!(read(&bring(&cache, object(&content), &content)).await.unwrap(), content);
    settled(&cache).await;
    assert!(cache.holds(&repo(), object(&content)));
}
