"""Compression of chunks: what may be used, what one costs on given bytes, and which one is best.

Every codec is one that both zarr-python and tensorstore decode: ``zstd``, or ``blosc`` with its byte or bit shuffle.
Behind it, each chunk carries its CRC32C. ``numcodecs`` does the work, without the interpreter's lock.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numcodecs
import numpy as np

from datastates.zarr.metadata import Json

import _elastates

MB = 1_000_000
CRC: Json = {"name": "crc32c"}
CRC_BYTES = 4
_SHUFFLES = {"noshuffle": numcodecs.Blosc.NOSHUFFLE, "shuffle": 1, "bitshuffle": 2}


@dataclass(frozen=True)
class Codec:
    """A way to compress chunks of elements of one size."""

    name: str
    """As in :data:`CODEC_NAMES`."""
    itemsize_bytes: int
    """What shuffling works in; blosc notes it."""

    def documents(self) -> list[Json]:
        """The compressor and the checksum, as in ``zarr.json``."""
        kind, *rest = self.name.split("-")
        if kind == "none":
            return [CRC]
        if kind == "zstd":
            return [{"name": "zstd", "configuration": {"level": _LEVELS[kind], "checksum": False}}, CRC]
        cname, shuffle = rest
        configuration = {
            "typesize": self.itemsize_bytes,
            "cname": cname,
            "clevel": _LEVELS[cname],
            "shuffle": shuffle,
            "blocksize": 0,
        }
        return [{"name": "blosc", "configuration": configuration}, CRC]

    def encode(self, raw: np.ndarray) -> bytes:
        """[n] uint8 -> the chunk as it is stored, its checksum at the end."""
        kind, *rest = self.name.split("-")
        if kind == "none":
            packed = raw.tobytes()
        elif kind == "zstd":
            packed = bytes(numcodecs.Zstd(level=_LEVELS[kind]).encode(raw))
        else:
            cname, shuffle = rest
            blosc = numcodecs.Blosc(cname, _LEVELS[cname], _SHUFFLES[shuffle])
            packed = bytes(blosc.encode(raw.view(f"V{self.itemsize_bytes}")))  # it shuffles by the item size it sees
        return packed + struct.pack("<I", _elastates.crc32c(packed))


_UNPACKERS = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc()}
_LEVELS = {"zstd": 3, "lz4": 5}
CODEC_NAMES = (
    "none",
    "zstd",
    "blosc-lz4-shuffle",
    "blosc-lz4-bitshuffle",
    "blosc-zstd-shuffle",
    "blosc-zstd-bitshuffle",
)
"""What ``codec=`` takes besides ``auto``."""


def decode(documents: Sequence[Json], stored: bytes | memoryview, size_bytes: int) -> np.ndarray:
    """[size_bytes] uint8: a chunk from its stored form.

    Args:
        documents: the codecs behind ``bytes``, as they stand in ``zarr.json``.
        stored: what :meth:`Codec.encode` made.
        size_bytes: of the chunk's elements.

    Raises:
        ValueError: the checksum does not match, or what is packed is not a chunk of that size.
    """
    packed = memoryview(stored)[:-CRC_BYTES]
    (expected,) = struct.unpack("<I", memoryview(stored)[-CRC_BYTES:]) if len(stored) >= CRC_BYTES else (None,)
    if expected is None or _elastates.crc32c(packed) != expected:
        raise ValueError("checksum mismatch")
    return _unpack([document for document in documents if document != CRC], packed, size_bytes)


def _unpack(documents: Sequence[Json], packed: memoryview, size_bytes: int) -> np.ndarray:
    """[size_bytes] uint8, in memory of its own that may be written to."""
    out = np.zeros(size_bytes, dtype=np.uint8)
    if not documents:
        if len(packed) != size_bytes:
            raise ValueError(f"{len(packed)} bytes, expected {size_bytes}")
        out[:] = np.frombuffer(packed, dtype=np.uint8)
        return out
    (document,) = documents
    if document["name"] not in _UNPACKERS:
        raise ValueError(f"codec {document['name']!r} is none that archives use")
    try:
        _UNPACKERS[document["name"]].decode(packed, out)  # refuses what would not fit
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{document['name']}: {error}") from error
    return out


@dataclass(frozen=True)
class Measured:
    """What a codec made of a sample, on one thread."""

    codec: str
    raw_bytes: int
    stored_bytes: int
    encode_mb_s: float
    decode_mb_s: float

    @property
    def ratio(self) -> float:
        """Raw over stored: the more, the smaller."""
        return self.raw_bytes / self.stored_bytes


def measure(name: str, itemsize_bytes: int, sample: Sequence[np.ndarray]) -> Measured:
    """Compress and decompress the chunks of a sample.

    Args:
        name: of the codec.
        itemsize_bytes: of an element.
        sample: chunks, each [n] uint8; not empty.
    """
    codec = Codec(name, itemsize_bytes)
    codec.encode(sample[0])  # the first use of a library is slow, and not what a checkpoint costs
    begun = time.perf_counter()
    stored = [codec.encode(chunk) for chunk in sample]
    encoded = time.perf_counter()
    for packed, chunk in zip(stored, sample, strict=True):
        decode(codec.documents(), packed, chunk.size)
    done = time.perf_counter()
    raw_bytes = sum(chunk.size for chunk in sample)
    return Measured(
        name,
        raw_bytes,
        sum(map(len, stored)),
        raw_bytes / MB / max(encoded - begun, 1e-9),
        raw_bytes / MB / max(done - encoded, 1e-9),
    )


def choose(measured: Sequence[Measured], min_mb_s: float) -> Measured:
    """The smallest among those that compress at ``min_mb_s`` or more; the fastest of those within a hundredth of it.

    "none" always qualifies, and wins where the others gain less than a hundredth.
    """
    able = [m for m in measured if m.encode_mb_s >= min_mb_s or m.codec == "none"] or list(measured)
    smallest = min(m.stored_bytes for m in able)
    near = [m for m in able if m.stored_bytes <= 1.01 * smallest]
    return max(near, key=lambda m: (m.codec == "none", m.decode_mb_s, m.encode_mb_s))
