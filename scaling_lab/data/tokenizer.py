"""Text <-> token ids: bytes, a BPE trained here, or a local tokenizer file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scaling_lab import record
from scaling_lab.data import sources

END_NAME = "<|endoftext|>"
#: What tokenizer files call the end of a document, in the order they are tried.
END_NAMES = (END_NAME, "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class Tokenizer(Protocol):
    """What the store and a server need of a tokenizer.

    Attributes:
      vocab_size: V; every id is below it.
      end_id: the id that ends a document and is never part of one.
      digest: first 16 hex digits of SHA-256 of what defines it.
      bytes_per_token_V: bytes of text each id stands for; int32, the end's is 0.
    """

    vocab_size: int
    end_id: int
    digest: str
    bytes_per_token_V: np.ndarray

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...

    def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]: ...


class ByteTokenizer:
    """One id a byte. Byte 0 ends a document: no text holds it, so V is exactly 256."""

    vocab_size = 256
    end_id = 0
    digest = record.digest(["byte", 256, 0])

    def __init__(self) -> None:
        self.bytes_per_token_V = np.ones(self.vocab_size, np.int32)
        self.bytes_per_token_V[self.end_id] = 0

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the end of the document.

        Raises:
          ValueError: the text holds NUL, which ends a document.
        """
        if "\0" in text:
            raise ValueError(
                f"the text holds NUL at character {text.index(chr(0))}, which ends a "
                "document here; remove it"
            )
        return list(text.encode())

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; bytes that are no UTF-8 become the replacement character."""
        return bytes(int(i) for i in ids).decode(errors="replace")

    def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of UTF-8 documents."""
        return [np.frombuffer(document, np.uint8) for document in documents]


class FileTokenizer:
    """A tokenizer of the Hugging Face `tokenizers` library, from its JSON.

    Raises:
      ImportError: the library is missing.
      ValueError: not such a file, or one without an end of document.
    """

    def __init__(self, content: str, where: str) -> None:
        try:
            self._inner = library(where).Tokenizer.from_str(content)
        except Exception as error:  # The library raises nothing narrower.
            if isinstance(error, ImportError):
                raise
            raise ValueError(
                f"{where} is no tokenizer file ({error}); give the tokenizer.json of "
                "the Hugging Face tokenizers library"
            ) from error
        end = next((n for n in END_NAMES if self._inner.token_to_id(n) is not None), "")
        if not end:
            raise ValueError(
                f"{where} has no end-of-document token (looked for "
                f"{', '.join(END_NAMES)}). Add one: t = tokenizers.Tokenizer.from_file("
                f"{where!r}); t.add_special_tokens([{END_NAME!r}]); t.save({where!r})"
            )
        # Marked special, and text encoded as text: the end's own name, where a document
        # spells it out, must not end the document.
        self._inner.add_special_tokens([end])
        self._inner.encode_special_tokens = True
        self._inner.no_padding()
        self._inner.no_truncation()
        vocab = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.end_id = vocab[end]
        self.digest = record.digest(content)
        spec = json.loads(self._inner.to_str())
        self.bytes_per_token_V = _bytes_per_token(spec, vocab)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the end of the document."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens included."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """The ids of UTF-8 documents."""
        texts = [document.decode() for document in documents]
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint32) for encoding in encodings]


def from_file(name: str) -> FileTokenizer:
    """The tokenizer of a local file, or of a folder's ``tokenizer.json``.

    Raises:
      FileNotFoundError: no such file.
      ImportError, ValueError: see `FileTokenizer`.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.exists():
        raise sources.missing(
            path, "A tokenizer is 'byte', 'bpe:8192' (any size), or a tokenizer.json"
        )
    try:
        content = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no tokenizer file: byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start} is not UTF-8; give a tokenizer.json"
        ) from None
    return FileTokenizer(content, str(path))


def train_bpe(size: int, documents: Iterable[bytes]) -> str:
    """Trains a byte-level BPE of exactly `size` ids; returns its JSON.

    Raises:
      ImportError: the library is missing.
      ValueError: the text has too few distinct pieces for so many ids.
    """
    lib = library(f"bpe:{size}")
    tokenizer = lib.Tokenizer(lib.models.BPE())
    tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_NAME],
        initial_alphabet=sorted(lib.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode() for text in documents), trainer)
    reached = tokenizer.get_vocab_size()
    if reached < size:
        fits = reached // 64 * 64
        choice = f"'bpe:{fits}'" if fits > 256 else "'byte'"
        raise ValueError(
            f"tokenizer 'bpe:{size}': the train split has text for only {reached} "
            f"token ids; ask for {choice} or give more text"
        )
    return tokenizer.to_str()


def library(where: str) -> Any:
    """The `tokenizers` library.

    Raises:
      ImportError: it is missing; names the extra that brings it.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f"tokenizer {where} needs the tokenizers library: "
            "pip install 'scaling_lab[bpe]'"
        ) from error
    return tokenizers


def _bytes_per_token(spec: dict[str, Any], vocab: dict[str, int]) -> np.ndarray:
    """From the pieces' spelling: exact for byte-level BPE, checked on the text read."""
    byte_level = "ByteLevel" in json.dumps(spec.get("decoder"))
    added = {token["content"]: token["special"] for token in spec["added_tokens"]}
    table = np.zeros(max(vocab.values()) + 1, np.int32)
    for piece, index in vocab.items():
        if piece in added:
            table[index] = 0 if added[piece] else len(piece.encode())
        elif byte_level:
            table[index] = len(piece)
        elif _BYTE_TOKEN.fullmatch(piece):
            table[index] = 1
        else:
            # A leading ## continues a word, and ▁ is a space, in the other alphabets.
            table[index] = len(piece.removeprefix("##").replace("▁", " ").encode())
    return table
