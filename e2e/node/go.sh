# shellcheck shell=bash
# Sourced by build.sh: sets GO to a Go of the version that the modules here ask for.

# Go before 1.21 cannot fetch another version of itself, yet it can download a module, and each version of Go is one.
# What the newer versions do with that module is done here: some files are renamed to fit into a module, and nothing
# in a module may be executed.
fetch_go() {
  local wanted=$1 os arch version dir home
  os=$(go env GOOS) arch=$(go env GOARCH)
  version=v0.0.1-go$wanted.$os-$arch
  home=$NODE_HOME/go$wanted
  if [ ! -x "$home/bin/go" ]; then
    dir=$(cd / && GO111MODULE=on go mod download -json "golang.org/toolchain@$version" |
      sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
    [ -d "$dir" ] || fail "cannot download Go $wanted; install it by hand"
    rm -rf "$home.part"
    cp -r "$dir" "$home.part"
    chmod -R u+w "$home.part"
    chmod -R +x "$home.part/bin" "$home.part/pkg/tool"
    find "$home.part" -name _go.mod -execdir mv _go.mod go.mod \;
    mv "$home.part" "$home"
  fi
  GO=$home/bin/go
}

# find_go VERSION: the installed Go where it is new enough or can fetch what it needs, else one that is downloaded.
find_go() {
  local wanted=$1 have
  command -v go >/dev/null || fail 'go is missing; install Go, or run build.sh packages'
  have=$(go env GOVERSION | sed 's/^go//')
  GO=go
  case $have in
    1.?|1.?.*|1.1?|1.1?.*|1.20|1.20.*) fetch_go "$wanted" ;;
    # Debian's own setting is "local": never fetch.
    *) export GOTOOLCHAIN=auto ;;
  esac
  echo "Go: $(cd "$ROOT/hyper" && "$GO" version)"
}
