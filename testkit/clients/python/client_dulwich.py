"""Clones and fetches with dulwich, git in Python.

client_dulwich.py clone URL DIRECTORY         a bare mirror
client_dulwich.py pin URL DIRECTORY COMMIT    an empty repository, and one commit into it, as refs/heads/pinned
"""

import sys

from dulwich.client import get_transport_and_path
from dulwich.repo import Repo


def fetch(url: str, directory: str, wanted) -> dict:
    """Fetches into a new bare repository what `wanted` picks of the refs that the server shows."""
    repo = Repo.init_bare(directory, mkdir=True)
    client, path = get_transport_and_path(url)
    shown = {}

    def choose(refs, depth=None):
        shown.update(refs)
        return wanted(refs)

    client.fetch(path, repo, determine_wants=choose)
    return {"repo": repo, "refs": shown}


def clone(url: str, directory: str) -> None:
    every = lambda refs: list({oid for name, oid in refs.items() if not name.endswith(b"^{}")})
    done = fetch(url, directory, every)
    for name, oid in done["refs"].items():
        if name.startswith(b"refs/") and not name.endswith(b"^{}"):
            done["repo"].refs[name] = oid


def pin(url: str, directory: str, commit: str) -> None:
    done = fetch(url, directory, lambda refs: [commit.encode()])
    done["repo"].refs[b"refs/heads/pinned"] = commit.encode()


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"clone": clone, "pin": pin}[verb](*rest)
