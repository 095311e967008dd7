//! History: directories are imported one by one, then edited for years on a main branch, in topics that are
//! merged a while later, and in topics that are not; tags come at even distances.

use anyhow::Result;

use super::Profile;
use super::random::{Random, mix};
use super::stream::{Change, Mark, Place, Signature, Stream};
use super::text::Words;
use super::tree::{File, Workshop};

const MAIN: &str = "refs/heads/main";
/// Where commits of topics are put until their merge; removed at the end.
const SCRATCH: &str = "refs/scratch/topic";
/// 2012-01-01, the project's first day.
const FIRST_DAY: u64 = 1_325_376_000;
/// Topics under way at one time.
const TOPICS: usize = 12;

/// What was written.
#[derive(Debug)]
pub(super) struct Totals {
    /// Commits of all branches.
    pub(super) commits: u64,
    /// Files of the worktree at the tip.
    pub(super) files: u64,
    /// Bytes of that worktree.
    pub(super) worktree_bytes: u64,
}

/// A topic that will be merged: its files are nobody else's until then.
#[derive(Debug)]
struct Topic {
    tip: Mark,
    slots: Vec<usize>,
    changes: Vec<Change>,
}

/// Everything that history carries along.
#[derive(Debug)]
struct Project {
    shop: Workshop,
    stream: Stream,
    files: Vec<File>,
    taken: Vec<bool>,
    topics: Vec<Topic>,
    tip: Option<Mark>,
    serial: usize,
    now: u64,
    people: Vec<String>,
}

/// Writes the whole stream and ends it.
pub(super) fn write(stream: Stream, profile: &Profile) -> Result<Totals> {
    let mut shop = Workshop { words: Words::new(profile.seed), random: Random::new(mix(profile.seed, 1)) };
    let people = (0..400).map(|_| person(&mut shop)).collect();
    let mut project = Project {
        shop,
        stream,
        files: Vec::new(),
        taken: Vec::new(),
        topics: Vec::new(),
        tip: None,
        serial: 0,
        now: FIRST_DAY,
        people,
    };
    project.import(profile.files as usize)?;
    // Three of ten refs are branches, as in projects that keep their topics about.
    let branches = u64::from(profile.refs) * 3 / 10;
    let tags = u64::from(profile.refs).saturating_sub(branches);
    let (mut branched, mut tagged) = (1, 0);
    let start = project.stream.objects();
    while project.stream.objects() < profile.objects {
        project.step()?;
        let done = project.stream.objects() - start;
        let whole = profile.objects.saturating_sub(start).max(1);
        while tagged < tags && done * tags >= (tagged + 1) * whole {
            tagged += 1;
            project.release(tagged)?;
        }
        while branched < branches && done * branches >= branched * whole {
            project.unmerged(branched)?;
            branched += 1;
        }
    }
    while !project.topics.is_empty() {
        project.merge(0)?;
    }
    project.stream.point(SCRATCH, None)?;
    let totals = Totals {
        commits: project.stream.commits(),
        files: project.files.len() as u64,
        worktree_bytes: project.files.iter().map(|file| file.content.len() as u64).sum(),
    };
    project.stream.finish()?;
    Ok(totals)
}

/// A name and an address.
fn person(shop: &mut Workshop) -> String {
    let mut name = || shop.words.rare(&mut shop.random).to_owned();
    let (first, last) = (name(), name());
    format!("{} {} <{first}.{last}@example.org>", capital(&first), capital(&last))
}

/// A word with a capital letter.
fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_uppercase() + rest
}

impl Project {
    /// Writes the first commits: a directory each, until the worktree has its files.
    fn import(&mut self, files: usize) -> Result<()> {
        let mut directories = vec![String::new()];
        while self.files.len() < files {
            // Young directories are extended more often than the root, so the tree is deep.
            let young = directories.len() - 1 - self.shop.random.skewed(directories.len());
            let parent = if self.shop.random.chance(8) { 0 } else { young };
            let parent = directories.get(parent).map_or("", String::as_str).to_owned();
            let parent = if parent.matches('/').count() > 5 { "" } else { parent.as_str() };
            let directory = self.shop.directory(parent);
            let mut changes = Vec::new();
            for _ in 0..self.shop.random.between(3, 22) {
                let file = self.fresh(&directory);
                changes.push(Change::Write(file.path.clone(), self.stream.blob(&file.content)?));
                self.files.push(file);
                self.taken.push(false);
            }
            directories.push(directory);
            self.commit_main(None, &changes)?;
        }
        Ok(())
    }

    /// One commit of ordinary life.
    fn step(&mut self) -> Result<()> {
        match self.shop.random.below(100) {
            0..14 if self.topics.len() < TOPICS => self.open_topic(),
            14..28 if !self.topics.is_empty() => self.extend_topic(),
            28..40 if !self.topics.is_empty() => {
                let oldest = self.shop.random.skewed(self.topics.len());
                self.merge(oldest)
            }
            _ => {
                let slots = self.choose();
                let changes = self.change(&slots)?;
                self.commit_main(None, &changes)
            }
        }
    }

    fn open_topic(&mut self) -> Result<()> {
        let slots = self.choose();
        let changes = self.change(&slots)?;
        let tip = self.commit(Place { on: SCRATCH, from: self.tip, merge: None }, &changes)?;
        for &slot in &slots {
            self.take(slot, true);
        }
        self.topics.push(Topic { tip, slots, changes });
        Ok(())
    }

    fn extend_topic(&mut self) -> Result<()> {
        let at = self.shop.random.below(self.topics.len());
        let mut topic = self.topics.swap_remove(at);
        let changes = self.change(&topic.slots.clone())?;
        topic.tip = self.commit(Place { on: SCRATCH, from: Some(topic.tip), merge: None }, &changes)?;
        topic.changes.extend(changes);
        self.topics.push(topic);
        Ok(())
    }

    fn merge(&mut self, at: usize) -> Result<()> {
        let topic = self.topics.swap_remove(at);
        for &slot in &topic.slots {
            self.take(slot, false);
        }
        self.commit_main(Some(topic.tip), &topic.changes)
    }

    /// A branch that is kept and never merged: its edits are made to copies.
    fn unmerged(&mut self, number: u64) -> Result<()> {
        let name = format!("refs/heads/topic/{}-{number}", self.shop.words.rare(&mut self.shop.random));
        let mut from = self.tip;
        for _ in 0..self.shop.random.between(1, 4) {
            let mut changes = Vec::new();
            for slot in self.choose() {
                let Some(mut file) = self.files.get(slot).cloned() else { continue };
                self.shop.edit(&mut file);
                changes.push(Change::Write(file.path, self.stream.blob(&file.content)?));
            }
            from = Some(self.commit(Place { on: &name, from, merge: None }, &changes)?);
        }
        Ok(())
    }

    /// Tags the tip: two of three times with a message of its own.
    fn release(&mut self, number: u64) -> Result<()> {
        let Some(tip) = self.tip else { return Ok(()) };
        let name = format!("v{}.{}.{}", number / 60, number / 6 % 10, number % 6);
        if number.is_multiple_of(3) {
            return self.stream.point(&format!("refs/tags/{name}"), Some(tip));
        }
        let by = self.signature();
        let message = format!("Release {name}\n\n{}", self.message());
        self.stream.tag(&name, tip, &by, &message)
    }

    /// Chooses files for one commit: neighbours, because a change stays in its directory. Never a taken one.
    fn choose(&mut self) -> Vec<usize> {
        let random = &mut self.shop.random;
        // The smaller of two draws: old files are edited more often than young ones.
        let first = random.below(self.files.len()).min(random.below(self.files.len()));
        let count = if random.chance(45) { 1 } else { random.between(2, 5) };
        (first..self.files.len()).filter(|&slot| self.taken.get(slot) == Some(&false)).take(count).collect()
    }

    /// Edits files, or replaces one by another now and then.
    fn change(&mut self, slots: &[usize]) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for &slot in slots {
            let Some(mut file) = self.files.get(slot).cloned() else { continue };
            let fate = self.shop.random.below(1_000);
            if fate < 20 && self.taken.get(slot) == Some(&false) {
                changes.push(Change::Delete(file.path.clone()));
                file = self.sibling(&file);
            } else {
                self.shop.edit(&mut file);
            }
            changes.push(Change::Write(file.path.clone(), self.stream.blob(&file.content)?));
            if let Some(place) = self.files.get_mut(slot) {
                *place = file;
            }
        }
        Ok(changes)
    }

    fn sibling(&mut self, file: &File) -> File {
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        self.fresh(&directory)
    }

    fn fresh(&mut self, directory: &str) -> File {
        self.serial += 1;
        self.shop.file(directory, self.serial)
    }

    fn take(&mut self, slot: usize, taken: bool) {
        if let Some(mark) = self.taken.get_mut(slot) {
            *mark = taken;
        }
    }

    fn commit_main(&mut self, merge: Option<Mark>, changes: &[Change]) -> Result<()> {
        self.tip = Some(self.commit(Place { on: MAIN, from: self.tip, merge }, changes)?);
        Ok(())
    }

    fn commit(&mut self, place: Place<'_>, changes: &[Change]) -> Result<Mark> {
        let by = self.signature();
        let message = self.message();
        self.stream.commit(place, &by, &message, changes)
    }

    fn signature(&mut self) -> Signature {
        // Ten years for fifty thousand commits.
        self.now += self.shop.random.between(60, 12_600) as u64;
        let at = self.shop.random.skewed(self.people.len());
        Signature { who: self.people.get(at).cloned().unwrap_or_default(), when: self.now }
    }

    /// A subject, up to three paragraphs, and who signed it off.
    fn message(&mut self) -> String {
        let Workshop { words, random } = &mut self.shop;
        let mut text = format!("{}: ", words.word(random)).into_bytes();
        let subject = random.between(3, 9);
        words.phrase(random, subject, &mut text);
        text.push(b'\n');
        for _ in 0..random.below(4) {
            for _ in 0..random.between(2, 6) {
                text.push(b'\n');
                words.phrase(random, 11, &mut text);
            }
            text.extend_from_slice(b".\n");
        }
        let by = random.skewed(self.people.len());
        let by = self.people.get(by).map_or("", String::as_str);
        text.extend_from_slice(format!("\nSigned-off-by: {by}\n").as_bytes());
        String::from_utf8_lossy(&text).into_owned()
    }
}
