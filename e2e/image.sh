#!/usr/bin/env bash
# image.sh OUT.tar [NAME]: builds Tarn and writes the image that the e2e tests use for all their pods: agent, operator,
# git upstream, S3 server, clients. Without Docker and without a registry: busybox and git are this machine's; for the
# newest git, PATH="$(scripts/newest-git):$PATH". NAME is tarn.local/tarn:e2e by default. Of the debug build, or, with TARN_E2E_PROFILE=release, of that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { echo 'usage: image.sh OUT.tar [NAME]' >&2; exit 2; }
out=$1
name=${2:-tarn.local/tarn:e2e}
cargo=${CARGO:-cargo}
# The user of the agents' pods; the operator's is the same.
user=65532

fail() { printf 'image.sh: %s\n' "$*" >&2; exit 1; }

# The version that the tests of testkit were written against, where .ci/run puts it.
find_s3_server() {
  local cached=${XDG_CACHE_HOME:-$HOME/.cache}/tarn/versitygw-v1.8.0/versitygw
  if [ -n "${TARN_VERSITYGW:-}" ]; then
    echo "$TARN_VERSITYGW"
  elif command -v versitygw; then
    :
  else
    [ -x "$cached" ] ||
      (cd / && GOBIN=$(dirname "$cached") go install github.com/versity/versitygw/cmd/versitygw@v1.8.0) >&2
    echo "$cached"
  fi
}

# Every library that one of the programs needs, at the place where the program looks for it.
add_libraries() {
  local root=$1 library
  shift
  for program in "$@"; do
    ldd "$program" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*' || true
  done | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp --dereference "$library" "$root$library"
  done
}

add_busybox() {
  local root=$1 busybox applet
  busybox=$(command -v busybox) || fail 'busybox is missing: apt-get install busybox'
  cp --dereference "$busybox" "$root/bin/busybox"
  for applet in $("$busybox" --list); do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
  done
  add_libraries "$root" "$busybox"
}

add_git() {
  local root=$1 core file
  core=$(git --exec-path)
  # Without the directory of templates every clone warns. Git finds it beside its own parts, whoever built it.
  mkdir -p "$root$core" "$root$(realpath --canonicalize-missing "$core/../../share/git-core/templates")"
  cp --dereference "$(command -v git)" "$root/usr/bin/git"
  # The others are built into git itself, or are for work that no pod does.
  for file in git-remote-http git-http-backend; do
    cp --dereference "$core/$file" "$root$core/$file"
  done
  ln -s git-remote-http "$root$core/git-remote-https"
  add_libraries "$root" "$(command -v git)" "$core/git-remote-http" "$core/git-http-backend"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
profile=${TARN_E2E_PROFILE:-dev}
(cd "$here/.." && $cargo build --locked --quiet --profile "$profile" --bin tarn-agent --bin tarn-operator --bin git-tarn --bin upstream)
built=${CARGO_TARGET_DIR:-$here/../target}/${profile/%dev/debug}
s3_server=$(find_s3_server)

mkdir -p "$work"/system/{bin,etc/ssl/certs,tmp,usr/bin} "$work/programs"
chmod 755 "$work/system"
chmod 1777 "$work/system/tmp"
cp /etc/ssl/certs/ca-certificates.crt "$work/system/etc/ssl/certs/"
printf 'root:x:0:0::/:/bin/sh\ntarn:x:%s:%s::/tmp:/bin/sh\n' $user $user > "$work/system/etc/passwd"
printf 'root:x:0:\ntarn:x:%s:\n' $user > "$work/system/etc/group"
add_busybox "$work/system"
add_git "$work/system"
add_libraries "$work/system" "$built/tarn-agent" "$built/upstream" "$s3_server"

add=()
for program in tarn-agent tarn-operator git-tarn upstream; do
  # Symbols stay for backtraces; line numbers are three quarters of the size.
  objcopy --strip-debug "$built/$program" "$work/programs/$program"
  add+=(--add "$work/programs/$program=/usr/bin/$program")
done
mkdir -p "$(dirname "$out")"
"$here/node/image.py" "$out.part" "$name" --tree "$work/system" "${add[@]}" --add "$s3_server=/usr/bin/versitygw" \
  --user $user:$user --env HOME=/tmp
mv "$out.part" "$out"
