"""Where a number comes from: versions, flags, host, git, code; and their hash."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from scaling_lab import record

PACKAGE = Path(record.__file__).parent
#: Libraries whose versions change what a run does.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Python's and the libraries' versions; a library that is missing is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_digest() -> str:
    """A hash of every Python file of the package: what a commit hash misses."""
    whole = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        whole.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def environment(xla_flags: str) -> str:
    """The hash a finished run must share to stand for a new one."""
    return record.digest(
        {
            "code": code_digest(),
            "versions": versions(),
            "xla_flags": flags_in_force(xla_flags),
        }
    )


def flags_in_force(xla_flags: str) -> str:
    """XLA flags of the environment and of the config, together and once.

    The same before and after a run's process was given its config's flags, so that a
    sweep and its workers agree on the environment.
    """
    shell, own = os.environ.get("XLA_FLAGS", "").strip(), xla_flags.strip()
    if own and f" {shell}".endswith(f" {own}"):
        return shell
    return " ".join(filter(None, (shell, own)))


def provenance(xla_flags: str, seed: int) -> dict[str, Any]:
    """The record's ``provenance``, when a run starts."""
    return {
        "versions": versions(),
        "code": code_digest(),
        "xla_flags": flags_in_force(xla_flags),
        "host": {
            "name": platform.node(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "git": git_state(),
        "seed": seed,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; ``None`` outside a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
