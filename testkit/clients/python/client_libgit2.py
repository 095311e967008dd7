"""Clones and fetches with libgit2, as many programs and language bindings do.

client_libgit2.py clone URL DIRECTORY         a bare mirror
client_libgit2.py pin URL DIRECTORY COMMIT    an empty repository, and one commit into it, as refs/heads/pinned
"""

import sys

import pygit2


def clone(url: str, directory: str) -> None:
    mirror = lambda repo, name, url: repo.remotes.create(name, url, "+refs/*:refs/*")
    pygit2.clone_repository(url, directory, bare=True, remote=mirror)


def pin(url: str, directory: str, commit: str) -> None:
    repo = pygit2.init_repository(directory, bare=True)
    # No tags beside it: by default libgit2 asks for them as well.
    repo.config["remote.origin.tagOpt"] = "--no-tags"
    remote = repo.remotes.create_anonymous(url)
    remote.fetch([commit])
    repo.references.create("refs/heads/pinned", commit)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"clone": clone, "pin": pin}[verb](*rest)
