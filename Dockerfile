# Tarn's image: agent, operator, git tarn, and git. One image for all pods; the chart wants its name as image.repository.
#
#   docker build -t registry.example.com/tarn:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 -t registry.example.com/tarn:0.1.0 --push .

# Debian 13: its security team maintains git and OpenSSH, and so the newest of both arrive with a rebuild. By tag, not by digest:
# a digest that nobody renews would keep them back. For builds that are the same every time, pass what your registry resolved:
#
#   docker build --build-arg BASE=debian:trixie-slim@sha256:... --build-arg RUST=rust:1.95-slim-trixie@sha256:... .
ARG RUST=rust:1.95-slim-trixie
ARG BASE=debian:trixie-slim

FROM ${RUST} AS build
WORKDIR /tarn
COPY . .
# Backtraces keep names and lose line numbers, which are most of the size.
ENV RUSTFLAGS="-C strip=debuginfo"
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/tarn/target \
    cargo build --release --locked --bin tarn-agent --bin tarn-operator --bin git-tarn \
    && mkdir /out && cp target/release/tarn-agent target/release/tarn-operator target/release/git-tarn /out/

# Of the same Debian, so that the programs find the libc they were linked against.
FROM ${BASE}
# git serves and fetches, openssh-client is its way to ssh upstreams, ca-certificates are what https upstreams and the store
# are trusted by. git-lfs is not needed: the agent speaks its protocol itself. Locale, documentation and apt's lists go.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git openssh-client \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* /usr/share/doc /usr/share/locale /usr/share/man \
    && echo 'tarn:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'tarn:x:65532:' >> /etc/group
COPY --from=build /out/ /usr/bin/
ENV HOME=/tmp
USER 65532:65532
# The pods' commands name what they run; without one, the image says what there is.
CMD ["tarn-agent", "--help"]
