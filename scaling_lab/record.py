"""RunRecord: one run as plain data, one JSON line each (standard library only).

A record keeps four columns apart: what was *asked* (the config), *predicted* (on
paper), *compiled* (what the real compiler says) and *measured* (what the clock
says). Missing is ``None``, never ``0.0``. A failure is a record too: its ``status``
says which kind and its ``reason`` says why.

Files only grow. A line is written whole, under a lock, and flushed to disk before
the lock is let go, so several writers may share a file and a killed writer loses at
most the line in flight. A torn line is set aside by the next reader or writer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE_NAME = "records.jsonl"

#: Every way a run can end. ``stale`` is given by a reader, never written by a run.
STATUSES = ("ok", "illegal", "oom", "crashed", "timeout", "stale")

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
      id: SHA-256 (first 16 hex digits) of the config's non-default fields.
      environment: the same of code, library versions and XLA flags; a finished run
        may stand for a new one only if both agree.
      status: one of `STATUSES`.
      reason: why it is not ``ok``; ``None`` when it is.
      asked: the config as plain JSON, with the words it was asked in.
      predicted: arithmetic's answer, or ``None``.
      compiled: the compiler's answer (bytes per device, collectives), or ``None``.
      measured: the clock's answer (seconds, tokens per second, losses), or ``None``.
      provenance: versions, flags, host, git state, seed, when.
    """

    id: str
    environment: str
    status: str
    asked: Json
    reason: str | None = None
    predicted: Json | None = None
    compiled: Json | None = None
    measured: Json | None = None
    provenance: Json = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(
                f"record {self.id}: status {self.status!r} is not one of {STATUSES}"
            )
        if self.status != "ok" and not self.reason:
            raise ValueError(
                f"record {self.id}: status {self.status!r} needs a reason; "
                "a failure without one cannot be acted on"
            )

    def to_json(self) -> str:
        """One line of JSON; a number that is not finite becomes ``null``."""
        return json.dumps(
            _finite(dataclasses.asdict(self)), sort_keys=True, allow_nan=False
        )

    @classmethod
    def from_json(cls, line: str) -> RunRecord:
        """The inverse of `to_json`.

        Raises:
          ValueError: not a record, or written by a newer schema.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or "id" not in data or "status" not in data:
            raise ValueError("not a run record: no id or status")
        if data.get("schema", 0) > SCHEMA:
            raise ValueError(
                f"record {data['id']} has schema {data['schema']}, this version "
                f"reads up to {SCHEMA}; upgrade scaling_lab"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


def digest(value: Any) -> str:
    """The first 16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(path: str | Path, record: RunRecord) -> None:
    """Adds one record to a file (or to ``records.jsonl`` of a folder), durably."""
    path = file_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = record.to_json().encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _torn(descriptor):
            # Close the torn line, so that it costs itself and not its successor.
            line = b"\n" + line
        _write_all(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | Path) -> list[RunRecord]:
    """Every record of a file or of a folder's ``records.jsonl``, oldest first.

    Lines that cannot be read are copied to ``records.jsonl.damaged`` beside the file
    and warned about; the rest is returned.

    Raises:
      FileNotFoundError: there is no such file.
    """
    path = file_of(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no records at {path}; a sweep writes them: "
            "scaling-lab sweep --family llama --size toy --out DIR"
        )
    records, damaged = [], []
    for line in _read_all(path).splitlines():
        if not line.strip():
            continue
        try:
            records.append(RunRecord.from_json(line.decode()))
        except (ValueError, TypeError) as error:
            damaged.append((line, error))
    if damaged:
        _set_aside(path, damaged)
    return records


def latest(records: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """The last record of every id, in the order the ids were first met."""
    last: dict[str, RunRecord] = {}
    for record in records:
        last[record.id] = record
    return last


def file_of(path: str | Path) -> Path:
    """The record file meant by a path: itself, or ``records.jsonl`` in a folder."""
    path = Path(path)
    return path if path.suffix == ".jsonl" else path / FILE_NAME


def _read_all(path: Path) -> bytes:
    """The file between two appends, never in the middle of one."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return file.read()


def _torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _set_aside(path: Path, damaged: list[tuple[bytes, Exception]]) -> None:
    aside = path.with_name(path.name + ".damaged")
    seen = set(aside.read_bytes().splitlines()) if aside.exists() else set()
    fresh = [line for line, _ in damaged if line not in seen]
    if fresh:
        # A folder that one may only read is still read.
        with contextlib.suppress(PermissionError), aside.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in fresh))
    first = damaged[0][1]
    warnings.warn(
        f"{path}: {len(damaged)} unreadable line(s) set aside in {aside.name} "
        f"(first: {first}); the other records are intact",
        stacklevel=3,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
