"""Folders that are whole or absent: the text of a source and its tokens.

A folder is made under a temporary name, its sizes written down, and renamed into
place under a lock; of several processes making the same one, the first wins and the
others discard theirs. A folder whose files no longer have the sizes written down is
made again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaling_lab.data import split
from scaling_lab.data.tokenizer import Tokenizer

#: Part of every name in the cache; raised when a file's meaning changes.
FORMAT = 1

SPLITS = ("train", "held_out")

_CHUNK_BYTES = 1 << 20
#: How far the tokens' bytes may be from the text's, as a share of them.
_BYTES_TOLERANCE = 0.01
_HASH_BYTES = 16

Json = dict[str, Any]
#: Fills a folder; returns its name in the cache and what to note in its meta.json.
Fill = Callable[[Path], tuple[str, Json]]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The cache: `cache_dir`, ``$SCALING_LAB_CACHE`` or ``~/.cache/scaling_lab``.

    Raises:
      ValueError: it cannot be written.
    """
    default = os.environ.get("SCALING_LAB_CACHE") or "~/.cache/scaling_lab"
    folder = Path(cache_dir or default).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        problem = str(error.strerror)
    if problem:
        raise ValueError(
            f"cannot write the data cache {folder} ({problem}); "
            "set SCALING_LAB_CACHE to a folder that can be written"
        )
    return folder


def meta(folder: Path) -> Json:
    """What is noted of a whole folder; nothing if it is absent or damaged."""
    noted = read(folder / "meta.json")
    wanted = noted.get("file_bytes", {})
    paths = [folder / name for name in wanted]
    found = {path.name: path.stat().st_size for path in paths if path.exists()}
    return noted if found == wanted else {}


def make(cache: Path, fill: Fill) -> Path:
    """Makes one folder of the cache and returns its path, whole."""
    making = _fresh(cache)
    making.mkdir()
    try:
        name, noted = fill(making)
        sizes = {path.name: path.stat().st_size for path in sorted(making.iterdir())}
        write(making / "meta.json", json.dumps(noted | {"file_bytes": sizes}, indent=1))
        folder = cache / name
        with _locked(cache):
            if not meta(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(making, folder)
        return folder
    finally:
        shutil.rmtree(making, ignore_errors=True)


def read(path: Path) -> Json:
    """A small JSON object; nothing if the file is absent or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, content: str) -> None:
    """Writes a small text file, whole or not at all."""
    write_all({path: content})


def write_all(contents: Mapping[Path, str]) -> None:
    """Writes small text files: every one, or where one has no place none.

    Raises:
      OSError: of the file that cannot be written.
    """
    made: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            made[path] = _fresh(path.parent)
            try:
                _write_through(made[path], content)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, making in made.items():
            os.replace(making, path)
    finally:
        for making in made.values():
            making.unlink(missing_ok=True)


def _write_through(path: Path, content: str) -> None:
    """Writes a text file to the disk itself."""
    with path.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def text_folder(cache: Path, digest: str) -> Path:
    """Where the documents of this digest are kept."""
    return cache / f"text-{FORMAT}-{digest}"


def fill_text(documents: Iterable[bytes], folder: Path) -> tuple[str, Json]:
    """Writes each different document once, each followed by NUL; see `Fill`.

    Raises:
      ValueError: what the readers of the documents raise.
    """
    digest, seen, size = hashlib.sha256(), set(), 0
    with (folder / "text.bin").open("wb") as file:
        for document in documents:
            key = hashlib.blake2b(document, digest_size=_HASH_BYTES).digest()
            if key in seen:
                continue
            seen.add(key)
            ended = document + b"\0"
            size += len(document)
            digest.update(ended)
            file.write(ended)
    short = digest.hexdigest()[:16]
    noted = {"digest": short, "documents": len(seen), "text_bytes": size}
    return text_folder(folder.parent, short).name, noted


def documents(text: Path) -> Iterator[bytes]:
    """The documents of a text folder, in order, never all in memory."""
    with (
        (text / "text.bin").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole,
    ):
        start = 0
        while (end := whole.find(b"\0", start)) >= 0:
            yield whole[start:end]
            start = end + 1


def tokens_folder(
    cache: Path, digest: str, tokenizer_digest: str, fraction: float
) -> Path:
    """Where the tokens of this text under this tokenizer and split are kept."""
    return cache / f"tokens-{FORMAT}-{digest}-{tokenizer_digest}-{fraction!r}"


def fill_tokens(
    text: Path, tokenizer: Tokenizer, fraction: float, folder: Path
) -> tuple[str, Json]:
    """Writes every split's tokens, the end id after each document; see `Fill`.

    Raises:
      ValueError: the tokens do not stand for the bytes of the text.
    """
    limit = split.held_out_limit(documents(text), fraction)
    dtype = np.dtype(np.min_scalar_type(tokenizer.vocab_size - 1))
    counts = dict.fromkeys(SPLITS, 0)
    found = wanted = 0
    train, held = (folder / f"{name}.bin" for name in SPLITS)
    with train.open("wb") as train_file, held.open("wb") as held_file:
        for chunk in _chunks(documents(text), limit):
            encoded = tokenizer.encode_documents([piece for _, piece in chunk])
            for (held_out, piece), ids in zip(chunk, encoded, strict=True):
                ended = np.append(ids, tokenizer.end_id).astype(dtype)
                (held_file if held_out else train_file).write(ended.tobytes())
                counts[SPLITS[held_out]] += len(ended)
                found += int(tokenizer.bytes_per_token_V[ids].sum())
                wanted += len(piece)
    if abs(found - wanted) > _BYTES_TOLERANCE * wanted:
        raise ValueError(
            f"the tokenizer does not keep the text: its tokens stand for {found} bytes "
            f"where the text has {wanted}, so bits per byte would be wrong. Use one "
            "that loses nothing, as 'byte' or 'bpe:8192'"
        )
    digest = meta(text)["digest"]
    name = tokens_folder(folder.parent, digest, tokenizer.digest, fraction).name
    return name, {"dtype": dtype.name, "tokens": counts, "text_bytes": wanted}


def _chunks(
    documents: Iterable[bytes], limit: int
) -> Iterator[list[tuple[bool, bytes]]]:
    """Pieces in lists of about a megabyte: enough to keep an encoder's threads busy."""
    chunk, size = [], 0
    for document in documents:
        for held_out, piece in split.pieces(document, limit):
            chunk.append((held_out, piece))
            size += len(piece)
            if size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _fresh(folder: Path) -> Path:
    """A name no other process uses; tempfile's would be closed to other users."""
    return folder / f".making-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
