//! Text that compresses and changes as a project's own does: a vocabulary used as words are used (few often,
//! most rarely), names that belong to their file, and templates of code, prose, catalogues and tables.

use super::random::{Random, mix};

const ONSETS: [&str; 24] = [
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "l", "m", "n", "p", "pr", "r", "s", "sh",
    "st", "t", "tr", "v", "w",
];
const VOWELS: [&str; 10] = ["a", "e", "i", "o", "u", "ea", "ai", "ou", "ie", "oo"];
const CODAS: [&str; 14] = ["", "", "", "n", "r", "s", "t", "l", "ck", "nd", "st", "m", "ng", "rd"];

/// Placeholders: `i` a name of this file, `g` a name of the project, `t` a type, `c` a constant, `n` a number,
/// `w` a word, `s` a phrase, `x` sixteen hexadecimal digits.
const CODE: [&str; 28] = [
    "\tif (%i < 0)\n\t\treturn error(_(\"%s: '%%s'\"), %i->%w);\n",
    "\tif (!%i)\n\t\tBUG(\"%s\");\n",
    "\t%i = %g(%i, %i->%w);\n",
    "\t%i->%w = %i->%w + %n;\n",
    "\tfor (%i = 0; %i < %i->nr; %i++)\n\t\t%g(%i->%w[%i], %i);\n",
    "\tstruct %t *%i = %g(%i);\n",
    "\tint %i = %n, %i = -1;\n",
    "\t/* %s %s */\n",
    "\tswitch (%i->%w) {\n\tcase %c:\n\t\t%g(%i);\n\t\tbreak;\n\tdefault:\n\t\t%i = %n;\n\t}\n",
    "\twhile (%i && %i->%w != %c)\n\t\t%i = %i->next;\n",
    "\treturn %g(%i, %c | %c);\n",
    "\tstrbuf_addf(&%i, \"%s: %%d\\n\", %i->%w);\n",
    "\tmemcpy(%i->%w, %i, sizeof(*%i) * %n);\n",
    "\tif (%i & %c) {\n\t\t%i |= %c;\n\t\t%g(%i, NULL);\n\t}\n",
    "\tfree(%i->%w);\n",
    "\ttrace_printf(\"%s %%s\", %i);\n",
    "}\n\nstatic int %i_%w(struct %t *%i, const char *%i)\n{\n",
    "}\n\nvoid %g_%w(struct %t *%i)\n{\n\tsize_t %i = %n;\n\n",
    "#define %c 0x%x\n",
    "static const char *%i_%w = \"%s\";\n",
    "\tassert(%i->%w <= %n && \"%s\");\n",
    "\tif (%g(%i) && %i->%w == %c)\n\t\tgoto %w;\n",
    "\t%i->%w = xcalloc(%n, sizeof(struct %t));\n",
    "\tif (%i > %n)\n\t\tdie(_(\"%s\"));\n",
    "\t/*\n\t * %s %s\n\t * %s.\n\t */\n",
    "\thashmap_put(&%i->%w, %i, %g);\n",
    "\tlist_for_each(%i, &%i->%w) {\n\t\tstruct %t *%w = list_entry(%i, struct %t, %w);\n\t}\n",
    "\n",
];
const PROSE: [&str; 8] = [
    "%s %s %s.\n",
    "%s, %s\n%s.\n",
    "The `%i` %s\n%s %s.\n",
    "\n",
    "- `--%w`: %s %s\n  %s (default %n).\n",
    "\n## %s\n\n",
    "    $ %w %g --%w=%n %i\n",
    "See also %g(%n): %s %s.\n",
];
const CATALOG: [&str; 3] = [
    "#: %w/%i.c:%n\nmsgid \"%s %s\"\nmsgstr \"%s %s %w\"\n\n",
    "#: %w/%i.c:%n %i.c:%n\n#, c-format\nmsgid \"%s: '%%s'\"\nmsgstr \"%s %w: «%%s»\"\n\n",
    "#: %g.c:%n\nmsgid \"%w\"\nmsgstr \"%w\"\n\n",
];
const TABLE: [&str; 4] = [
    "  {\"id\": \"%x\", \"name\": \"%i\", \"value\": %n},\n",
    "  {\"id\": \"%x\", \"name\": \"%g\", \"tags\": [\"%w\", \"%w\"], \"note\": \"%s\"},\n",
    "  {\"id\": \"%x\", \"%w\": {\"min\": %n, \"max\": %n, \"unit\": \"%w\"}},\n",
    "  {\"id\": \"%x\", \"digest\": \"%x%x%x%x\"},\n",
];

/// What a file holds, and so how its lines read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Functions.
    Code,
    /// Paragraphs.
    Prose,
    /// Pairs of messages, in large files that change in many places at once.
    Catalog,
    /// Records with digests.
    Table,
    /// Bytes that hardly compress.
    Binary,
}

impl Kind {
    fn templates(self) -> &'static [&'static str] {
        match self {
            Self::Code | Self::Binary => &CODE,
            Self::Prose => &PROSE,
            Self::Catalog => &CATALOG,
            Self::Table => &TABLE,
        }
    }
}

/// The project's vocabulary.
#[derive(Debug)]
pub(super) struct Words(Vec<String>);

impl Words {
    /// Makes the vocabulary that belongs to a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(mix(seed, 0x776f_7264));
        let word = |rank: usize| {
            // Common words are short ones.
            let syllables = if rank < 60 { 1 } else { random.between(1, 2 + rank / 3000) };
            (0..syllables)
                .map(|_| [*random.pick(&ONSETS), *random.pick(&VOWELS), *random.pick(&CODAS)].concat())
                .collect()
        };
        Self((0..4096).map(word).collect())
    }

    /// Draws a word, common ones more often.
    pub(super) fn word(&self, random: &mut Random) -> &str {
        self.at(random.skewed(self.0.len()))
    }

    /// Draws any word, each as often as the others.
    pub(super) fn rare(&self, random: &mut Random) -> &str {
        self.at(random.below(self.0.len()))
    }

    /// Adds `count` words of prose.
    pub(super) fn phrase(&self, random: &mut Random, count: usize, out: &mut Vec<u8>) {
        for at in 0..count {
            if at > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(self.word(random).as_bytes());
        }
    }

    /// Adds one template's lines; `file` decides which names belong to the file.
    pub(super) fn lines(&self, kind: Kind, file: u64, random: &mut Random, out: &mut Vec<u8>) {
        let mut template = random.pick(kind.templates()).bytes();
        while let Some(byte) = template.next() {
            if byte != b'%' {
                out.push(byte);
                continue;
            }
            match template.next() {
                Some(b'i') => self.name(mix(file, random.skewed(24) as u64), out),
                Some(b'g') => self.name(random.skewed(6000) as u64, out),
                Some(b't') => self.name(mix(file, 1000 + random.skewed(8) as u64), out),
                Some(b'c') => {
                    let from = out.len();
                    self.name(mix(file, 2000 + random.skewed(16) as u64), out);
                    out.split_at_mut(from).1.make_ascii_uppercase();
                }
                Some(b'n') => {
                    let digits = random.between(1, 4) as u32;
                    out.extend_from_slice(random.below(10_usize.pow(digits)).to_string().as_bytes());
                }
                Some(b'w') => out.extend_from_slice(self.word(random).as_bytes()),
                Some(b's') => {
                    let count = random.between(2, 7);
                    self.phrase(random, count, out);
                }
                Some(b'x') => out.extend_from_slice(format!("{:016x}", random.bits()).as_bytes()),
                Some(other) => out.push(other),
                None => out.push(byte),
            }
        }
    }

    /// Adds the identifier that belongs to a number: one to three words.
    fn name(&self, number: u64, out: &mut Vec<u8>) {
        let mut random = Random::new(mix(number, 0x6e61_6d65));
        for at in 0..random.between(1, 3) {
            if at > 0 {
                out.push(b'_');
            }
            out.extend_from_slice(self.rare(&mut random).as_bytes());
        }
    }

    fn at(&self, index: usize) -> &str {
        self.0.get(index).map_or("tarn", String::as_str)
    }
}
