"""Codecs: what comes back is what went in, damage is seen, and the choice follows the figures."""

import numpy as np
import pytest
import torch
from kinds import values_of

from datastates.zarr.codecs import CODEC_NAMES, Codec, Measured, choose, decode, measure


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
def test_chunks_come_back(name: str, itemsize: int) -> None:
    codec = Codec(name, itemsize)
    for count in (1, 7, 1000):
        raw = values_of(torch.uint8, (count * itemsize,), seed=count).numpy()
        raw[: len(raw) // 2] = 3
        stored = codec.encode(raw)
        assert decode(codec.documents(), stored, raw.size).tobytes() == raw.tobytes()
        again = decode(codec.documents(), memoryview(stored), raw.size)
        assert again.flags.writeable


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_flipped_bit_is_seen(name: str) -> None:
    codec = Codec(name, 4)
    stored = codec.encode(np.arange(40, dtype=np.uint8))
    for at in range(len(stored)):
        damaged = bytearray(stored)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum mismatch"):
            decode(codec.documents(), bytes(damaged), 40)
    for size in range(5):
        with pytest.raises(ValueError, match="checksum mismatch"):
            decode(codec.documents(), stored[:size], 40)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    codec = Codec(name, 4)
    with pytest.raises(ValueError, match="40"):
        decode(codec.documents(), codec.encode(np.zeros(40, dtype=np.uint8)), 36)


def test_an_unknown_codec_is_named() -> None:
    stored = Codec("none", 1).encode(np.zeros(3, dtype=np.uint8))
    with pytest.raises(ValueError, match="codec 'gzip' is none that archives use"):
        decode([{"name": "gzip", "configuration": {"level": 1}}], stored, 3)


def test_figures_are_those_of_the_sample() -> None:
    found = measure("zstd", 4, [np.zeros(100_000, dtype=np.uint8), np.zeros(50_000, dtype=np.uint8)])
    assert (found.codec, found.raw_bytes) == ("zstd", 150_000)
    assert found.ratio > 100
    assert found.encode_mb_s > 0
    assert found.decode_mb_s > 0


def figures(codec: str, stored: int, encode: float, decoded: float = 500) -> Measured:
    return Measured(codec, 1000, stored, encode, decoded)


def test_the_smallest_that_is_fast_enough_is_chosen() -> None:
    none, fast, slow = figures("none", 1000, 9000, 9000), figures("zstd", 800, 200), figures("blosc-x", 700, 50)
    assert choose([none, fast, slow], 100) is fast
    assert choose([none, fast, slow], 40) is slow
    assert choose([none, fast, slow], 300) is none
    assert choose([none, figures("zstd", 992, 200)], 100) is none  # eight bytes in a thousand are not worth it
    assert choose([fast, figures("blosc-x", 795, 120, 900)], 100).codec == "blosc-x"
