use futures_util::{StreamExt, TryStreamExt};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::*;

type Cache = Spool<u8, String>;

fn cache(bytes: u64) -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { bytes, files: 1000, age: Some(Duration::from_secs(3600)) };
    let cache = Spool::new("packs", &dir.path().join("packs"), bounds, &Metrics::new()).unwrap();
    (dir, cache)
}

fn always() -> Keep {
    Keep::As(Box::new(|path| Ok(Some(path.to_owned()))))
}

async fn write(mut sink: Sink<String>, content: Vec<u8>) -> Result<u64, String> {
    let (length, ()) = sink.append(move || (vec![content.into()], ())).await.map_err(|e| e.to_string())?;
    Ok(length)
}

async fn get(cache: &Cache, key: u8, length: usize) -> Follower<String> {
    cache.get_or_make(key, always(), move |sink| write(sink, vec![key; length])).await
}

async fn never(_: Sink<String>) -> Result<u64, String> {
    panic!("made twice")
}

async fn read(follower: Follower<String>) -> Result<Vec<u8>, SpoolError<String>> {
    follower.read().try_fold(Vec::new(), async |all, chunk| Ok([all, chunk.to_vec()].concat())).await
}

/// Waits until nothing grows.
async fn settled(cache: &Cache) {
    while !cache.inner.index.lock().growing.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until so many files are in the directory.
async fn files(dir: &tempfile::TempDir, count: usize) {
    let there = || fs::read_dir(dir.path().join("packs")).unwrap().count();
    let arrived = async {
        while there() != count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), arrived).await.unwrap_or_else(|_| panic!("{} files", there()));
}

fn kept(cache: &Cache) -> Vec<u8> {
    let mut kept: Vec<u8> = cache.inner.index.lock().kept.iter().map(|(key, _)| *key).collect();
    kept.sort_unstable();
    kept
}

#[tokio::test]
async fn a_file_is_made_once_and_kept_with_no_descriptor_of_its_own() {
    let (_dir, cache) = cache(1 << 20);
    let made = get(&cache, 1, 100).await;
    let joined = cache.get_or_make(1, always(), never).await;
    assert_eq!((made.lookup(), joined.lookup()), (Lookup::MISS, Lookup::JOINED));
    assert_eq!(read(made).await.unwrap(), [1; 100]);
    assert_eq!(read(joined).await.unwrap(), [1; 100]);
    settled(&cache).await;
    assert!(!cache.inner.index.lock().kept.peek(&1).unwrap().is_read(), "it is closed");
    let hit = cache.get_or_make(1, always(), never).await;
    assert_eq!((hit.lookup(), hit.length()), (Lookup::HIT, Some(100)));
    assert_eq!(read(hit).await.unwrap(), [1; 100]);
    assert_eq!(cache.usage().kept, Tally { bytes: 100, files: 1 });
}

#[tokio::test]
async fn every_reader_gets_everything_whenever_it_comes_and_a_failure_is_an_error_for_all() {
    for fails in [false, true] {
        let (_dir, cache) = cache(1 << 20);
        let (go, gone) = oneshot::channel::<()>();
        let make = move |mut sink: Sink<String>| async move {
            let mut length = 0;
            for part in 0..4 {
                (length, ()) = sink.append(move || (vec![vec![part; CHUNK - 7].into()], ())).await.unwrap();
                sink.growth().grown(length);
            }
            gone.await.unwrap();
            if fails { Err("broken".into()) } else { Ok(length) }
        };
        let follower = cache.get_or_make(1, always(), make).await;
        let mut early = Box::pin(follower.read());
        assert_eq!(early.next().await.unwrap().unwrap().first(), Some(&0));
        assert_eq!(follower.length(), None);
        go.send(()).unwrap();
        let whole = 4 * (CHUNK - 7);
        let rest = early.try_fold(0, async |sum, chunk| Ok(sum + chunk.len())).await;
        if fails {
            assert!(matches!(rest, Err(SpoolError::Maker(_))));
            assert!(follower.whole().await.is_err());
            settled(&cache).await;
            assert_eq!(kept(&cache), [0; 0]);
        } else {
            assert!(rest.unwrap() < whole, "the first chunk was read before");
            let part = follower.read_part(5..9).try_collect::<Vec<_>>().await.unwrap();
            assert_eq!(part, [&[0; 4][..]]);
            assert_eq!(read(follower).await.unwrap().len(), whole);
        }
    }
}

#[tokio::test]
async fn the_least_recently_used_go_first_and_read_ones_are_pinned() {
    let (dir, cache) = cache(250);
    for key in [1, 2, 1, 3] {
        read(get(&cache, key, 80).await).await.unwrap();
        settled(&cache).await;
    }
    assert_eq!(kept(&cache), [1, 2, 3]);
    let held = get(&cache, 1, 80).await;
    for key in [2, 3, 4] {
        read(get(&cache, key, 80).await).await.unwrap();
        settled(&cache).await;
    }
    // The oldest is read, so the next one went.
    assert_eq!(kept(&cache), [1, 3, 4]);
    cache.set_budget(100);
    assert_eq!(kept(&cache), [1]);
    cache.set_budget(10);
    assert_eq!(kept(&cache), [0; 0]);
    assert_eq!(cache.usage().pinned, Tally { bytes: 80, files: 1 });
    files(&dir, 0).await;
    assert_eq!(read(held).await.unwrap(), [1; 80], "its readers go on");
    assert_eq!(cache.usage(), Usage::default());
}

#[tokio::test]
async fn room_is_made_of_what_nobody_reads() {
    let (dir, cache) = cache(1000);
    for key in [1, 2, 3] {
        read(get(&cache, key, 100).await).await.unwrap();
        settled(&cache).await;
    }
    let held = get(&cache, 1, 100).await;
    assert_eq!(cache.shrink(150).await, 200);
    files(&dir, 1).await;
    assert_eq!(cache.shrink(150).await, 0);
    drop(held);
    assert_eq!(cache.shrink(1).await, 100);
    assert_eq!(cache.usage(), Usage::default());
}

#[tokio::test]
async fn what_nobody_uses_leaves_after_a_while_and_too_many_leave_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { bytes: 1000, files: 2, age: Some(Duration::from_millis(200)) };
    let cache: Cache = Spool::new("packs", &dir.path().join("packs"), bounds, &Metrics::new()).unwrap();
    for key in [1, 2, 3] {
        read(get(&cache, key, 10).await).await.unwrap();
        settled(&cache).await;
    }
    assert!(kept(&cache).len() <= 2);
    sleep(Duration::from_millis(300)).await;
    let sweeping = tokio::spawn(cache.clone().sweep());
    files(&dir, 0).await;
    assert_eq!(kept(&cache), [0; 0]);
    sweeping.abort();
}

#[tokio::test]
async fn a_file_that_is_damaged_on_the_disk_is_made_again() {
    let (dir, cache) = cache(1 << 20);
    let damages = || cache.inner.ledger.damages.get();
    for (gone, before) in [(true, 0), (false, 2)] {
        read(get(&cache, 1, 100).await).await.unwrap();
        settled(&cache).await;
        let path = fs::read_dir(dir.path().join("packs")).unwrap().next().unwrap().unwrap().path();
        if gone {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, "short").unwrap();
        }
        let again = get(&cache, 1, 100).await;
        assert_eq!(again.lookup(), Lookup::MISS);
        assert_eq!(read(again).await.unwrap(), [1; 100]);
        settled(&cache).await;
        // It is cut short while it is read.
        let hit = get(&cache, 1, 100).await;
        let path = cache.inner.index.lock().kept.peek(&1).unwrap().path.clone();
        fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        assert!(matches!(read(hit).await, Err(SpoolError::Disk(_))));
        assert_eq!(get(&cache, 1, 100).await.lookup(), Lookup::MISS);
        assert_eq!(damages(), before + 2, "each counts once");
        settled(&cache).await;
        cache.discard(&1);
        files(&dir, 0).await;
    }
}

#[tokio::test]
async fn work_nobody_waits_for_is_given_up_and_can_begin_again() {
    let (_dir, cache) = cache(1 << 20);
    let first = cache.get_or_make(1, always(), |_| std::future::pending()).await;
    let second = cache.get_or_make(1, always(), never).await;
    drop(first);
    assert_eq!(cache.inner.index.lock().growing.len(), 1);
    drop(second);
    let again = get(&cache, 1, 1).await;
    assert_eq!(read(again).await.unwrap(), [1]);
    settled(&cache).await;
    assert_eq!(kept(&cache), [1]);
}

#[tokio::test]
async fn a_file_made_ahead_is_there_for_the_first_who_asks_and_goes_if_nobody_does() {
    let (dir, cache) = cache(1 << 20);
    for key in [1, 2] {
        let made = cache.make_ahead(key, always(), move |sink| write(sink, vec![key; 9])).unwrap();
        assert_eq!(made.whole().await.unwrap(), 9);
        settled(&cache).await;
    }
    assert!(cache.make_ahead(1, always(), never).is_none());
    let first = cache.get_or_make(1, always(), never).await;
    assert!(first.is_first() && first.lookup() == Lookup::HIT);
    assert!(!cache.get_or_make(1, always(), never).await.is_first());
    assert_eq!([1, 2].map(|key| cache.discard_unasked(&key)), [false, true]);
    files(&dir, 1).await;
}

#[tokio::test]
async fn new_work_waits_while_too_much_is_open_and_the_slowest_reader_is_cut_in_the_end() {
    let (_dir, cache) = cache(100);
    // A whole file that is not kept, which one reads to its half, and then nothing more.
    let large = cache.get_or_make(1, Keep::Nothing, |sink| write(sink, vec![1; 3 * CHUNK])).await;
    let mut slow = Box::pin(large.read());
    slow.next().await.unwrap().unwrap();
    drop(large);
    settled(&cache).await;
    assert_eq!(cache.usage().pinned, Tally { bytes: 3 * CHUNK as u64, files: 1 });
    let began = Instant::now();
    let next = get(&cache, 2, 10).await;
    assert_eq!(read(next).await.unwrap(), [2; 10]);
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(matches!(slow.next().await, Some(Err(SpoolError::TooSlow))));
    settled(&cache).await;
    assert_eq!(cache.usage().open(), 0);
}

#[tokio::test]
async fn a_whole_file_gets_other_names_also_when_its_own_is_gone() {
    let (dir, cache) = cache(1 << 20);
    let follower = get(&cache, 1, 100).await;
    follower.whole().await.unwrap();
    follower.link(&dir.path().join("a/link")).unwrap();
    settled(&cache).await;
    cache.discard(&1);
    files(&dir, 0).await;
    follower.link(&dir.path().join("a/copy")).unwrap();
    for name in ["a/link", "a/copy"] {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), [1; 100]);
    }
}
