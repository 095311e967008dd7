//! The worktree as it stands, and the edits that history makes to it.

use super::random::{Random, mix};
use super::text::{Kind, Words};

/// Of a hundred files, so many lose a little with each edit, the others gain.
///
/// git stores the largest version of a file whole and the others as deltas. Where that is not the newest, a
/// depth-1 clone must search for deltas and compress anew; where it is, the stored bytes are sent. With this
/// share it pays about what it pays for git's own repository.
const SHRINKING: usize = 50;

/// One file of the worktree.
#[derive(Debug, Clone)]
pub(super) struct File {
    /// Its path.
    pub(super) path: String,
    /// Its bytes.
    pub(super) content: Vec<u8>,
    kind: Kind,
    names: u64,
    /// The size that its next edit draws it to.
    goal: usize,
    /// Where that goes, a little with each edit.
    aim: usize,
}

/// Makes and edits files.
#[derive(Debug)]
pub(super) struct Workshop {
    /// The vocabulary.
    pub(super) words: Words,
    /// Chance.
    pub(super) random: Random,
}

impl Workshop {
    /// Names a directory below another, up to seven deep.
    pub(super) fn directory(&mut self, parent: &str) -> String {
        let name = self.words.rare(&mut self.random);
        let number = self.random.below(100);
        if parent.is_empty() { format!("{name}{number}") } else { format!("{parent}/{name}{number}") }
    }

    /// Makes a file in a directory; `serial` keeps its name apart from all others.
    pub(super) fn file(&mut self, directory: &str, serial: usize) -> File {
        let random = &mut self.random;
        // Of a hundred files: 63 code, 20 prose, 14 tables, 2 binaries; catalogues are 1 in 150.
        let (kind, extension, size) = match random.below(150) {
            0 => (Kind::Catalog, "po", random.between(50_000, 200_000)),
            1..=3 => (Kind::Binary, "bin", binary_size(random)),
            4..=25 => (Kind::Table, "json", random.between(700, 7_000)),
            26..=55 => (Kind::Prose, "md", random.between(700, 12_000)),
            _ if random.chance(7) => (Kind::Code, "c", random.between(16_000, 48_000)),
            _ if random.chance(25) => (Kind::Code, "h", random.between(400, 4_000)),
            _ => (Kind::Code, "c", random.between(1_200, 13_000)),
        };
        let path = format!("{directory}/{}_{serial}.{extension}", self.words.word(random));
        // Files of one directory share half of their names, as modules do.
        let place = directory.bytes().fold(7, |sum, byte| mix(sum, u64::from(byte)));
        let names = if random.chance(50) { place } else { mix(place, serial as u64) };
        let content = Vec::with_capacity(size + 500);
        let aim = if random.chance(SHRINKING) { size * 6 / 10 } else { size * 14 / 10 };
        let mut file = File { path, content, kind, names, goal: size, aim };
        self.grow(&mut file, size);
        file
    }

    /// Edits a file as a commit does: a few lines, some functions, or half of it.
    pub(super) fn edit(&mut self, file: &mut File) {
        match (file.kind, self.random.below(100)) {
            // Exported again: nothing of it stays.
            (Kind::Binary, 0..60) => {
                file.content.clear();
                let size = binary_size(&mut self.random);
                return self.grow(file, size);
            }
            (Kind::Binary, _) => return self.splices(file, 1, 6, (500, 9_000)),
            // Brought up to date in many places at once.
            (Kind::Catalog, _) => self.splices(file, 40, 160, (100, 300)),
            (_, 0..25) => self.splices(file, 1, 5, (60, 160)),
            (_, 25..75) => self.splices(file, 3, 12, (80, 900)),
            _ => {
                let length = file.content.len() / 25;
                self.splices(file, 9, 20, (length, length));
            }
        }
        let step = file.goal / 100;
        file.goal = file.aim.clamp(file.goal.saturating_sub(step), file.goal + step);
        if file.content.len() < file.goal {
            self.splice(file, 0, file.goal - file.content.len());
        } else {
            self.splice(file, file.content.len() - file.goal, 0);
        }
    }

    /// Replaces lines in some places, by about as many new ones.
    fn splices(&mut self, file: &mut File, fewest: usize, most: usize, length: (usize, usize)) {
        for _ in 0..self.random.between(fewest, most) {
            let length = self.random.between(length.0, length.1);
            self.splice(file, length, length);
        }
    }

    /// Replaces about `out` bytes of whole lines somewhere by about `into` new ones.
    fn splice(&mut self, file: &mut File, out: usize, into: usize) {
        let start = self.random.below(file.content.len().saturating_sub(out));
        let (from, to) = if file.kind == Kind::Binary {
            (start, file.content.len().min(start + out))
        } else {
            (line_start(&file.content, start), line_start(&file.content, start + out))
        };
        let mut fresh = File { path: String::new(), content: Vec::with_capacity(into + 500), ..*file };
        self.grow(&mut fresh, into);
        file.content.splice(from..to, fresh.content);
    }

    /// Adds lines until the file has at least `size` bytes.
    fn grow(&mut self, file: &mut File, size: usize) {
        while file.content.len() < size {
            if file.kind == Kind::Binary {
                file.content.extend_from_slice(&self.random.bits().to_le_bytes());
            } else {
                self.words.lines(file.kind, file.names, &mut self.random, &mut file.content);
            }
        }
    }
}

/// The size of an image or an archive.
fn binary_size(random: &mut Random) -> usize {
    random.between(8_000, 110_000)
}

/// The start of the line after `at`, or the end of the text.
fn line_start(text: &[u8], at: usize) -> usize {
    let tail = text.get(at..).unwrap_or_default();
    tail.iter().position(|&byte| byte == b'\n').map_or(text.len(), |newline| at + newline + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_keep_most_of_a_file_and_its_size_in_bounds() {
        let mut shop = Workshop { words: Words::new(3), random: Random::new(3) };
        let mut files = (0..).map(|serial| shop.file("src/deep", serial));
        let mut file = files.find(|file| file.kind == Kind::Code).unwrap();
        drop(files);
        for _ in 0..2_000 {
            shop.edit(&mut file);
            let size = file.content.len();
            assert!(size.abs_diff(file.goal) < 1_500, "{size} bytes of {}", file.goal);
        }
        let before = file.content.clone();
        shop.splice(&mut file, 60, 60);
        let same = before.iter().zip(&file.content).take_while(|(a, b)| a == b).count()
            + before.iter().rev().zip(file.content.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(same + 600 > before.len(), "{same} of {} bytes kept", before.len());
    }

    #[test]
    fn lines_start_after_newlines() {
        assert_eq!(line_start(b"ab\ncd\n", 1), 3);
        assert_eq!(line_start(b"ab\ncd\n", 3), 6);
        assert_eq!(line_start(b"ab\ncd\n", 60), 6);
    }
}
