"""From a `DataConfig` to a `Dataset`: read, check, tokenise once, open."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from scaling_lab import record
from scaling_lab.data import sources, split, store
from scaling_lab.data.config import DataConfig
from scaling_lab.data.stream import Stream
from scaling_lab.data.tokenizer import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    from_file,
    library,
    train_bpe,
)

#: Told, in a line, what takes time.
Progress = Callable[[str], None]


class Dataset:
    """Tokenised text, open as memory maps.

    Attributes:
      config: with both digests.
      tokenizer: encodes and decodes text.
      vocab_size: V.
    """

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, tokens: dict[str, np.ndarray]
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self._tokens = tokens

    def stream(
        self, split: Literal["train", "held_out"], batch: int, length: int, seed: int
    ) -> Stream:
        """Batches of `batch` windows of `length` tokens, in an order set by `seed`.

        Raises:
          ValueError: an unknown split, sizes below 1, or too few tokens for a window.
        """
        if split not in self._tokens:
            raise ValueError(f"no split {split!r}; there are {', '.join(self._tokens)}")
        tokens = self._tokens[split]
        return Stream(tokens, self.tokenizer, split, batch, length, seed)


def resolve(
    config: DataConfig,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> DataConfig:
    """The config with the digests of its text and tokenizer, reading what has changed.

    Raises:
      FileNotFoundError, ImportError: a path or a library is missing.
      ValueError: bad input, or digests other than those the config holds.
    """
    return _opened(config, store.cache_folder(cache_dir), progress or _silent)[0]


def load(
    config: DataConfig,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The data of a config, tokenised at most once for each cache.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `resolve`.
    """
    cache, say = store.cache_folder(cache_dir), progress or _silent
    config, text, tokenizer = _opened(config, cache, say)
    fraction = config.held_out_fraction
    digest = str(config.digest)
    folder = store.tokens_folder(cache, digest, tokenizer.digest, fraction)
    if not store.meta(folder):
        say(f"tokenising {_megabytes(text)} with {config.tokenizer!r}")
        fill = functools.partial(store.fill_tokens, text, tokenizer, fraction)
        store.make(cache, fill)
    noted = store.meta(folder)
    dtype, counts = np.dtype(noted["dtype"]), noted["tokens"]
    tokens = {
        name: _mapped(folder / f"{name}.bin", dtype, counts[name])
        for name in store.SPLITS
    }
    return Dataset(config, tokenizer, tokens)


def _opened(
    config: DataConfig, cache: Path, say: Progress
) -> tuple[DataConfig, Path, Tokenizer]:
    text = _text(config, cache, say)
    digest = store.meta(text)["digest"]
    if config.digest not in (None, digest):
        raise ValueError(
            f"the data {config.source} has changed: its digest is {digest}, the "
            f"config holds {config.digest}. Bring the old files (or package versions) "
            "back, or set digest to None to begin a new run on what is there now"
        )
    tokenizer = _tokenizer(config, text, digest, cache, say)
    if config.tokenizer_digest not in (None, tokenizer.digest):
        raise ValueError(
            f"the tokenizer {config.tokenizer!r} has changed: its digest is "
            f"{tokenizer.digest}, the config holds {config.tokenizer_digest}. Bring "
            "the old one (or tokenizers version) back, or set tokenizer_digest to None "
            "to begin a new run with this one"
        )
    resolved = dataclasses.replace(
        config, digest=digest, tokenizer_digest=tokenizer.digest
    )
    return resolved, text, tokenizer


def _text(config: DataConfig, cache: Path, say: Progress) -> Path:
    """The folder of the documents, read again only if a file was touched."""
    files = sources.files(config.source)
    fingerprint = sources.fingerprint(files)
    listing = cache / "listings" / f"{store.FORMAT}-{fingerprint}.json"
    known = store.read(listing).get("digest") if fingerprint else None
    if known and store.meta(store.text_folder(cache, known)):
        return store.text_folder(cache, known)
    say(f"reading {len(files)} files of {', '.join(config.source)}")
    documents = sources.documents(files)
    folder = store.make(cache, functools.partial(store.fill_text, documents))
    if fingerprint:
        store.write(listing, json.dumps({"digest": store.meta(folder)["digest"]}))
    return folder


def _tokenizer(
    config: DataConfig, text: Path, digest: str, cache: Path, say: Progress
) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    size = config.bpe_size()
    if size is None:
        return from_file(config.tokenizer)
    version = library(config.tokenizer).__version__
    key = record.digest([store.FORMAT, digest, config.held_out_fraction, size, version])
    path = cache / "tokenizers" / f"{key}.json"
    if not path.exists():
        say(f"training {config.tokenizer!r} on {_megabytes(text)}")
        fraction = config.held_out_fraction
        store.write(path, train_bpe(size, _train_pieces(text, fraction)))
    return FileTokenizer(path.read_text("utf-8"), str(path))


def _train_pieces(text: Path, fraction: float) -> Iterator[bytes]:
    limit = split.held_out_limit(store.documents(text), fraction)
    for document in store.documents(text):
        for held_out, piece in split.pieces(document, limit):
            if not held_out:
                yield piece


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    # An empty file cannot be mapped.
    if count == 0:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=(count,)))


def _megabytes(text: Path) -> str:
    return f"{store.meta(text)['text_bytes'] / 1e6:.1f} MB"


def _silent(message: str) -> None:
    del message
