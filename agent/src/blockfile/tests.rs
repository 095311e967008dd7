//! Downloads from a store that fails, cuts, lies and hangs.

use std::{
    fmt,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, join_all},
    stream,
};
use tarn_testkit::eventually::eventually;
use tokio::sync::Semaphore;

use super::{
    layout::{LARGE, SMALL, SMALL_UNTIL},
    *,
};
use crate::store::{Body, Meta, Page, PutMode, Store};

const CHUNK: usize = 100_000;

/// Two large blocks and a part of one after the small ones.
const BYTES: u64 = SMALL_UNTIL + 2 * LARGE + 12_345;

/// What happens to a request.
#[derive(Clone, Debug)]
enum Fault {
    None,
    Refuse(StoreError),
    /// The body ends at this offset, without an error.
    CutAt(u64),
    /// The body ends at this offset, with one.
    BreakAt(u64),
    /// A bit is wrong at this offset.
    FlipAt(u64),
    /// The body waits at this offset for a permit.
    PauseAt(u64, Arc<Semaphore>),
}

type Faults = Box<dyn Fn(usize, &Range<u64>) -> Fault + Send + Sync>;

/// One object, which does to each request what `faults` say for its number.
struct Remote {
    content: Bytes,
    faults: Faults,
    requests: Mutex<Vec<Range<u64>>>,
    given: Arc<AtomicU64>,
    active: Arc<AtomicUsize>,
    most_active: AtomicUsize,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Remote {
    fn new(bytes: u64, faults: impl Fn(usize, &Range<u64>) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        let content: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 16) as u8).collect();
        Arc::new(Self {
            content: content.into(),
            faults: Box::new(faults),
            requests: Mutex::default(),
            given: Arc::default(),
            active: Arc::default(),
            most_active: AtomicUsize::default(),
        })
    }

    fn digests(&self) -> Vec<Digest> {
        let layout = Layout::new(self.content.len() as u64);
        (0..layout.count()).map(|block| Digest::of(&self.content[size(layout.range(block))])).collect()
    }

    fn source(self: &Arc<Self>) -> Source {
        Source { store: self.clone(), key: "packs/a.pack".into(), version: None }
    }

    fn requests(&self) -> Vec<Range<u64>> {
        self.requests.lock().unwrap().clone()
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }

    async fn create(&self, dir: &tempfile::TempDir) -> BlockFile {
        let bytes = self.content.len() as u64;
        BlockFile::create(&dir.path().join("a.pack"), bytes, self.digests()).await.unwrap()
    }

    async fn resume(&self, dir: &tempfile::TempDir) -> BlockFile {
        let bytes = self.content.len() as u64;
        BlockFile::resume(&dir.path().join("a.pack"), bytes, self.digests()).await.unwrap()
    }
}

fn size(range: Range<u64>) -> Range<usize> {
    range.start.try_into().unwrap()..range.end.try_into().unwrap()
}

fn unused<'a, T>() -> BoxFuture<'a, Result<T, StoreError>> {
    async { Err(StoreError::Failed("not in this test".into())) }.boxed()
}

impl Store for Remote {
    fn location(&self) -> String {
        "memory".into()
    }

    fn put<'a>(&'a self, _: &'a str, _: Bytes, _: PutMode) -> BoxFuture<'a, Result<(), StoreError>> {
        unused()
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a Path) -> BoxFuture<'a, Result<(), StoreError>> {
        unused()
    }

    fn get<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        unused()
    }

    fn get_range<'a>(
        &'a self,
        _: &'a str,
        range: Range<u64>,
        _: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Body, StoreError>> {
        let number = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(range.clone());
            requests.len() - 1
        };
        let fault = (self.faults)(number, &range);
        let active = Active(self.active.clone());
        self.most_active.fetch_max(self.active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let mut content = self.content.slice(size(range.clone()));
        let mut end = None;
        match &fault {
            Fault::Refuse(error) => {
                let error = error.clone();
                return async { Err(error) }.boxed();
            }
            Fault::CutAt(at) if range.contains(at) => {
                content.truncate((at - range.start).try_into().unwrap());
            }
            Fault::BreakAt(at) if range.contains(at) => {
                content.truncate((at - range.start).try_into().unwrap());
                end = Some(Err(StoreError::Unreachable("broken".into())));
            }
            Fault::FlipAt(at) if range.contains(at) => {
                let mut changed = content.to_vec();
                changed[usize::try_from(at - range.start).unwrap()] ^= 1;
                content = changed.into();
            }
            _ => {}
        }
        let given = self.given.clone();
        let chunks = stream::unfold((content, range.start, active), move |(mut rest, at, active)| {
            let (fault, given) = (fault.clone(), given.clone());
            async move {
                if rest.is_empty() {
                    return None;
                }
                let mut length = rest.len().min(CHUNK);
                if let Fault::PauseAt(pause, gate) = &fault {
                    if *pause == at {
                        gate.acquire().await.unwrap().forget();
                    } else if *pause > at {
                        length = length.min(usize::try_from(pause - at).unwrap());
                    }
                }
                let chunk = rest.split_to(length);
                given.fetch_add(length as u64, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Some((Ok(chunk), (rest, at + length as u64, active)))
            }
        });
        async move { Ok(chunks.chain(stream::iter(end)).boxed()) }.boxed()
    }

    fn head<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(Meta, Version), StoreError>> {
        unused()
    }

    fn list<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<Page, StoreError>> {
        unused()
    }

    fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        unused()
    }

    fn abort_uploads<'a>(&'a self, _: &'a str, _: Duration) -> BoxFuture<'a, Result<usize, StoreError>> {
        unused()
    }
}

fn hasty() -> Options {
    Options {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        silence: Duration::from_millis(200),
        ..Options::default()
    }
}

/// Hasty too, but a paused body is no failure.
fn patient() -> Options {
    Options { silence: Duration::from_secs(60), ..hasty() }
}

fn flights(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count))
}

async fn read(reader: &Reader, range: Range<u64>) -> Result<Vec<u8>, BlockFileError> {
    let chunks: Vec<Bytes> = reader.read(range)?.try_collect().await?;
    Ok(chunks.concat())
}

async fn until(what: impl Fn() -> bool) {
    let probe = async || if what() { Ok(()) } else { Err("not yet") };
    eventually(Duration::from_secs(20), "the download's end", probe).await.unwrap();
}

/// The answers of `faults` for requests that touch `offset`, the n-th of them counted from 0.
fn at(offset: u64, faults: impl Fn(usize) -> Fault + Send + Sync) -> impl Fn(usize, &Range<u64>) -> Fault {
    let count = AtomicUsize::new(0);
    move |_, range: &Range<u64>| {
        if range.contains(&offset) { faults(count.fetch_add(1, Ordering::SeqCst)) } else { Fault::None }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_block_is_fetched_once_for_32_readers() {
    let remote = Remote::new(BYTES, |_, _| Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    let readers = (0..32_u64).map(|number| {
        let (reader, remote) = (download.reader(), remote.clone());
        tokio::spawn(async move {
            let range = match number % 4 {
                0 | 1 => 0..BYTES,
                2 => number * 400_000..BYTES - number * 100_000,
                _ => BYTES - 10_000 - number..BYTES - number,
            };
            assert!(read(&reader, range.clone()).await.unwrap() == remote.content[size(range)]);
        })
    });
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    download.wait().await.unwrap();
    assert_eq!(remote.given(), BYTES);
    assert_eq!(download.progress(), Progress { bytes: BYTES, verified: BYTES });
    assert!(fs::read(dir.path().join("a.pack")).unwrap() == remote.content);
    // Readers outlive the download.
    let reader = download.reader();
    drop(download);
    assert!(read(&reader, 0..BYTES).await.unwrap() == remote.content);
}

#[tokio::test]
async fn a_reader_that_leaves_ends_nothing() {
    let gate = flights(0);
    let paused = gate.clone();
    let remote = Remote::new(BYTES, at(SMALL_UNTIL, move |_| Fault::PauseAt(SMALL_UNTIL, paused.clone())));
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), patient());
    let (stays, leaves) = (download.reader(), download.reader());
    let stays = tokio::spawn(async move { read(&stays, 0..BYTES).await });
    let mut stream = leaves.read(SMALL_UNTIL..BYTES).unwrap().boxed();
    assert!(stream.next().now_or_never().is_none());
    drop(stream);
    drop(leaves);
    gate.add_permits(1);
    assert!(stays.await.unwrap().unwrap() == remote.content);
    download.wait().await.unwrap();
    assert_eq!(remote.given(), BYTES);
}

#[tokio::test]
async fn small_blocks_come_with_one_request_and_are_read_one_by_one() {
    let gate = flights(0);
    let paused = gate.clone();
    let remote = Remote::new(SMALL_UNTIL, move |_, _| Fault::PauseAt(SMALL, paused.clone()));
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), patient());
    assert!(read(&download.reader(), 0..SMALL).await.unwrap() == remote.content[size(0..SMALL)]);
    assert_eq!(download.progress().verified, SMALL);
    gate.add_permits(1);
    download.wait().await.unwrap();
    assert_eq!(remote.requests(), [Range { start: 0, end: SMALL_UNTIL }]);
}

#[tokio::test]
async fn the_block_somebody_waits_for_comes_first() {
    let remote = Remote::new(SMALL_UNTIL + 8 * LARGE, |_, _| Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { flights: flights(1), ..patient() };
    let turn = options.flights.clone().acquire_owned().await.unwrap();
    let download = remote.create(&dir).await.start(remote.source(), options);
    tokio::task::yield_now().await;
    let reader = download.reader();
    let stream = reader.read(SMALL_UNTIL + 6 * LARGE + 5..SMALL_UNTIL + 8 * LARGE).unwrap();
    drop(turn);
    download.wait().await.unwrap();
    drop(stream);
    let layout = Layout::new(SMALL_UNTIL + 8 * LARGE);
    let first: Vec<_> = remote.requests().into_iter().take(3).collect();
    assert_eq!(first, [layout.range(22), layout.range(23), 0..SMALL_UNTIL]);
}

#[tokio::test]
async fn downloads_share_a_bound_on_requests() {
    let remote = Remote::new(BYTES, |_, _| Fault::None);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let options = Options { flights: flights(2), ..hasty() };
    let mut downloads = Vec::new();
    for dir in &dirs {
        downloads.push(remote.create(dir).await.start(remote.source(), options.clone()));
    }
    for download in &downloads {
        download.wait().await.unwrap();
    }
    assert_eq!(remote.most_active.load(Ordering::SeqCst), 2);
    assert_eq!(remote.given(), 3 * BYTES);
}

#[tokio::test]
async fn a_failing_block_is_fetched_again_and_no_other() {
    let refused = Fault::Refuse(StoreError::Unreachable("no route".into()));
    let remote =
        Remote::new(BYTES, at(SMALL_UNTIL, move |n| if n < 2 { refused.clone() } else { Fault::None }));
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    assert!(read(&download.reader(), 0..BYTES).await.unwrap() == remote.content);
    download.wait().await.unwrap();
    assert_eq!(remote.requests().len(), 6);
    assert_eq!(remote.given(), BYTES);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let broke = SMALL_UNTIL + LARGE / 2;
    let remote =
        Remote::new(BYTES, at(broke, move |n| if n == 0 { Fault::BreakAt(broke) } else { Fault::None }));
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    assert!(read(&download.reader(), 0..BYTES).await.unwrap() == remote.content);
    download.wait().await.unwrap();
    assert!(remote.given() <= BYTES + transfer::BATCH as u64, "{}", remote.given());
}

#[tokio::test]
async fn a_flipped_bit_never_reaches_a_reader_and_is_fetched_again() {
    for flipped in [70_000, SMALL_UNTIL + LARGE + 1] {
        let remote = Remote::new(
            BYTES,
            at(flipped, move |n| if n < 2 { Fault::FlipAt(flipped) } else { Fault::None }),
        );
        let dir = tempfile::tempdir().unwrap();
        let download = remote.create(&dir).await.start(remote.source(), hasty());
        assert!(read(&download.reader(), 0..BYTES).await.unwrap() == remote.content);
        download.wait().await.unwrap();
        assert!(fs::read(dir.path().join("a.pack")).unwrap() == remote.content);
        assert!(remote.given() > BYTES);
    }
}

#[tokio::test]
async fn lasting_damage_is_told_to_the_owner_and_every_reader() {
    let flipped = SMALL_UNTIL + LARGE + 1;
    let remote = Remote::new(BYTES, at(flipped, move |_| Fault::FlipAt(flipped)));
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let reader = download.reader();
            tokio::spawn(async move { read(&reader, flipped..BYTES).await })
        })
        .collect();
    let error = download.wait().await.unwrap_err();
    assert!(matches!(error, BlockFileError::Digest { block: 17, .. }), "{error}");
    assert_eq!((error.blame(), error.block()), (Blame::Object, Some(17)));
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert!(matches!(error, BlockFileError::Digest { block: 17, .. }), "{error}");
    }
    assert_eq!(remote.requests().iter().filter(|range| range.contains(&flipped)).count(), 3);
    // What is right stays readable; what is not never was.
    assert!(read(&download.reader(), 0..SMALL).await.unwrap() == remote.content[size(0..SMALL)]);
    assert!(read(&download.reader(), flipped - 1..flipped).await.is_err());
}

#[tokio::test]
async fn a_short_body_is_never_taken_for_whole() {
    for cut in [0, SMALL, SMALL + 1, SMALL_UNTIL, SMALL_UNTIL + LARGE - 1, BYTES - 1] {
        let once = Remote::new(BYTES, at(cut, move |n| if n == 0 { Fault::CutAt(cut) } else { Fault::None }));
        let dir = tempfile::tempdir().unwrap();
        let download = once.create(&dir).await.start(once.source(), hasty());
        assert!(read(&download.reader(), 0..BYTES).await.unwrap() == once.content);
        download.wait().await.unwrap();

        let always = Remote::new(BYTES, at(cut, move |_| Fault::CutAt(cut)));
        let dir = tempfile::tempdir().unwrap();
        let download = always.create(&dir).await.start(always.source(), hasty());
        assert!(read(&download.reader(), 0..BYTES).await.is_err());
        let error = download.wait().await.unwrap_err();
        let block = Layout::new(BYTES).containing(cut);
        assert!(matches!(error, BlockFileError::Length { .. }) && error.block() == block, "{error}");
        assert_eq!(error.blame(), Blame::Object);
    }
}

#[tokio::test]
async fn a_missing_object_an_unreachable_and_a_silent_store_are_told_apart() {
    let silent = flights(0);
    for (fault, blame, requests) in [
        (Fault::Refuse(StoreError::NotFound("a".into())), Blame::Object, 3),
        (Fault::Refuse(StoreError::Changed("a".into())), Blame::Object, 1),
        (Fault::Refuse(StoreError::Unreachable("no route".into())), Blame::Store, 3),
        (Fault::BreakAt(3), Blame::Store, 3),
        (Fault::PauseAt(0, silent), Blame::Store, 3),
    ] {
        let remote = Remote::new(1000, move |_, _| fault.clone());
        let dir = tempfile::tempdir().unwrap();
        let download = remote.create(&dir).await.start(remote.source(), hasty());
        let error = read(&download.reader(), 0..1).await.unwrap_err();
        assert_eq!((error.blame(), error.block()), (blame, Some(0)), "{error}");
        assert_eq!(download.wait().await.unwrap_err().blame(), blame);
        assert_eq!(remote.requests().len(), requests);
    }
}

#[tokio::test]
async fn after_a_restart_only_what_is_missing_is_fetched() {
    let gone = SMALL_UNTIL + LARGE;
    let refused = Fault::Refuse(StoreError::Unreachable("no route".into()));
    let options = Options { attempts: 1, flights: flights(1), ..hasty() };
    let first = Remote::new(BYTES, at(gone, move |_| refused.clone()));
    let dir = tempfile::tempdir().unwrap();
    let download = first.create(&dir).await.start(first.source(), options);
    download.wait().await.unwrap_err();
    drop(download);

    // One block has rotted meanwhile.
    let path = dir.path().join("a.pack");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 3 * SMALL + 7).unwrap();

    let second = Remote::new(BYTES, |_, _| Fault::None);
    let file = second.resume(&dir).await;
    assert_eq!(file.progress().verified, SMALL_UNTIL - SMALL + LARGE);
    let download = file.start(second.source(), hasty());
    download.wait().await.unwrap();
    assert!(read(&download.reader(), 0..BYTES).await.unwrap() == second.content);
    let mut requests = second.requests();
    requests.sort_by_key(|range| range.start);
    assert_eq!(requests, [3 * SMALL..4 * SMALL, gone..gone + LARGE, gone + LARGE..BYTES]);

    // And nothing at all where nothing is missing, or only the name was longer here.
    drop(download);
    let third = Remote::new(BYTES, |_, _| Fault::None);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(BYTES + 5).unwrap();
    third.resume(&dir).await.start(third.source(), hasty()).wait().await.unwrap();
    assert!(third.requests().is_empty());
    assert_eq!(fs::metadata(&path).unwrap().len(), BYTES);
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_download_and_lets_go_of_the_file() {
    let remote = Remote::new(BYTES, at(0, |_| Fault::PauseAt(SMALL, flights(0))));
    let dir = tempfile::tempdir().unwrap();
    let options = Options { flights: flights(1), ..patient() };
    let download = remote.create(&dir).await.start(remote.source(), options.clone());
    let (other, reader) = (download.clone(), download.reader());
    drop(download);
    assert!(read(&reader, 0..SMALL).await.unwrap() == remote.content[size(0..SMALL)]);

    // While it runs, nobody else writes to its file.
    let busy = BlockFile::resume(&dir.path().join("a.pack"), BYTES, remote.digests()).await.unwrap_err();
    assert!(matches!(busy, BlockFileError::Disk { verb: "lock", .. }), "{busy}");

    drop(other);
    let error = read(&reader, 0..BYTES).await.unwrap_err();
    assert!(matches!(error, BlockFileError::GivenUp), "{error}");
    until(|| options.flights.available_permits() == 1).await;
    let active = remote.active.clone();
    until(|| active.load(Ordering::SeqCst) == 0).await;
    assert_eq!(remote.resume(&dir).await.progress().verified, SMALL);
}

#[tokio::test]
async fn objects_of_any_length_arrive_whole() {
    for bytes in [0, 1, SMALL - 1, SMALL, SMALL + 1, SMALL_UNTIL - 1, SMALL_UNTIL, SMALL_UNTIL + 1, BYTES] {
        let remote = Remote::new(bytes, |_, _| Fault::None);
        let dir = tempfile::tempdir().unwrap();
        let download = remote.create(&dir).await.start(remote.source(), hasty());
        let chunks: Vec<Bytes> = download.reader().read_all().try_collect().await.unwrap();
        assert!(chunks.concat() == remote.content);
        download.wait().await.unwrap();
        assert!(fs::read(dir.path().join("a.pack")).unwrap() == remote.content);
        assert_eq!(digest_file(&dir.path().join("a.pack")).unwrap(), (bytes, remote.digests()));
        assert_eq!(remote.given(), bytes);
    }
}

#[tokio::test]
async fn a_range_outside_the_object_is_refused() {
    let remote = Remote::new(1000, |_, _| Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    let reader = download.reader();
    for (start, end) in [(0, 1001), (1001, 1001), (2, 1), (u64::MAX, u64::MAX)] {
        let error = reader.read(Range { start, end }).err().unwrap();
        assert!(matches!(error, BlockFileError::Range { .. }) && error.blame() == Blame::Caller);
    }
    for empty in [0, 500, 1000] {
        assert!(read(&reader, empty..empty).await.unwrap().is_empty());
    }
    assert_eq!(read(&reader, 999..1000).await.unwrap(), remote.content[999..]);
}

#[tokio::test]
async fn a_full_disk_is_told_at_once_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    // More than the whole file system; its digests take 4 MB a TiB.
    let disk = rustix::fs::statvfs(dir.path()).unwrap();
    let bytes = disk.f_blocks * disk.f_frsize + LARGE;
    let digests = vec![Digest::of(b""); Layout::new(bytes).count()];
    let path = dir.path().join("a.pack");
    let error = BlockFile::create(&path, bytes, digests).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Disk);
    let BlockFileError::Disk { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert!(!path.exists());
}

#[tokio::test]
async fn digests_that_do_not_fit_the_length_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    for (bytes, digests) in [(0, 1), (1, 0), (u64::MAX, 5)] {
        let digests = vec![Digest::of(b""); digests];
        let error = BlockFile::create(&path, bytes, digests).await.unwrap_err();
        assert!(matches!(error, BlockFileError::Digests { .. }) && error.blame() == Blame::Object);
    }
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shares_the_line_with_the_first_bytes_but_what_others_wait_for() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let faults = move |_, range: &Range<u64>| {
        if range.start == 0 { Fault::PauseAt(0, held.clone()) } else { Fault::None }
    };
    let remote = Remote::new(BYTES, faults);
    let dir = tempfile::tempdir().unwrap();
    let download = remote.create(&dir).await.start(remote.source(), patient());
    until(|| !remote.requests().is_empty()).await;
    let reader = download.reader();
    let first = reader.read(0..1).unwrap();
    // Nothing tells that something does not happen but time.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(remote.requests(), std::slice::from_ref(&(0..SMALL_UNTIL)));
    // Who reads the last block does not wait for the first.
    assert_eq!(read(&reader, BYTES - 1..BYTES).await.unwrap().len(), 1);
    gate.add_permits(1);
    assert_eq!(first.try_collect::<Vec<_>>().await.unwrap().concat(), remote.content[..1]);
    download.wait().await.unwrap();
}

/// Whether this process has the file at `path` open.
fn is_open(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == path)
}

#[tokio::test]
async fn a_file_that_nobody_reads_holds_no_descriptor() {
    let remote = Remote::new(BYTES, |_, _| Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    let reader = download.reader();
    download.wait().await.unwrap();
    until(|| !is_open(&path)).await;
    let opened = reader.opened().await.unwrap();
    assert!(is_open(&path));
    // Whoever has it open reads on when the name is gone.
    fs::remove_file(&path).unwrap();
    assert!(read(&opened, 0..BYTES).await.unwrap() == remote.content);
    drop(opened);
    let gone = read(&reader, 0..1).await.unwrap_err();
    assert_eq!(gone.blame(), Blame::Disk);
    assert!(matches!(reader.spoilt().await, BlockFileError::Disk { .. }));
}

#[tokio::test]
async fn what_rots_on_the_disk_is_never_read() {
    let remote = Remote::new(BYTES, |_, _| Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let download = remote.create(&dir).await.start(remote.source(), hasty());
    download.wait().await.unwrap();
    let reader = download.reader();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", SMALL_UNTIL + LARGE / 2).unwrap();
    let rotten = Layout::new(BYTES).containing(SMALL_UNTIL);
    assert!(read(&reader, 0..SMALL_UNTIL).await.unwrap() == remote.content[size(0..SMALL_UNTIL)]);
    let error = read(&reader, SMALL_UNTIL..SMALL_UNTIL + 1).await.unwrap_err();
    assert!(matches!(error, BlockFileError::Spoilt { .. }) && error.block() == rotten, "{error}");
    assert_eq!(reader.spoilt().await.block(), rotten);
    // And so is what is cut short.
    let whole = BlockFile::whole(&path, BYTES, remote.digests()).await.unwrap();
    file.set_len(BYTES - 1).unwrap();
    assert_eq!(read(&whole, BYTES - 2..BYTES).await.unwrap_err().blame(), Blame::Disk);
    whole.spoilt().await;
}
