"""Names and paths -> the files to read, each with its reader, in a fixed order."""

from __future__ import annotations

import difflib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scaling_lab import record
from scaling_lab.data import installed, readers, reference
from scaling_lab.data.readers import Reader

Files = list[tuple[Path, Reader]]

BY_SUFFIX: dict[str, Reader] = {
    ".txt": readers.text,
    ".md": readers.text,
    ".rst": readers.text,
    ".py": readers.code,
    ".jsonl": readers.jsonl,
    ".parquet": readers.parquet,
}

#: A file changed this recently may change again without a new time stamp.
_UNSETTLED_SECONDS = 2.0


def files(source: tuple[str, ...]) -> Files:
    """The files of every name or path of a source, in the order given.

    Raises:
      FileNotFoundError: no such path; names the nearest there are.
      ValueError: a file of another kind, a folder without text, or reference files
        that differ.
    """
    found: Files = []
    for name in source:
        if name == "python":
            found += installed.files()
        elif name == "reference":
            found += reference.files()
        else:
            found += _of_path(Path(name).expanduser())
    return found


def documents(found: Files) -> Iterator[bytes]:
    """Every document of the files, in order, duplicates included.

    Raises:
      ValueError: there is none, or a reader's complaint.
    """
    empty = True
    for path, reader in found:
        for document in reader(path):
            empty = False
            yield document
    if empty:
        raise ValueError(
            f"no text in {found[0][0]} nor any other of {len(found)} file(s): all are "
            "empty; give files that hold text"
        )


def fingerprint(found: Files) -> str | None:
    """What the file system says of the files; equal only if no file was touched.

    The change time counts too, since no program can set it back. ``None`` when a file
    is so fresh that its time stamps cannot be trusted yet.
    """
    newest, listing = 0.0, []
    for path, reader in found:
        status = path.stat()
        newest = max(newest, status.st_ctime)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        listing.append([str(path.absolute()), reader.__qualname__, *state])
    if newest > time.time() - _UNSETTLED_SECONDS:
        return None
    return record.digest(listing)


def missing(path: Path, choices: str) -> FileNotFoundError:
    """An error for a path that is not there: the nearest names, and the choices."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    wanted = path.absolute().relative_to(folder).parts[0]
    names = sorted(os.listdir(folder))
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.5) or names[:5]
    holds = ", ".join(near) if near else "nothing"
    return FileNotFoundError(
        f"no file or folder {path}; {folder} has no {wanted!r} (nearest: {holds}). "
        f"{choices}"
    )


def _of_path(path: Path) -> Files:
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise missing(path, "Besides paths, data may be 'python' or 'reference'")
    if path.suffix.lower() not in BY_SUFFIX:
        raise ValueError(
            f"{path}: cannot read files of kind {path.suffix or 'without a suffix'!r}; "
            f"accepted are {', '.join(BY_SUFFIX)}. Rename plain text to .txt"
        )
    return [(path, BY_SUFFIX[path.suffix.lower()])]


def _of_folder(root: Path) -> Files:
    found: Files = []
    others: Counter[str] = Counter()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if _visible(name))
        for name in sorted(filter(_visible, names)):
            reader = BY_SUFFIX.get(Path(name).suffix.lower())
            if reader is None:
                others[Path(name).suffix or "(no suffix)"] += 1
            else:
                found.append((Path(folder, name), reader))
    if not found:
        common = others.most_common(5)
        holds = ", ".join(f"{count} {suffix}" for suffix, count in common)
        raise ValueError(
            f"{root} holds no text: {holds or 'it is empty'}; accepted are "
            f"{', '.join(BY_SUFFIX)}"
        )
    return found


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"
