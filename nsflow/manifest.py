"""The files of a checkpoint: what is on disk is whole, or is refused. The home of safetensors."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nsflow.files import write_bytes

FORMAT = "nsflow checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest"


class Manifest(NamedTuple):
    """What the file of that name says."""

    run: dict[str, Any]  # what must be the same: version, seed, settings, prior
    likelihood: dict[str, Any] | None  # values at some points; None before the first draws are evaluated
    nodes: list[list[Any]]  # of the state and the trace
    root: int
    segments: dict[str, list[str]]  # file -> keys of its blocks, in order
    journal: str


def write_segment(path: Path, blocks: dict[str, bytes]) -> int:
    """Write blocks of bytes under their keys; return the size of the file."""
    data = save({key: np.frombuffer(block, np.uint8) for key, block in blocks.items()})
    write_bytes(path, data)
    return len(data)


def read_segment(path: Path, keys: list[str]) -> dict[str, bytes]:
    """Read the blocks of these keys, which are their digests."""
    try:
        blocks = {key: block.tobytes() for key, block in load(read_bytes(path)).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from None
    for key in keys:
        if key not in blocks or blake2b(blocks[key], digest_size=16).hexdigest() != key:
            raise damaged(path, f"block {key} is missing or has changed")
    return blocks


def read_bytes(path: Path) -> bytes:
    """Read a file that a manifest names."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None


def write_manifest(folder: Path, manifest: Manifest, nodes: str) -> None:
    """Replace the manifest at once; its nodes come encoded."""
    head = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **manifest._asdict(), "nodes": None})
    text = head + "\n" + nodes
    write_bytes(folder / MANIFEST, (text + "\n" + digest_of(text)).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest; refuse another format and a changed one."""
    path = folder / MANIFEST
    try:
        head, nodes, digest = read_bytes(path).decode().split("\n")
        document = json.loads(head)
    except ValueError as error:
        raise damaged(path, str(error)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise damaged(path, "it does not say that it is one")
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"The checkpoint {folder} has format version {document.get('format_version')!r}, and this nsflow reads "
            f"version {FORMAT_VERSION}. Go on with the version that wrote it, or give another path."
        )
    if digest != digest_of(head + "\n" + nodes):
        raise damaged(path, "its checksum is another")
    return Manifest(**{name: document[name] for name in Manifest._fields if name != "nodes"}, nodes=json.loads(nodes))


def digest_of(text: str) -> str:
    """Checksum of a text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def damaged(path: Path, what: str) -> ValueError:
    """What to raise of a file that is not as it was written."""
    return ValueError(
        f"The checkpoint's file {path} is damaged or cut short ({what}). Restore the folder from a copy, or give "
        "another path for `checkpoint` to start anew. Nothing was changed."
    )
