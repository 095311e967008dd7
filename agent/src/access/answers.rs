//! What others said of callers, kept for a short while: a yes for a minute, a no for seconds.
//!
//! Who asks for what is being asked about waits for that answer: a thousand requests with one token are one question. An
//! answer counts from when it was asked for, so that what was revoked since is seen in time. Nothing is kept but a keyed
//! hash of the credential.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Refusal;

/// How long a yes holds: the longest that a revoked token or a removed right goes on opening anything.
pub(super) const ALLOW: Duration = Duration::from_secs(60);

/// How long a no holds: the longest that a new right goes unseen.
pub(super) const DENY: Duration = Duration::from_secs(5);

/// How long nobody is asked again after no answer: those who wait need not each find out.
const AWAY: Duration = Duration::from_secs(1);

/// The most answers kept: about 3 MB. More callers than that are asked about more often.
const MAX_KEPT: usize = 20_000;

/// What an answer is filed under.
pub(super) type Key = blake3::Hash;

/// Makes keys that are of no use outside this process.
pub(super) struct Hashes([u8; 32]);

impl Hashes {
    pub(super) fn new() -> Self {
        Self(rand::random())
    }

    /// The key of these parts; no two lists of parts are the same text.
    pub(super) fn key(&self, purpose: &str, parts: &[&[u8]]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Answers to one kind of question.
pub(super) struct Answers<V>(Mutex<HashMap<Key, Arc<Question<V>>>>);

struct Question<V> {
    answer: Mutex<Option<Answer<V>>>,
    /// Held by whoever asks.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Answer<V> {
    said: Result<V, Refusal>,
    until: Instant,
}

impl<V> Default for Answers<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> Answers<V> {
    /// The answer filed under `key`, if it still holds; else what `ask` brings. A dropped future leaves the question to
    /// the next who waits for it.
    pub(super) async fn get(
        &self,
        key: Key,
        ask: impl Future<Output = Result<V, Refusal>>,
    ) -> Result<V, Refusal> {
        let question = self.question(key);
        if let Some(said) = question.known() {
            return said;
        }
        let _asking = question.asking.lock().await;
        if let Some(said) = question.known() {
            return said;
        }
        let asked = Instant::now();
        let said = ask.await;
        let holds = match &said {
            Ok(_) => ALLOW,
            // From now on: whoever waited for it must see it.
            Err(Refusal::Away(_) | Refusal::TooMany(_)) => asked.elapsed() + AWAY,
            Err(_) => DENY,
        };
        *lock(&question.answer) = Some(Answer { said: said.clone(), until: asked + holds });
        said
    }

    fn question(&self, key: Key) -> Arc<Question<V>> {
        let mut all = lock(&self.0);
        if let Some(question) = all.get(&key) {
            return question.clone();
        }
        if all.len() >= MAX_KEPT {
            // Those that somebody waits for stay, and yeses before noes: strangers do not push out who is let in.
            all.retain(|_, question| Arc::strong_count(question) > 1 || question.is_yes());
            if all.len() >= MAX_KEPT {
                all.retain(|_, question| Arc::strong_count(question) > 1);
            }
        }
        let question = Arc::new(Question { answer: Mutex::default(), asking: tokio::sync::Mutex::default() });
        all.insert(key, question.clone());
        question
    }
}

impl<V: Clone> Question<V> {
    fn known(&self) -> Option<Result<V, Refusal>> {
        let answer = lock(&self.answer);
        answer.as_ref().filter(|answer| Instant::now() < answer.until).map(|answer| answer.said.clone())
    }

    fn is_yes(&self) -> bool {
        self.known().is_some_and(|said| said.is_ok())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole values are replaced: a panic leaves none half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_two_lists_of_parts_have_one_key() {
        let hashes = Hashes::new();
        let keys = [
            hashes.key("a", &[b"bc"]),
            hashes.key("ab", &[b"c"]),
            hashes.key("a", &[b"b", b"c"]),
            hashes.key("a", &[b"", b"bc"]),
            Hashes::new().key("a", &[b"bc"]),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(keys.iter().skip(at + 1).all(|other| other != key));
        }
    }

    #[tokio::test]
    async fn many_who_ask_the_same_at_once_are_one_question() {
        let (answers, hashes, asked) = (Answers::default(), Hashes::new(), AtomicUsize::new(0));
        let ask = |key: Key| {
            answers.get(key, async {
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(7)
            })
        };
        let (one, two) = (hashes.key("q", &[b"1"]), hashes.key("q", &[b"2"]));
        let all = futures_util::future::join_all((0..50).map(|_| ask(one))).await;
        assert!(all.iter().all(|said| *said == Ok(7)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        ask(two).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2, "another key is another question");
    }

    #[tokio::test]
    async fn no_answer_is_told_to_all_who_wait_and_is_no_yes() {
        let (answers, key, asked) =
            (Answers::<()>::default(), Hashes::new().key("q", &[]), AtomicUsize::new(0));
        let ask = || {
            answers.get(key, async {
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(Refusal::Away("gone".into()))
            })
        };
        let all = futures_util::future::join_all((0..10).map(|_| ask())).await;
        assert!(all.iter().all(|said| matches!(said, Err(Refusal::Away(_)))));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn strangers_do_not_push_out_who_is_let_in() {
        let (answers, hashes) = (Answers::default(), Hashes::new());
        let friend = hashes.key("q", &[b"friend"]);
        answers.get(friend, async { Ok(()) }).await.unwrap();
        for stranger in 0..MAX_KEPT + 10 {
            let key = hashes.key("q", &[&stranger.to_le_bytes()]);
            let no = async { Err(Refusal::Unauthenticated(String::new())) };
            assert!(answers.get(key, no).await.is_err());
            assert!(lock(&answers.0).len() <= MAX_KEPT);
        }
        let unasked = async { panic!("the friend is still known") };
        answers.get(friend, unasked).await.unwrap();
    }
}
