# The verbs of this repository; .ci/run calls the same ones.

CARGO  ?= cargo
CRATES := tarn-crds tarn-agent tarn-client tarn-operator tarn-testkit tarn-e2e
# Flags of the benchmark: make bench BENCH="--quick"; docs/benchmarks.md explains them.
BENCH  ?=

# Words: only those tests on the cluster whose names contain one of them.
E2E    ?=

.PHONY: help demo lint test clients test-git chart e2e gen verify fuzz large bench bench-ahead bench-checkpoints bench-cluster bench-fleet bench-git-versions bench-snapshots bench-storm

help: ## list the verbs
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: ## mirror this checkout, push upstream, see the push through Tarn; leaves nothing behind
	@scripts/demo

lint: ## formatting, clippy, each crate on its own, what the documentation names, dependencies and their advisories
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	set -e; for crate in $(CRATES); do $(CARGO) check --locked -p $$crate; done
	scripts/check-docs
	@scripts/deny

test: ## all tests; those of the store need versitygw (CONTRIBUTING.md)
	$(CARGO) test --workspace --locked

clients: ## clone with go-git, JGit, libgit2, dulwich, isomorphic-git and two versions of git, from agents with either git
	set -e; programs=$$(scripts/clients); newest=$$(scripts/newest-git); \
	  for git in '' $$newest; do \
	    TARN_TEST_CLIENTS=$$programs TARN_TEST_GIT=$$git $(CARGO) test --locked -p tarn-agent --test promises -- --ignored clients::; \
	  done

# Of all tests, those that see most of git: serving, upkeep and checkpoints. Upstreams and clients have it as well: answers are
# compared with the upstream's own.
test-git: ## the tests that depend most on git's version, with the newest git everywhere (scripts/newest-git)
	set -e; newest=$$(scripts/newest-git); \
	  PATH=$$newest:$$PATH $(CARGO) test --locked -p tarn-agent --test promises -- \
	  serving:: p2_never_torn:: p10_ p4_never_stuck::damage checkpoints::restore

chart: ## lint the Helm chart, and test its templates; needs helm and helm-unittest (scripts/chart)
	@scripts/chart

gen: ## write what is generated: the CRDs of the chart
	$(CARGO) run --quiet --locked --features tarn-crds/crdgen --bin crdgen

verify: gen ## fail if anything is generated anew, or not committed
	@test -z "$$(git status --porcelain)" || { git status --short; git --no-pager diff; \
	  echo 'verify: the tree is not as committed; run make gen, then commit what changed' >&2; exit 1; }

e2e: ## tests on a real cluster of one node, built and taken down again; needs root (e2e/README.md)
	@e2e/run $(E2E)

# Seconds for each target.
FUZZ   ?= 60

fuzz: ## try every parser of bytes from outside on inputs nobody thought of; FUZZ seconds each
	@fuzz/run $(FUZZ)

large: ## clone the benchmark's repository (400 MB) through Tarn, compare every ref, check every object
	@scripts/large

bench-ahead: ## the first clone after a push, with packs made ahead of demand and without
	$(CARGO) bench --locked -p tarn-agent --bench ahead

bench-checkpoints: ## restore from an S3 server beside a raw download and a clone; publish a thousand commits
	AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtesttest NO_PROXY=127.0.0.1 \
	  $(CARGO) bench --locked -p tarn-agent --bench checkpoints -- $(BENCH)

bench-snapshots: ## download and clone by snapshot, cold and warm, beside raw downloads, nginx and git clone
	$(CARGO) build --release --locked -p tarn-client
	AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtesttest NO_PROXY=127.0.0.1 \
	  $(CARGO) bench --locked -p tarn-agent --bench snapshots -- $(BENCH)

bench-storm: ## many clients fetch distinct commits at once, from git http-backend and from Tarn; a stream beside nginx
	$(CARGO) build --release --locked --bin tarn-agent --bin bench
	$(CARGO) run --quiet --release --locked --bin bench -- --only storm --only stream $(BENCH)

bench-git-versions: ## git's own part of an agent's work: the machine's git, and the newest (scripts/newest-git)
	set -e; newest=$$(scripts/newest-git); \
	  $(CARGO) run --quiet --release --locked -p tarn-testkit --bin bench -- $(BENCH) \
	  git-versions --git "$$(dirname "$$(command -v git)")" --git "$$newest"

bench-cluster: ## on a real cluster: a pod's start with a large mirror, the operator with thousands of mirrors; needs root
	@e2e/run --bench

bench-fleet: ## a cold start with 500 mirrors in an S3 server: how soon a clone is served, how many restores at once
	TARN_FLEET_MIRRORS=500 $(CARGO) test --release --locked -p tarn-agent --test promises -- \
	  a_cold_start_serves_any_mirror_at_once --nocapture

bench: ## compare git http-backend and Tarn, side by side; takes about half an hour
	$(CARGO) build --release --locked --bin tarn-agent --bin bench
	$(CARGO) run --quiet --release --locked --bin bench -- $(BENCH)
