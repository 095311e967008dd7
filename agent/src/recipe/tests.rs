//! Histories at random, packed at random: what is composed of them is a pack that git takes, with all that was asked for.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use tarn_crds::repo::RepoId;

use super::*;
use crate::{
    git::{
        Git, ObjectFormat, RefSet,
        base::{self, Base},
        index::{self, PackIndex},
        layer, pack,
    },
    metrics::Metrics,
    packs::Packs,
    protocol::pktline::{Packet, Packets},
};

/// A repository that grows by `git fast-import`.
struct Source {
    home: tempfile::TempDir,
    git: Git,
    format: ObjectFormat,
    packs: Packs,
    /// How many marks are given, and the newest of each branch.
    marks: usize,
    branches: Vec<usize>,
}

/// What happens to it, by three numbers of any size.
type Event = (u8, u8, u8);

const BRANCHES: usize = 3;

impl Source {
    async fn new(format: ObjectFormat) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("home")).unwrap();
        let git = Git::detect(&home.path().join("home"), OsStr::new("test"), true).await.unwrap();
        let packs = Packs::new(&home.path().join("packs"), 1 << 30, Metrics::new()).unwrap();
        let source = Self { home, git, format, packs, marks: 0, branches: vec![0; BRANCHES] };
        source.init(&source.dir()).await;
        source
    }

    async fn init(&self, dir: &Path) {
        let format = format!("--object-format={}", self.format.name());
        self.run(dir, &["init", "--quiet", "--bare", &format, dir.to_str().unwrap()], b"").await;
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("source.git")
    }

    async fn run(&self, dir: &Path, args: &[&str], input: &[u8]) -> String {
        let command = self.git.command(args[0]).args(&args[1..]).git_dir(dir).input(input.to_vec());
        let identity = ["AUTHOR", "COMMITTER"].into_iter().fold(command, |command, who| {
            command.env(&format!("GIT_{who}_NAME"), "t").env(&format!("GIT_{who}_EMAIL"), "t@example.com")
        });
        let output = identity.run(Duration::from_secs(60)).await;
        String::from_utf8_lossy(&output.unwrap_or_else(|error| panic!("{args:?}: {error}")).stdout)
            .into_owned()
    }

    /// Has all this happen, and packs it: what is new beside what there was, or all in one.
    async fn grow(&mut self, events: &[Event], tag: usize) {
        let mut stream = String::new();
        for event in events {
            self.happen(*event, &mut stream);
        }
        let marks = format!("--export-marks={}", self.home.path().join("marks").display());
        let import = if self.home.path().join("marks").exists() {
            format!("--import-marks={}", self.home.path().join("marks").display())
        } else {
            marks.clone()
        };
        let dir = self.dir();
        self.run(&dir, &["fast-import", "--quiet", "--force", &marks, &import], stream.as_bytes()).await;
        // Tags of tags.
        if self.branches[0] > 0 {
            let (outer, inner) = (format!("outer-{tag}"), format!("inner-{tag}"));
            self.run(&dir, &["tag", "-a", "-m", "t", &inner, "refs/heads/b0"], b"").await;
            self.run(&dir, &["tag", "-a", "-m", "t", &outer, &inner], b"").await;
        }
    }

    fn happen(&mut self, (kind, which, what): Event, stream: &mut String) {
        let branch = usize::from(which) % BRANCHES;
        let tips: Vec<usize> = self.branches.iter().copied().filter(|tip| *tip > 0).collect();
        let (own, others) = (self.branches[branch], tips.iter().filter(|tip| **tip != self.branches[branch]));
        let parents: Vec<usize> = match kind % 10 {
            // A branch without a past.
            7 => vec![],
            // History is taken away.
            8 if own > 0 => {
                let _ = writeln!(
                    stream,
                    "reset refs/heads/b{branch}\nfrom :{}\n",
                    tips[usize::from(what) % tips.len()]
                );
                return;
            }
            5 => Some(own).into_iter().chain(others.copied().take(1)).filter(|tip| *tip > 0).collect(),
            6 => Some(own).into_iter().chain(others.copied()).filter(|tip| *tip > 0).collect(),
            _ => Some(own).into_iter().filter(|tip| *tip > 0).collect(),
        };
        self.marks += 1;
        self.branches[branch] = self.marks;
        if parents.is_empty() {
            let _ = writeln!(stream, "reset refs/heads/b{branch}");
        }
        let _ = writeln!(stream, "commit refs/heads/b{branch}\nmark :{}", self.marks);
        let _ = writeln!(stream, "committer t <t@example.com> {} +0000\ndata 1\nm", 1_000_000 + self.marks);
        for (at, parent) in parents.iter().enumerate() {
            let _ = writeln!(stream, "{} :{parent}", if at == 0 { "from" } else { "merge" });
        }
        // Few versions of few files: what was there before comes back.
        let (file, version) = (usize::from(which) % 5, usize::from(what) % 8);
        let line = |at: usize| format!("{file} {at} {}\n", if at % 8 == version { version } else { 9 });
        let content: String = (0..60).map(line).collect();
        let _ = writeln!(stream, "M 100644 inline d{}/f{file}\ndata {}\n{content}", file % 2, content.len());
    }

    async fn tips(&self) -> Vec<Oid> {
        let listed = self.run(&self.dir(), &["for-each-ref", "--format=%(objectname)"], b"").await;
        listed.lines().map(|line| Oid::from_hex(line.as_bytes()).unwrap()).collect()
    }

    /// Packs everything, and makes that the base.
    async fn base(&self) -> Arc<Base> {
        self.run(&self.dir(), &["repack", "-a", "-d", "-q"], b"").await;
        let pack = std::fs::read_dir(self.dir().join("objects/pack")).unwrap();
        let mut names = pack.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name = names.find(|name| name.ends_with(".pack")).unwrap();
        base::note(&self.dir(), &name, self.tips().await).unwrap();
        Arc::new(Base::find(&self.dir(), self.format).unwrap().unwrap())
    }

    /// What is composed on the base, with the layer's pack.
    async fn compose(&self, proof: &Arc<Proof>, key: u8) -> (Arc<Recipe>, Option<Pack>) {
        let new = proof.base().index.lacks(&self.tips().await).unwrap();
        let lacking = layer::lacking(&self.git, &self.dir(), proof.base(), &new).await.unwrap();
        let oids = lacking.oids.clone();
        if oids.is_empty() {
            return (Arc::new(Recipe::new(proof.clone(), oids, 0, true).unwrap()), None);
        }
        let (git, dir) = (self.git.clone(), self.dir());
        let make = move |sink: crate::spool::Sink<_>| async move {
            let (file, _growth) = sink.for_child()?;
            let seen = file.try_clone()?;
            layer::pack(&git, &dir, lacking, file).await?;
            Ok(seen.metadata()?.len())
        };
        let id = RepoId::from_route("h/o/r").unwrap();
        let layer = self.packs.layer_or_make(&id, [key; 32], false, make).await.unwrap();
        let bytes = layer.whole().await.unwrap();
        let header = layer
            .read_part(0..HEADER)
            .try_fold(Vec::new(), async |all, chunk| Ok([all, chunk.to_vec()].concat()));
        let header = header.await.unwrap();
        assert_eq!(header, base::header(u32::try_from(oids.len()).unwrap()), "{oids:?}");
        (Arc::new(Recipe::new(proof.clone(), oids, bytes, true).unwrap()), Some(layer))
    }

    /// Has git take the pack, strictly, and compares all that the tips reach.
    async fn check(&self, pack: &[u8], name: &str) {
        let client = self.home.path().join(name);
        self.init(&client).await;
        self.run(&client, &["index-pack", "--strict", "--stdin"], pack).await;
        let tips: String = self.tips().await.iter().map(|tip| format!("{tip}\n")).collect();
        let list = ["rev-list", "--objects", "--no-object-names", "--stdin"];
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        let (asked, sent) = (
            self.run(&self.dir(), &list, tips.as_bytes()).await,
            self.run(&client, &list, tips.as_bytes()).await,
        );
        assert_eq!(sorted(asked), sorted(sent));
    }
}

/// The answer, and the pack in it.
async fn read(recipe: &Arc<Recipe>, layer: Option<Pack>) -> Result<(u64, Vec<u8>), PackError> {
    let file = Arc::new(fs::File::open(&recipe.proof().base().pack).unwrap());
    let mut chunks = Box::pin(recipe.clone().read(sideband::PACKFILE, file, layer));
    let mut answer = Vec::new();
    while let Some(chunk) = chunks.try_next().await? {
        answer.extend_from_slice(&chunk);
    }
    let pieces = Packets::new(&answer).filter_map(|packet| match packet.unwrap() {
        Packet::Data([1, piece @ ..]) => Some(piece.to_vec()),
        _ => None,
    });
    let pieces: Vec<Vec<u8>> = pieces.collect();
    Ok((answer.len() as u64, pieces.concat()))
}

async fn composes(format: ObjectFormat, before: &[Event], after: &[Event], repack: bool) {
    let mut source = Source::new(format).await;
    source.grow(&[&[(0, 0, 0)], before].concat(), 1).await;
    let base = source.base().await;
    let proof = Arc::new(Proof::new(base));
    source.grow(after, 2).await;
    if repack {
        source.run(&source.dir(), &["repack", "-d", "-q"], b"").await;
    }
    let (recipe, layer) = source.compose(&proof, 1).await;
    assert!(recipe.holds(&source.tips().await).unwrap());
    let (length, pack) = read(&recipe, layer).await.unwrap();
    assert_eq!(length, recipe.length(sideband::PACKFILE.len()));
    source.check(&pack, "client.git").await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_composed_is_a_pack_with_all_that_the_refs_reach(
        before in prop::collection::vec(any::<Event>(), 1..24),
        after in prop::collection::vec(any::<Event>(), 0..24),
        repack: bool,
        sha256: bool,
    ) {
        let format = if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 };
        runtime().block_on(composes(format, &before, &after, repack));
    }
}

/// A base that is large enough for padding: 17 MiB that no zlib makes smaller.
async fn large() -> Source {
    let mut source = Source::new(ObjectFormat::Sha1).await;
    source.grow(&[(0, 0, 0), (0, 1, 0)], 1).await;
    let noise: Vec<u8> = (0..17_u32 << 20)
        .scan(1_u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(*state >> 24).ok()
        })
        .collect();
    // The first padding blob is one that is there already.
    for content in [&noise[..], &0_u32.to_be_bytes()] {
        let oid = source.run(&source.dir(), &["hash-object", "-w", "--stdin"], content).await;
        source.run(&source.dir(), &["tag", &format!("blob-{}", content.len()), oid.trim()], b"").await;
    }
    source
}

#[tokio::test]
async fn a_large_base_is_padded_and_hashed_once_for_many_pushes() {
    let mut source = large().await;
    let proof = Arc::new(Proof::new(source.base().await));
    let (as_it_is, layer) = source.compose(&proof, 0).await;
    let (_, pack) = read(&as_it_is, layer).await.unwrap();
    assert_eq!(pack, fs::read(&proof.base().pack).unwrap(), "the base, byte for byte");
    let mut counts = Vec::new();
    for push in 1..4_u8 {
        source.grow(&[(0, push, push), (5, 0, push)], 1 + usize::from(push)).await;
        let (recipe, layer) = source.compose(&proof, push).await;
        let (length, pack) = read(&recipe, layer).await.unwrap();
        assert_eq!(length, recipe.length(sideband::PACKFILE.len()));
        source.check(&pack, &format!("client-{push}.git")).await;
        counts.push(recipe.count());
    }
    assert_eq!(counts, [u64::from(proof.base().index.count()) + 1024; 3]);
}

#[tokio::test]
async fn a_base_that_the_disk_damages_ends_the_answer_before_and_after_it_was_read_first() {
    let mut source = large().await;
    for read_before in [false, true] {
        let proof = Arc::new(Proof::new(source.base().await));
        source.grow(&[(0, 0, u8::from(read_before))], 5 + usize::from(read_before)).await;
        let (recipe, layer) = source.compose(&proof, u8::from(read_before)).await;
        if read_before {
            read(&recipe, layer.clone()).await.unwrap();
        }
        let path = &proof.base().pack;
        let mode = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        let (mut byte, reader) = ([0], fs::File::open(path).unwrap());
        reader.read_exact_at(&mut byte, 9 << 20).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 9 << 20).unwrap();
        let broken = read(&recipe, layer).await.map(|(length, _)| length);
        assert!(broken.as_ref().is_err_and(is_damaged), "{broken:?}");
        file.write_all_at(&byte, 9 << 20).unwrap();
        fs::set_permissions(path, mode).unwrap();
    }
}

#[tokio::test]
async fn a_pack_that_lacks_as_much_as_it_has_left_over_is_no_base() {
    let source = Source::new(ObjectFormat::Sha1).await;
    let dir = source.dir();
    // Each commit is three objects: itself, its tree and its file.
    let commit = |branch: &str, from: &str, number: usize| {
        format!(
            "commit refs/heads/{branch}\ncommitter t <t@example.com> {} +0000\ndata 1\nm{from}\nM 100644 inline f\n\
             data 3\n{number:03}\n",
            1_000_000 + number
        )
    };
    let first = commit("main", "", 0);
    source.run(&dir, &["fast-import", "--quiet"], first.as_bytes()).await;
    source.run(&dir, &["repack", "-d", "-q"], b"").await;
    // As a fetch brings it: a pack beside the first one. Then a branch goes.
    let mut stream = commit("main", "\nfrom refs/heads/main^0", 1);
    (2..20).for_each(|number| stream.push_str(&commit("main", "", number)));
    stream.push_str(&commit("leak", "\nfrom refs/heads/main^0", 999));
    source.run(&dir, &["fast-import", "--quiet"], stream.as_bytes()).await;
    source.run(&dir, &["repack", "-d", "-q"], b"").await;
    source.run(&dir, &["update-ref", "-d", "refs/heads/leak"], b"").await;
    source.run(&dir, &["pack-refs", "--all"], b"").await;
    let packs = index::files(&dir, "idx").unwrap();
    let counts = packs.iter().map(|idx| PackIndex::open(idx, ObjectFormat::Sha1).unwrap().count());
    let mut counts: Vec<u32> = counts.collect();
    counts.sort_unstable();
    let refs = RefSet::read(&dir, ObjectFormat::Sha1).unwrap();
    let tips: Vec<Oid> = refs.tips().collect();
    assert_eq!(layer::count(&source.git, &dir, &tips).await.unwrap(), Some(60));
    assert_eq!(counts, [3, 60], "as many objects as the branch reaches");
    layer::note_base(&source.git, &dir, &refs).await.unwrap();
    assert!(Base::find(&dir, ObjectFormat::Sha1).unwrap().is_none());
    // All in one, what nothing reaches aside.
    pack::unite(&source.git, &dir).await.unwrap();
    layer::note_base(&source.git, &dir, &refs).await.unwrap();
    let base = Base::find(&dir, ObjectFormat::Sha1).unwrap().unwrap();
    assert_eq!((base.index.count(), base.tips), (60, tips));
}
