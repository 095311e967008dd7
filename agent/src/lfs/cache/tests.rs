use std::fmt::Write;

use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

use super::*;
use crate::lfs::intake::{Intake, Shown};

fn repo() -> RepoId {
    RepoId::from_route("h/o/r").unwrap()
}

fn name(content: &[u8]) -> LfsOid {
    let mut name = String::new();
    for byte in Sha256::digest(content) {
        write!(name, "{byte:02x}").unwrap();
    }
    LfsOid::parse(&name).unwrap()
}

fn open(dir: &Path) -> Cache {
    Cache::open(dir.join("lfs"), &dir.join("incoming"), 300, Metrics::new()).unwrap()
}

/// Brings the object of this name and length, for which the upstream sends `content`.
async fn bring(
    cache: &Cache,
    oid: LfsOid,
    bytes: usize,
    content: &[u8],
) -> Result<LfsReader, Arc<FetchError>> {
    bring_as(cache, oid, bytes, content, Shown::Growing).await
}

async fn bring_as(
    cache: &Cache,
    oid: LfsOid,
    bytes: usize,
    content: &[u8],
    shown: Shown,
) -> Result<LfsReader, Arc<FetchError>> {
    let content = content.to_vec();
    let fill = move |sink| async move {
        let mut intake = Intake::new(oid, bytes as u64, shown, sink);
        for chunk in content.chunks(7) {
            intake = intake.take(vec![Bytes::copy_from_slice(chunk)]).await?;
        }
        intake.finish()
    };
    cache.open_or_fill(&repo(), oid, fill).await
}

async fn read(reader: &LfsReader) -> Result<Vec<u8>, SpoolError<FetchError>> {
    let whole = reader.read(0..u64::MAX);
    whole.try_fold(Vec::new(), async |all, chunk| Ok([all, chunk.to_vec()].concat())).await
}

/// Waits until nothing is on its way.
async fn settled(cache: &Cache) {
    while cache.usage().growing.files + cache.usage().pinned.files > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn objects_are_brought_once_kept_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = [7; 80];
    let oid = name(&content);
    let cache = open(dir.path());
    let first = bring(&cache, oid, 80, &content).await.unwrap();
    let joined = bring(&cache, oid, 80, b"").await.unwrap();
    assert_eq!(read(&first).await.unwrap(), content);
    assert_eq!(read(&joined).await.unwrap(), content);
    settled(&cache).await;
    joined.link(&dir.path().join("a/link")).unwrap();
    assert_eq!(fs::read(dir.path().join("a/link")).unwrap(), content);
    drop((first, joined, cache));
    let cache = open(dir.path());
    assert_eq!(cache.holds(&repo(), oid), Some(80));
    assert_eq!(read(&cache.kept(&repo(), oid).await.unwrap()).await.unwrap(), content);
    assert!(cache.kept(&RepoId::from_route("h/o/other").unwrap(), oid).await.is_none());
    assert_eq!(cache.usage().kept.bytes, 80);
    // Cut short by the disk, it is no longer the object.
    fs::write(cache.dir(&repo()).join(oid.path()), "short").unwrap();
    assert!(cache.kept(&repo(), oid).await.is_none());
    assert_eq!(read(&bring(&cache, oid, 80, &content).await.unwrap()).await.unwrap(), content);
}

#[tokio::test]
async fn what_is_not_the_object_is_never_whole_nor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for (wanted, sent) in
        [(&b"right"[..], &b"wrong"[..]), (b"right", b"righ"), (b"right", b"right!"), (b"", b"x")]
    {
        let oid = name(wanted);
        let why = match bring(&cache, oid, wanted.len(), sent).await {
            Ok(reader) => {
                assert!(read(&reader).await.is_err());
                reader.whole().await.unwrap_err()
            }
            Err(why) => why,
        };
        assert!(matches!(*why, FetchError::Mismatch(_)), "{why}");
        settled(&cache).await;
        assert!(cache.kept(&repo(), oid).await.is_none());
    }
    // Files are removed on a thread of their own.
    let left = || fs::read_dir(dir.path().join("incoming")).unwrap().count();
    let removed = async {
        while left() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(30), removed).await;
    assert_eq!(left(), 0);
    assert_eq!(read(&bring(&cache, name(b""), 0, b"").await.unwrap()).await.unwrap(), b"");
}

#[tokio::test]
async fn the_least_recently_used_object_goes_first_and_one_that_is_read_last() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut held = None;
    for digit in [1, 2, 3, 2, 4] {
        let content = [digit; 80];
        let reader = bring(&cache, name(&content), 80, &content).await.unwrap();
        read(&reader).await.unwrap();
        settled(&cache).await;
        if digit == 1 {
            held = Some(reader);
        }
    }
    let kept = [1, 2, 3, 4].map(|digit| cache.holds(&repo(), name(&[digit; 80])).is_some());
    assert_eq!(kept, [true, true, false, true]);
    assert_eq!(read(&held.unwrap()).await.unwrap(), [1; 80]);
}

#[tokio::test]
async fn of_what_comes_from_elsewhere_nothing_is_read_before_all_of_it_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let content = [7; 80];
    for bytes in [80, 81, 10_000] {
        let wrong = bring_as(&cache, name(b"another"), bytes, &content, Shown::Whole).await;
        assert!(matches!(&*wrong.unwrap_err(), FetchError::Mismatch(_)), "{bytes}");
    }
    settled(&cache).await;
    let right = bring_as(&cache, name(&content), 80, &content, Shown::Whole).await.unwrap();
    assert_eq!(read(&right).await.unwrap(), content);
}
