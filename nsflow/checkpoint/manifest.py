"""The files of a checkpoint: what is on disk is whole, or is refused. The home of safetensors."""

import json
import math
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nsflow.results.declaration import conforms
from nsflow.results.files import open_regular, write_bytes

FORMAT = "nsflow checkpoint"
FORMAT_VERSION = 2
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
        with open(open_regular(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None


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
    except (ValueError, RecursionError) as error:
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
    try:
        document |= {"nodes": json.loads(nodes)}
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if said := _fault(document):
        raise damaged(path, f"{said} expected")
    return Manifest(**{name: document[name] for name in Manifest._fields})


RUN = {
    "version": str,
    "seed": int,
    "settings": dict[str, str],
    "parameters": dict[str, list[int]],
    "prior": list[list[float]],
    "start": str | None,
}


def _fault(document: dict[str, Any]) -> str:
    """What a manifest lacks; nothing outside the folder may be named by it."""
    run, likelihood = document.get("run"), document.get("likelihood")
    if not isinstance(run, dict) or not all(conforms(run.get(name), kind) for name, kind in RUN.items()):
        return f"`run` with {', '.join(RUN)}"
    if len(run["prior"]) != 3 or not 0 <= run["seed"] < 2**32:
        return "`run` with three lists of numbers, and a seed"
    nodes, root = document.get("nodes"), document.get("root")
    if not (isinstance(nodes, list) and all(isinstance(node, list) for node in nodes) and isinstance(root, int)):
        return "`nodes`, and the index `root` of one"
    if not -1 <= root < max(1, len(nodes)):
        return "`nodes`, and the index `root` of one"
    journal, segments = document.get("journal"), document.get("segments")
    if not isinstance(journal, str) or not re.fullmatch(r"journal-[1-9][0-9]{0,11}", journal):
        return "the name of a journal"
    if not isinstance(segments, dict) or not conforms(segments, dict[str, list[str]]):
        return "`segments` with their keys"
    latest = int(journal.split("-")[1])
    for name in segments:
        if not re.fullmatch(r"segment-[1-9][0-9]{0,11}", name) or int(name.split("-")[1]) > latest:
            return "names of segments no newer than the journal"
    if likelihood is not None and not (
        conforms(likelihood.get("rows") if isinstance(likelihood, dict) else None, list[int])
        and conforms(likelihood.get("values"), list[float])
        and len(likelihood["rows"]) == len(likelihood["values"])
        and conforms(likelihood.get("noise"), float)
        and 0 <= likelihood["noise"] < math.inf
    ):
        return "`likelihood` with rows, values and their noise"
    return ""


def digest_of(text: str) -> str:
    """Checksum of a text."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def damaged(path: Path, what: str) -> ValueError:
    """What to raise of a file that is not as it was written."""
    return ValueError(
        f"The checkpoint's file {path} is damaged or cut short ({what}). Restore the folder from a copy, or give "
        "another path for `checkpoint` to start anew. Nothing was changed."
    )
