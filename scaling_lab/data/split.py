"""Train or held out, decided by a hash of the text, so the choice is stable.

The unit is a stretch: a whole document, or, of a long one, some 16 KiB up to the end
of a line. So one long file has a held-out part too, and adding documents moves none of
the others. Neighbouring stretches with the same fate stay one document.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator

STRETCH_BYTES = 16 * 1024

_HASH_BYTES = 8


def held_out_limit(documents: Iterable[bytes], fraction: float) -> int:
    """Stretches whose hash is below this are held out.

    It follows `fraction`, except that of two or more different stretches at least one
    falls on either side: few documents would else often leave a split empty.
    """
    if fraction == 0.0:
        return 0
    hashes = [
        _hash(stretch) for document in documents for stretch in stretches(document)
    ]
    limit = int(fraction * 2 ** (8 * _HASH_BYTES))
    return min(max(limit, min(hashes) + 1), max(hashes))


def pieces(document: bytes, limit: int) -> Iterator[tuple[bool, bytes]]:
    """(held out?, text) of a document, in order; joined they are the document."""
    fates = ((_hash(stretch) < limit, stretch) for stretch in stretches(document))
    for held_out, group in itertools.groupby(fates, key=lambda fate: fate[0]):
        yield held_out, b"".join(stretch for _, stretch in group)


def stretches(document: bytes) -> Iterator[bytes]:
    """Cuts a document after line ends, else after spaces, else between characters."""
    start = 0
    while len(document) - start >= 2 * STRETCH_BYTES:
        after = document[start + STRETCH_BYTES : start + 2 * STRETCH_BYTES]
        cut = after.find(b"\n") + 1 or after.find(b" ") + 1 or _character_start(after)
        end = start + STRETCH_BYTES + cut
        yield document[start:end]
        start = end
    yield document[start:]


def _character_start(after: bytes) -> int:
    return next(i for i, byte in enumerate(after) if byte & 0xC0 != 0x80)


def _hash(stretch: bytes) -> int:
    digest = hashlib.blake2b(stretch, digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big")
