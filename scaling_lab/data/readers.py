"""Files -> documents: one reader per kind of file.

A document is UTF-8 text without NUL, as bytes. Bad input raises and names the file,
the place in it and the remedy; nothing is skipped silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

#: A reader yields the documents of one file.
Reader = Callable[[Path], Iterator[bytes]]

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


def text(path: Path) -> Iterator[bytes]:
    """The whole file as one document.

    Raises:
      ValueError: empty, not UTF-8, or binary.
    """
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(
            f"{path} is empty ({len(data)} bytes, no text); fill it or leave it out"
        )
    check(data, path)
    yield data.removeprefix(_UTF8_MARK)


def code(path: Path) -> Iterator[bytes]:
    """As `text`, but an empty file is fine: it only marks a Python package."""
    if path.read_bytes().strip():
        yield from text(path)


def jsonl(path: Path) -> Iterator[bytes]:
    """One document a line: the string under ``"text"``; blank lines and texts pass.

    Raises:
      ValueError: a line that is not UTF-8, not JSON, or has no such string; or no
        text in the whole file.
    """
    offset, found = 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            check(line, path, offset)
            offset += len(line)
            if not line.strip():
                continue
            document = _encoded(_field(line, path, number), f"{path}, line {number}")
            if document:
                found = True
                yield document
    if not found:
        raise ValueError(
            f"{path} is empty ({offset} bytes, no text); write one JSON object a "
            'line: {"text": "…"}'
        )


def parquet(path: Path) -> Iterator[bytes]:
    """One document a row: the string column ``text``; nulls and blanks pass.

    Raises:
      ImportError: pyarrow is missing.
      ValueError: not parquet, no such column, or no text in any row.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: reading parquet needs pyarrow: pip install 'scaling_lab[parquet]'"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{path} is not a whole parquet file ({path.stat().st_size} bytes: "
            f"{error}); write or download it again"
        ) from error
    with file:
        yield from _rows(file, path)


def check(data: bytes, path: Path, offset: int = 0) -> None:
    """Raises unless `data`, found at byte `offset` of `path`, is text.

    Raises:
      ValueError: names the first byte that is not UTF-8, or the first NUL.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if data[:2] in _UTF16_MARKS else "ISO-8859-1"
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start} ({error.reason}). If it is text, convert it from "
            f"its encoding: iconv -f {encoding} -t UTF-8 '{path}' > "
            f"'{path.stem}.utf8{path.suffix}'; if it is compressed, unpack it"
        ) from None
    nul = data.find(b"\0")
    if nul >= 0:
        raise ValueError(
            f"{path} is binary: byte 0x00 at offset {offset + nul}, which text never "
            "holds. Leave the file out; if it is UTF-16 text, convert it: "
            f"iconv -f UTF-16 -t UTF-8 '{path}' > '{path.stem}.utf8{path.suffix}'"
        )


def _field(line: bytes, path: Path, number: int) -> str:
    try:
        row = json.loads(line.removeprefix(_UTF8_MARK))
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number} is not JSON ({error}); write one object a line: "
            '{"text": "…"}'
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {number} is a JSON {type(row).__name__}, not an object; "
            'write {"text": "…"}'
        )
    if "text" not in row:
        raise ValueError(
            f"{path}, line {number} has no key 'text', only {sorted(row)}; "
            "rename the key that holds the document"
        )
    if not isinstance(row["text"], str):
        raise ValueError(
            f"{path}, line {number}: 'text' is a {type(row['text']).__name__}; "
            "it must be a string"
        )
    return row["text"]


def _rows(file, path: Path) -> Iterator[bytes]:
    import pyarrow

    columns = file.schema_arrow
    if "text" not in columns.names:
        raise ValueError(
            f"{path} has no column 'text', only {columns.names}; "
            "rename the column that holds the document"
        )
    kind = columns.field("text").type
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        raise ValueError(f"{path}: column 'text' holds {kind}; it must hold strings")
    row, found = 0, False
    for batch in file.iter_batches(batch_size=1024, columns=["text"]):
        for value in batch.column(0):
            document = _encoded(_string(value, path, row), f"{path}, row {row}")
            row += 1
            if document:
                found = True
                yield document
    if not found:
        raise ValueError(
            f"{path} is empty ({row} rows, no text); fill column 'text' or leave it out"
        )


def _string(value, path: Path, row: int) -> str:
    try:
        return value.as_py() or ""
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row {row} is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"at offset {error.start} of 'text' ({error.reason}); write it again as "
            "UTF-8"
        ) from None


def _encoded(document: str, where: str) -> bytes:
    """UTF-8, or nothing where the document is blank."""
    if not document.strip():
        return b""
    nul = document.find("\0")
    if nul >= 0:
        raise ValueError(
            f"{where}: 'text' holds NUL at character {nul}, which text never holds; "
            "remove it, or leave the document out"
        )
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: 'text' holds half a surrogate pair at character {error.start}, "
            "which is no character; write the text again as UTF-8"
        ) from None
