#!/usr/bin/env python3
"""Writes an OCI image as one archive, from files: no Docker, no registry, the same bytes every time.

image.py OUT.tar NAME [--tree DIR]... [--add SOURCE=/target]... [--entrypoint PROGRAM] [--user UID:GID] [--env K=V]...

Every --tree is a layer, and all --add together are the last one. Files belong to root; modes are those of the
sources.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--tree", action="append", default=[])
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--entrypoint", default="")
    parser.add_argument("--user", default="")
    parser.add_argument("--env", action="append", default=[])
    return parser.parse_args()


def anonymous(info):
    """Takes away what differs from one machine or one minute to the next."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def tree_layer(directory):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        # The members of a directory are added in sorted order.
        for name in sorted(os.listdir(directory)):
            tar.add(os.path.join(directory, name), name, filter=anonymous)
    return layer.getvalue()


def files_layer(pairs):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        made = set()
        for pair in pairs:
            source, target = pair.split("=", 1)
            target = target.lstrip("/")
            parents = target.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = "/".join(parents[:depth])
                if parent not in made:
                    made.add(parent)
                    info = tarfile.TarInfo(parent)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
            with open(source, "rb") as file:
                tar.addfile(anonymous(tar.gettarinfo(arcname=target, fileobj=file)), file)
    return layer.getvalue()


class Archive:
    """An OCI image layout within a tar archive."""

    def __init__(self, path):
        self.tar = tarfile.open(path, "w")

    def put(self, name, content):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        self.tar.addfile(info, io.BytesIO(content))

    def blob(self, media_type, content):
        """Stores the content under its digest; returns what refers to it."""
        digest = hashlib.sha256(content).hexdigest()
        self.put(f"blobs/sha256/{digest}", content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def document(self, media_type, value):
        return self.blob(media_type, json.dumps(value, sort_keys=True).encode())


def main():
    args = arguments()
    system = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    layers = [tree_layer(tree) for tree in args.tree]
    if args.add:
        layers.append(files_layer(args.add))
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    settings = {"Env": [path, *args.env], "WorkingDir": "/"}
    if args.entrypoint:
        settings["Entrypoint"] = [args.entrypoint]
    if args.user:
        settings["User"] = args.user

    archive = Archive(args.out)
    stored = [archive.blob(LAYER, layer) for layer in layers]
    # The layers are not compressed, so that they are what their digests speak of.
    root = {"type": "layers", "diff_ids": [layer["digest"] for layer in stored]}
    config = archive.document(CONFIG, {**system, "config": settings, "rootfs": root})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": stored}
    image = archive.document(MANIFEST, manifest)
    image["platform"] = system
    image["annotations"] = {
        "io.containerd.image.name": args.name,
        "org.opencontainers.image.ref.name": args.name.rsplit(":", 1)[-1],
    }
    archive.put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    archive.put("index.json", json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]}).encode())
    archive.tar.close()


main()
