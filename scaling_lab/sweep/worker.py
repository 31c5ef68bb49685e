"""The process of one run: reads a config, tells its parent what it does, in JSON lines.

A run has a process of its own because the number of simulated devices, XLA's flags and
a compiler's environment are fixed when JAX starts, and because a crash or an
out-of-memory must cost one row. What a process does is run its config, or only compile
it for its target.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scaling_lab.compile.backends import backend_of
from scaling_lab.config import RunConfig
from scaling_lab.data.store import cache_folder
from scaling_lab.sweep.provenance import flags_in_force

MARK = "@scaling_lab "


@dataclasses.dataclass(frozen=True)
class Job:
    """What a process does with its config.

    Attributes:
      cache_dir: of data and compiled programs; ``None`` is the usual one.
      module: where a compiled module's text goes; ``None`` runs the config here.
    """

    cache_dir: Any = None
    module: Path | None = None

    @property
    def words(self) -> list[str]:
        """The process's arguments."""
        return [str(self.cache_dir or ""), str(self.module or "")]

    @classmethod
    def of(cls, words: list[str]) -> Job:
        """The inverse of `words`."""
        cache_dir, module = (*words, "", "")[:2]
        return cls(cache_dir or None, Path(module) if module else None)


def environment_for(config: RunConfig, cache_dir: Any = None) -> dict[str, str]:
    """The environment variables a run's process needs before JAX starts."""
    env = dict(os.environ)
    target = config.parsed_target()
    if target.chip is not None and target.chip.name == "cpu":
        env |= backend_of(target).environment(target)
    if config.xla_flags:
        env["XLA_FLAGS"] = flags_in_force(config.xla_flags)
    env.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(cache_folder(cache_dir) / "compiled")
    )
    # Small programs too: a sweep restarts many of them.
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return env


def compiler_environment(config: RunConfig) -> dict[str, str]:
    """The environment variables a compiler's process needs before JAX starts."""
    target = config.parsed_target()
    env = os.environ | backend_of(target).environment(target)
    if target.chip is None or target.chip.compiler == "cpu":
        env["XLA_FLAGS"] = flags_in_force(config.xla_flags)
    # A program from the cache has no compile time and less to say about memory.
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    return env


#: Python warns of a module run by name that its package has imported, as here.
_QUIETLY = ("-W", "ignore::RuntimeWarning:runpy")


def start(config: RunConfig, job: Job, stderr: Any) -> subprocess.Popen[str]:
    """Starts a config's job in a process of its own."""
    compiles = job.module is not None
    process = subprocess.Popen(
        [sys.executable, *_QUIETLY, "-m", "scaling_lab.sweep.worker", *job.words],
        env=compiler_environment(config)
        if compiles
        else environment_for(config, job.cache_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is the parent's to handle
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(config.to_json()))
    process.stdin.close()
    return process


def tell(event: str, **facts: Any) -> None:
    """One line to the parent; when nobody listens any more, the run ends."""
    try:
        print(MARK + json.dumps({"event": event, **facts}), flush=True)
    except BrokenPipeError:
        os._exit(1)


def main() -> None:
    """Does its job with the config on standard input."""
    config = RunConfig.from_json(json.load(sys.stdin))
    job = Job.of(sys.argv[1:])
    if job.module is None:
        from scaling_lab.sweep.run import run_here

        found = run_here(config, cache_dir=job.cache_dir, tell=tell)
    else:
        from scaling_lab.sweep.compiling import compile_here

        found = compile_here(config, job.module, tell)
    tell("record", record=json.loads(found.to_json()))


if __name__ == "__main__":
    main()
