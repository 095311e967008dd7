use std::time::Duration;

use tarn_crds::{manifest::read, v1alpha1::Access};

use super::*;

const HEAD: &str = "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\n";

fn text(text: &str) -> Content {
    Content::Text(text.into())
}

fn mirror(name: &str, spec: &str) -> String {
    format!("{HEAD}metadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn secret(metadata: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, {metadata}}}\nstringData: {{bearerToken: canary}}\n"
    )
}

const ALLOWED: &str = "labels: {tarn.dev/credentials: 'true'}, annotations: {tarn.dev/hosts: h}";

/// Declarations, and the fleet that follows them.
struct World {
    declarations: Declarations,
    now: Instant,
    mirrors: BTreeMap<RepoId, Settings>,
    idle: BTreeMap<RepoId, Reason>,
    refused: Arc<Refused>,
    complete: bool,
    /// Mirrors that were told of a change.
    told: usize,
}

impl World {
    fn new(rules: Rules) -> Self {
        let declarations = Declarations::new(Vec::new(), rules);
        let (mirrors, idle, refused) = Default::default();
        Self { declarations, now: Instant::now(), mirrors, idle, refused, complete: false, told: 0 }
    }

    fn of(files: &[(&str, Content)]) -> Self {
        let mut new = Self::new(Rules::default());
        new.put(files);
        new
    }

    /// Puts files in place, or takes them away, and follows what that means.
    fn put(&mut self, files: &[(&str, Content)]) {
        for (file, content) in files {
            let source = Source { file: (*file).into(), content: content.clone() };
            self.declarations.set((None, (*file).into()), source);
        }
        self.follow();
    }

    fn take(&mut self, file: &str) {
        self.declarations.remove(&(None, file.into()));
        self.follow();
    }

    fn follow(&mut self) {
        let Delta { changes, refused, news: _, complete } = self.declarations.delta(self.now);
        self.told = changes.len();
        self.complete = complete;
        self.refused = refused.unwrap_or_else(|| self.refused.clone());
        for (repo, standing) in changes {
            self.mirrors.remove(&repo);
            self.idle.remove(&repo);
            match standing {
                Standing::Runs(settings) => drop(self.mirrors.insert(repo, *settings)),
                Standing::Refused(reason) => drop(self.idle.insert(repo, reason)),
                Standing::Undeclared => {}
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.mirrors.values().map(|settings| settings.name.as_str()).collect()
    }

    fn only(&self) -> &Settings {
        assert_eq!(self.mirrors.len(), 1, "{:?}", self.refused);
        self.mirrors.values().next().unwrap()
    }

    fn stalled(&self) -> &Stalled {
        self.refused.stalled.first().unwrap()
    }

    fn rejected(&self) -> &Rejected {
        self.refused.rejected.first().unwrap()
    }

    /// Those without a hand in another process's memory.
    fn restarted(&mut self, rules: Rules) -> Self {
        let followed = self.declarations.take_followed().unwrap();
        let mut new = Self::new(rules);
        new.declarations.resume(followed);
        new
    }
}

#[test]
fn two_declarations_of_one_repository_stall_the_second() {
    let one = mirror("one", "url: https://h/o/r.git");
    let two = mirror("two", "url: 'ssh://git@h/o/r'");
    let mut world = World::of(&[("b.yaml", text(&two))]);
    assert_eq!(world.names(), ["two"]);
    world.put(&[("a.yaml", text(&one))]);
    assert_eq!(world.names(), ["one"]);
    assert_eq!((world.stalled().name.as_str(), world.stalled().reason), ("two", Reason::DuplicateUrl));
    assert!(world.stalled().message.contains("GitMirror one"), "{}", world.stalled().message);
    world.take("a.yaml");
    assert_eq!((world.names(), world.refused.stalled.len()), (vec!["two"], 0));
    world.take("b.yaml");
    assert!(world.mirrors.is_empty() && world.complete);
}

#[test]
fn of_many_declarations_one_change_touches_one_mirror() {
    let count = 5_000;
    let mut world = World::new(Rules::default());
    for at in 0..count {
        let file = format!("{at}.yaml");
        let spec = format!("url: https://h/o/r{at}, access: Anonymous, secretRef: {{name: s{}}}", at % 10);
        world
            .declarations
            .set((None, file.clone()), Source { file, content: text(&mirror(&format!("m{at}"), &spec)) });
    }
    for at in 0..10 {
        let secret = secret(ALLOWED).replace("name: s,", &format!("name: s{at},"));
        let file = format!("s{at}.yaml");
        world.declarations.set((None, file.clone()), Source { file, content: text(&secret) });
    }
    world.follow();
    assert_eq!((world.told, world.mirrors.len()), (count, count));
    let edited = "url: https://h/o/r7, access: Anonymous, interval: 1h, secretRef: {name: s7}";
    world.put(&[("7.yaml", text(&mirror("m7", edited)))]);
    assert_eq!(world.told, 1);
    world.put(&[("7.yaml", text(&mirror("m7", edited)))]);
    assert_eq!(world.told, 0, "nothing has changed");
    world.put(&[("4999.yaml", text("kind: [GitMirror"))]);
    assert_eq!(world.told, 0, "a bad edit takes nothing away");
    world.put(&[(
        "s7.yaml",
        text(&secret(ALLOWED).replace("name: s,", "name: s7,").replace("canary", "new")),
    )]);
    assert_eq!(world.told, count / 10, "a Secret, those that name it");
    world.take("8.yaml");
    assert_eq!((world.told, world.mirrors.len()), (1, count - 1));
}

#[test]
fn a_bad_edit_takes_nothing_away() {
    let good = text(&mirror("one", "url: https://h/o/r"));
    let bad = text(&mirror("one", "url: https://h/o/r, intervall: 1m"));
    let mut world = World::of(&[("a.yaml", good)]);
    let before = world.only().clone();
    for _ in 0..2 {
        world.put(&[("a.yaml", bad.clone()), ("b.yaml", text(""))]);
        assert_eq!(*world.only(), before);
        assert_eq!(
            (world.rejected().file.as_str(), world.rejected().field.as_str()),
            ("a.yaml", "spec.intervall")
        );
        assert!(world.complete, "what can be read is known");
    }
    // Nor in the next process.
    let mut next = world.restarted(Rules::default());
    next.put(&[("a.yaml", bad)]);
    assert_eq!(*next.only(), before);
    world.take("a.yaml");
    assert!(world.mirrors.is_empty() && world.complete);
}

#[test]
fn a_bad_edit_of_a_secret_takes_nothing_away_either() {
    let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
    let good = secret(ALLOWED);
    let mut world = World::of(&[("a.yaml", text(&mirror("one", spec))), ("b.yaml", text(&good))]);
    let before = world.only().clone();
    for _ in 0..2 {
        world.put(&[("b.yaml", text(&good.replace("stringData", "stringDate")))]);
        assert_eq!(*world.only(), before);
    }
    world.put(&[("b.yaml", text(""))]);
    assert_eq!(world.stalled().reason, Reason::SecretNotFound);
    assert!(world.only().credentials.is_err(), "without the document, the credentials are gone");
}

#[test]
fn a_rejected_document_keeps_no_others_access_loose_and_no_credential() {
    let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
    let bad = ("0.yaml", text(&mirror("zero", "url: https://h/o/zero, intervall: 1m")));
    let open = ("a.yaml", text(&mirror("one", spec)));
    let mut world = World::of(&[bad, open.clone(), ("b.yaml", text(&secret(ALLOWED)))]);
    assert!(world.only().credentials.is_ok());
    for gone in [String::new(), secret("labels: {tarn.dev/credentials: 'true'}")] {
        world.put(&[("b.yaml", text(&gone))]);
        assert!(world.only().credentials.is_err(), "{gone}");
    }
    // There are no tokens: nobody can be let in.
    world.put(&[
        ("a.yaml", text(&mirror("one", &spec.replace("Anonymous", "Authenticated")))),
        ("b.yaml", text(&secret(ALLOWED))),
    ]);
    assert_eq!((world.mirrors.len(), world.stalled().reason), (0, Reason::AccessUnsupported));
    assert!(world.complete, "a rejected document stops no eviction");
    world.put(&[open]);
    assert!(world.only().credentials.is_ok());
}

#[test]
fn a_spoilt_document_lets_in_nobody_whom_it_would_not_let_in_now() {
    let start = "url: https://h/o/r, access: Anonymous";
    let idle = |world: &World| world.idle.values().copied().collect::<Vec<_>>();
    for spoilt in [
        "url: https://h/o/r, access: Upstream, intervall: 1m",
        "url: https://h/o/r, access: Upsteram",
        "url: https://h/o/r, secretRef: {name: s}, intervall: 1m",
        "url: https://h/o/r, access: RBAC",
    ] {
        let mut world = World::of(&[("a.yaml", text(&mirror("one", start)))]);
        let mut next = world.restarted(Rules::default());
        for world in [&mut world, &mut next] {
            world.put(&[("a.yaml", text(&mirror("one", spoilt)))]);
            assert_eq!((world.mirrors.len(), idle(world)), (0, vec![Reason::AccessUnsupported]), "{spoilt}");
            world.put(&[("a.yaml", text(&mirror("one", start)))]);
            assert_eq!(world.names(), ["one"]);
        }
    }
    // Of one that cannot be read at all nobody knows; one that would be of another repository changes nothing here.
    for spoilt in [
        "url: [",
        "url: 'file:///o/r', access: Anonymous",
        "url: https://h/o/other, access: Anonymous, intervall: 1m",
    ] {
        let mut world = World::of(&[("a.yaml", text(&mirror("one", start)))]);
        let before = world.only().clone();
        world.put(&[("a.yaml", text(&mirror("one", spoilt)))]);
        assert_eq!(world.mirrors.values().next(), Some(&before), "{spoilt}");
    }
    // What stands beside it is followed as it is: a document that is gone is gone.
    let two = mirror("one", start) + "---\n" + &mirror("two", "url: https://h/o/two");
    let mut world = World::of(&[("a.yaml", text(&two))]);
    world.put(&[("a.yaml", text(&mirror("one", "url: https://h/o/r, access: Anonymous, intervall: 1m")))]);
    assert_eq!(world.names(), ["one"]);
}

#[test]
fn a_secret_that_is_away_leaves_what_is_here_to_those_who_had_it() {
    let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
    let good = text(&secret(ALLOWED));
    let mut world = World::of(&[("a.yaml", text(&mirror("one", spec))), ("b.yaml", good.clone())]);
    let before = world.only().clone();
    for gone in [text(""), text(&secret("labels: {tarn.dev/credentials: 'true'}"))] {
        world.put(&[("b.yaml", gone)]);
        let missing = world.only().credentials.clone().unwrap_err();
        assert_eq!((missing.reason, &missing.message), (world.stalled().reason, &world.stalled().message));
        assert!(missing.since.is_some());
        assert!(!missing.is_final(world.now));
        // The time runs from when they went, and not anew with each edit.
        world.now += Duration::from_secs(60);
        world.put(&[("a.yaml", text(&mirror("one", &format!("{spec}, interval: 1h"))))]);
        assert_eq!(world.only().credentials.clone().unwrap_err().since, missing.since);
        world.put(&[("a.yaml", text(&mirror("one", spec))), ("b.yaml", good.clone())]);
        assert_eq!((world.only(), world.refused.stalled.len()), (&before, 0));
    }
    // A looser access without credentials opens nothing, and neither does another GitMirror.
    world.put(&[("b.yaml", text(""))]);
    for other in [mirror("one", &spec.replace("Anonymous", "Upstream")), mirror("two", spec)] {
        world.put(&[("a.yaml", text(&other))]);
        assert!(world.mirrors.is_empty());
        let idle: Vec<_> = world.idle.values().collect();
        assert_eq!(idle, [&Reason::SecretNotFound], "it is declared all the same");
    }
}

#[test]
fn objects_of_a_cluster_are_judged_as_documents_are() {
    let object = |text: &str| Content::Object(Box::new(read(text).remove(0).unwrap()));
    let spec = "url: https://h/o/r, secretRef: {name: s}";
    let (one, creds) = (object(&mirror("one", spec)), object(&secret(ALLOWED)));
    let rules = Rules { in_cluster: true, ..Rules::default() };
    let mut world = World::new(rules.clone());
    world.put(&[("Secret/s", Content::Awaited), ("GitMirror/one", one.clone())]);
    let idle: Vec<_> = world.idle.values().collect();
    assert_eq!((idle, world.complete), (vec![&Reason::Pending], false), "nobody is blamed");
    assert_eq!(world.declarations.take_named(), [("s".to_owned(), true)]);
    world.put(&[("Secret/s", creds.clone())]);
    assert_eq!((world.only().access, world.complete), (Access::Rbac, true));
    // While something it needs is being asked for, it goes on with what it had.
    let before = world.only().clone();
    world.put(&[("Secret/s", Content::Awaited)]);
    assert_eq!(*world.only(), before);
    let denied = Content::Unreadable("cannot be read: for reasons".into());
    let mut other = World::new(rules.clone());
    other.put(&[("GitMirror/one", one), ("Secret/s", denied)]);
    assert_eq!(other.stalled().message, "the Secret s cannot be read: for reasons");
    assert!(other.mirrors.is_empty());
    other.take("Secret/s");
    assert_eq!(other.stalled().reason, Reason::SecretNotFound);
    other.put(&[("GitMirror/one", object(&mirror("one", "url: https://h/o/r")))]);
    assert_eq!(other.declarations.take_named(), [("s".to_owned(), false)]);
}

#[test]
fn an_agent_that_starts_alone_follows_what_was_followed_last() {
    let rules = Rules { in_cluster: true, ..Rules::default() };
    let spec = "url: https://h/o/r, secretRef: {name: s}";
    let mut world = World::new(rules.clone());
    world.put(&[
        ("GitMirror/open", text(&mirror("open", "url: https://h/o/open"))),
        ("GitMirror/one", text(&mirror("one", spec))),
        (
            "GitMirror/never",
            text(&mirror("never", &spec.replace("o/r", "o/never").replace("name: s", "name: t"))),
        ),
        ("Secret/s", text(&secret(ALLOWED))),
    ]);
    let mut next = world.restarted(rules);
    next.put(&[("Secret/s", Content::Awaited)]);
    assert_eq!(next.names(), ["open"], "where the API server answers, the Secret is waited for");
    next.declarations.be_alone();
    next.follow();
    assert_eq!(next.names(), ["open", "one"], "what never ran is not taken up");
    let (open, one) = (
        &next.mirrors[&RepoId::from_route("h/o/open").unwrap()],
        &next.mirrors[&RepoId::from_route("h/o/r").unwrap()],
    );
    assert_eq!((open.access, open.credentials.is_ok()), (Access::Anonymous, true));
    assert_eq!((one.access, one.credentials.clone().unwrap_err().since), (Access::Rbac, None));
    // The API server cannot say: that is no removal.
    next.put(&[("Secret/s", Content::Unreadable("cannot be read: it is away".into()))]);
    assert_eq!(next.names(), ["open", "one"]);
    // It can: the Secret has gone, and one GitMirror.
    next.take("GitMirror/open");
    next.take("Secret/s");
    assert_eq!(next.names(), ["one"]);
    assert!(next.only().credentials.clone().unwrap_err().since.is_some());
    next.put(&[("Secret/s", text(&secret(ALLOWED)))]);
    assert_eq!(next.only(), &world.mirrors[&RepoId::from_route("h/o/r").unwrap()]);
    // What this agent may not follow, it does not take up.
    assert_eq!(world.declarations.take_followed().map(|all| all.len()), None);
    let mut elsewhere = Declarations::new(Vec::new(), Rules::default());
    let mut spec = tarn_crds::v1alpha1::GitMirrorSpec::for_url("https://h/o/r");
    spec.access = Some(Access::Rbac);
    let declared = Arc::new(Declared { name: "one".into(), spec });
    let followed = Followed { position: ((None, "GitMirror/one".into()), 1), declared };
    elsewhere.resume(vec![followed]);
    assert_eq!(elsewhere.delta(Instant::now()).changes, []);
}

#[test]
fn what_needs_a_flag_or_a_cluster_says_so() {
    let file = World::of(&[("a.yaml", text(&mirror("one", "url: 'file:///srv/r.git'")))]);
    assert!(file.rejected().reason.contains("--allow-file-upstreams"));
    for spec in ["url: https://h/o/r, access: RBAC", "url: https://h/o/r, secretRef: {name: s}"] {
        let rbac = World::of(&[("a.yaml", text(&mirror("one", spec)))]);
        assert_eq!(rbac.rejected().field, "spec.access");
        assert!(rbac.rejected().reason.contains("needs a Kubernetes cluster"), "{}", rbac.rejected().reason);
        let idle: Vec<_> = rbac.idle.values().collect();
        assert_eq!(idle, [&Reason::AccessUnsupported], "it is declared all the same");
    }
    let tokens = text(&mirror("one", "url: https://h/o/r, access: Authenticated"));
    let world = World::of(&[("a.yaml", tokens.clone())]);
    assert_eq!(world.stalled().reason, Reason::AccessUnsupported);
    assert!(world.stalled().message.contains("--tokens"), "{}", world.stalled().message);
    let mut world = World::new(Rules { tokens: true, ..Rules::default() });
    world.put(&[("a.yaml", tokens)]);
    assert_eq!(world.names(), ["one"]);
}

#[test]
fn a_mirror_of_a_host_that_is_not_on_the_list_is_stalled() {
    let rules = |entries: &[&str]| {
        let entries = entries.iter().map(|entry| entry.parse().unwrap()).collect();
        Rules { allowed: Arc::new(AllowedHosts::new(entries)), ..Rules::default() }
    };
    let source = text(&mirror("one", "url: https://h/o/r"));
    let mut world = World::new(rules(&["github.com", "*.corp"]));
    world.put(&[("a.yaml", source.clone())]);
    assert_eq!((world.stalled().reason, world.mirrors.len()), (Reason::UpstreamNotAllowed, 0));
    let told = &world.stalled().message;
    assert!(told.contains("spec.upstreams.allowedHosts") && told.contains("--allow-upstream"), "{told}");
    let mut world = World::new(rules(&["github.com", "h"]));
    world.put(&[("a.yaml", source.clone())]);
    assert_eq!(world.names(), ["one"]);
    // What an earlier process was allowed goes on for nobody.
    let mut next = world.restarted(rules(&["github.com"]));
    next.put(&[("a.yaml", source)]);
    assert_eq!((next.stalled().reason, next.mirrors.len()), (Reason::UpstreamNotAllowed, 0));
}

#[test]
fn a_secret_is_used_only_for_the_hosts_it_lists() {
    let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
    let try_with = |secret: &str| World::of(&[("a.yaml", text(&(mirror("one", spec) + "---\n" + secret)))]);
    let label = "labels: {tarn.dev/credentials: 'true'}";
    for (secret, reason) in [
        (String::new(), Reason::SecretNotFound),
        (secret(""), Reason::SecretNotAllowed),
        (secret(label), Reason::SecretNotAllowed),
        (secret(&format!("{label}, annotations: {{tarn.dev/hosts: 'x,y'}}")), Reason::SecretNotAllowed),
    ] {
        let world = try_with(&secret);
        assert_eq!((world.stalled().reason, world.mirrors.len()), (reason, 0));
    }
    let world = try_with(&secret(&format!("{label}, annotations: {{tarn.dev/hosts: 'x, h'}}")));
    let credentials = world.only().credentials.clone().unwrap();
    assert_eq!(credentials.authorization().unwrap().expose(), "Bearer canary");
}
