"""What a run reads, as plain data: source, tokenizer, held-out share, digests."""

from __future__ import annotations

import dataclasses
import re

#: 256 bytes and the end of a document: the smallest byte-level BPE vocabulary.
MIN_BPE_SIZE = 257


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """One choice of data.

    Attributes:
      source: ``"python"`` (the standard library and the packages this one needs),
        ``"reference"`` (named files of pinned packages, checked by digest), or paths
        to files and folders (txt, md, rst, py, jsonl, parquet). Write ``"./python"``
        for a folder of that name.
      tokenizer: ``"byte"``, ``"bpe:8192"`` (trained on the train split), or the path
        of a Hugging Face ``tokenizer.json``.
      held_out_fraction: the share of the text kept for evaluation, in [0, 1).
      digest: first 16 hex digits of SHA-256 over the documents; `resolve` fills it.
      tokenizer_digest: the same of the tokenizer; `resolve` fills it.

    Raises:
      ValueError: a value that no data can meet.
    """

    source: tuple[str, ...] = ("python",)
    tokenizer: str = "byte"
    held_out_fraction: float = 0.05
    digest: str | None = None
    tokenizer_digest: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, tuple) or not self.source:
            raise ValueError(
                f"source is {self.source!r}; give a tuple of names or paths, "
                "as ('python',) or ('corpus/', 'notes.txt')"
            )
        if not 0.0 <= self.held_out_fraction < 1.0:
            raise ValueError(
                f"held_out_fraction is {self.held_out_fraction}; it is a share of the "
                "text, at least 0 and below 1, as 0.05"
            )
        self.bpe_size()

    def bpe_size(self) -> int | None:
        """The vocabulary size asked by ``"bpe:SIZE"``; ``None`` for other tokenizers.

        Raises:
          ValueError: no size, or one too small to hold every byte.
        """
        if not self.tokenizer.startswith("bpe:"):
            return None
        size = self.tokenizer.removeprefix("bpe:")
        if not re.fullmatch("[0-9]+", size) or int(size) < MIN_BPE_SIZE:
            raise ValueError(
                f"tokenizer {self.tokenizer!r}: the vocabulary size must be a number, "
                f"at least {MIN_BPE_SIZE} (256 bytes and the end of a document), "
                "as 'bpe:8192'"
            )
        return int(size)
