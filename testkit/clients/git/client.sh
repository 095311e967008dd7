# Clones and fetches with the git of PATH. The first argument has settings for it.
#
#   client.sh SETTINGS clone URL DIRECTORY         a bare mirror
#   client.sh SETTINGS pin URL DIRECTORY COMMIT    an empty repository, and one commit into it, as refs/heads/pinned
set -eu
settings=$1 verb=$2 url=$3 directory=$4
# shellcheck disable=SC2086 # several words
case $verb in
  clone) git $settings clone --quiet --mirror "$url" "$directory" ;;
  pin)
    git init --quiet --bare "$directory"
    git $settings -C "$directory" fetch --quiet --no-tags "$url" "$5:refs/heads/pinned"
    ;;
esac
