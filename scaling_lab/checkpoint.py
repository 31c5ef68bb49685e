"""Checkpoints: an Orbax directory of steps that resumes on the same layout.

A step is written under a temporary name and renamed when whole, so what is listed can
be restored; the config lies beside the arrays and must agree when they are read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from scaling_lab.config import RunConfig
from scaling_lab.train import Program, TrainState

#: Fields that may differ between the run that wrote and the run that resumes.
MAY_DIFFER = ("steps", "evaluate_batches", "xla_flags", "size", "remat", "stack")


class Checkpoints:
    """The checkpoints of one run in one directory.

    Use as a context manager: leaving waits for what is being written.
    """

    def __init__(self, directory: str | Path, config: RunConfig, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.directory = Path(directory).absolute()
        self.config = config
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_names=("state", "config"),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.wait_until_finished()
        self.manager.close()

    @property
    def latest(self) -> int | None:
        """The newest whole step, or ``None``."""
        return self.manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes the state of its step, in the background."""
        self.manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                config=ocp.args.JsonSave(self.config.to_json()),
            ),
        )

    def restore(self, program: Program) -> TrainState:
        """The newest state, placed as the program places it.

        Raises:
          FileNotFoundError: no checkpoint there.
          ValueError: it was written by another config, and which fields differ; or by
            a version that keeps other arrays.
        """
        step = self.latest
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory} to resume from")
        self._agree(step)
        abstract = jax.eval_shape(program.init)
        target = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=where
            ),
            abstract,
            program.shardings,
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        try:
            return self.manager.restore(step, args=args)["state"]
        except ValueError as error:
            raise ValueError(
                f"step {step} in {self.directory} holds other arrays than this version "
                f"of scaling_lab keeps ({str(error).partition('. ')[0]:.300}); go on "
                "with the version that wrote it, or start anew with another --out"
            ) from error

    def _agree(self, step: int) -> None:
        found = self.manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        )["config"]
        wanted = self.config.to_json(identity=True)
        found.get("layout", {}).pop("name", None)
        differing = [
            f"{field}: {found.get(field)!r} there, {wanted.get(field)!r} here"
            for field in sorted({*found, *wanted} - {*MAY_DIFFER})
            if found.get(field) != wanted.get(field)
        ]
        if differing:
            raise ValueError(
                f"the checkpoint in {self.directory} is of another run; "
                + "; ".join(differing)
                + ". Use the same options, or another --out"
            )
