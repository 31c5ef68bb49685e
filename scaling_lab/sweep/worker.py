"""The process of one run: reads a config, tells its parent what it does, in JSON lines.

A run has a process of its own because the number of simulated devices and XLA's flags
are fixed when JAX starts, and because a crash or an out-of-memory must cost one row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from scaling_lab.config import RunConfig
from scaling_lab.data.store import cache_folder
from scaling_lab.sweep.provenance import flags_in_force

MARK = "@scaling_lab "


def environment_for(config: RunConfig, cache_dir: Any = None) -> dict[str, str]:
    """The environment variables a run's process needs before JAX starts."""
    env = dict(os.environ)
    target = config.parsed_target()
    if target.chip is not None and target.chip.name == "cpu":
        env["JAX_PLATFORMS"] = "cpu"
        env["JAX_NUM_CPU_DEVICES"] = str(target.devices)
    if config.xla_flags:
        env["XLA_FLAGS"] = flags_in_force(config.xla_flags)
    env.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(cache_folder(cache_dir) / "compiled")
    )
    # Small programs too: a sweep restarts many of them.
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return env


def start(config: RunConfig, cache_dir: Any, stderr: Any) -> subprocess.Popen[str]:
    """Starts a run in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scaling_lab.sweep.worker", str(cache_dir or "")],
        env=environment_for(config, cache_dir),
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
    """Runs the config on standard input."""
    from scaling_lab.sweep.run import run_here

    config = RunConfig.from_json(json.load(sys.stdin))
    cache_dir = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None
    record = run_here(config, cache_dir=cache_dir, tell=tell)
    tell("record", record=json.loads(record.to_json()))


if __name__ == "__main__":
    main()
