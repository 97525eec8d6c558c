"""Archive a checkpoint, read it back, and print what it cost: sizes, codecs, MB/s.

    python benchmarks/archive.py runs/gpt
    python benchmarks/archive.py runs/gpt --codec zstd --threads 4 --json archive.json

Everything is written below --directory and removed afterwards. MB are 10^6 bytes of uncompressed state; times include
syncing. Reading back begins with a cold page cache for the files of the archive.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import datastates
from datastates.zarr.codecs import CODEC_NAMES


def main() -> None:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a directory of them: the newest")
    parser.add_argument("--codec", default="auto", choices=["auto", *CODEC_NAMES])
    parser.add_argument("--threads", type=int, help="default: processors, 8 at most")
    parser.add_argument("--directory", type=Path, default=Path("."), help="where to write; default: here")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        figures = measure(arguments.checkpoint, Path(scratch), arguments.codec, arguments.threads)
    print_figures(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def measure(checkpoint: Path, scratch: Path, codec: str, threads: int | None) -> dict[str, Any]:
    """Archive, verify, read and unarchive; the times of each."""
    report = datastates.archive(checkpoint, scratch / "archive.zarr", codec=codec, threads=threads)
    drop_caches(report.path)
    begun = time.perf_counter()
    damage = datastates.open_archive(report.path, threads=threads).verify()
    verified_s = time.perf_counter() - begun
    drop_caches(report.path)
    begun = time.perf_counter()
    reader = datastates.open_archive(report.path, threads=threads)
    reader.read_many(dict.fromkeys(reader.names()))
    read_s = time.perf_counter() - begun
    shutil.rmtree(scratch / "again", ignore_errors=True)
    begun = time.perf_counter()
    datastates.unarchive(report.path, scratch / "again", threads=threads)
    unarchived_s = time.perf_counter() - begun
    mb = report.raw_bytes / 1e6
    return {
        "raw_mb": mb,
        "stored_mb": report.stored_bytes / 1e6,
        "ratio": report.ratio,
        "damage": len(damage),
        "archive_mb_s": mb / report.elapsed_s,
        "verify_mb_s": mb / verified_s,
        "read_mb_s": mb / read_s,
        "unarchive_mb_s": mb / unarchived_s,
        "codecs": dict(report.codecs),
        "measured": {
            kind: {m.codec: [m.ratio, m.encode_mb_s, m.decode_mb_s] for m in found}
            for kind, found in report.measured.items()
        },
    }


def drop_caches(path: Path) -> None:
    """Let go of the page cache of every file below ``path``."""
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def print_figures(figures: dict[str, Any]) -> None:
    """As a table for people."""
    print(f"{figures['raw_mb']:.1f} MB -> {figures['stored_mb']:.1f} MB, ratio {figures['ratio']:.3f}")
    for name in ("archive", "verify", "read", "unarchive"):
        print(f"{name:>10} {figures[f'{name}_mb_s']:8.0f} MB/s")
    for kind, codec in figures["codecs"].items():
        print(f"{kind:<40} {codec}")
        for name, (ratio, encode, decode) in figures["measured"].get(kind, {}).items():
            print(f"    {name:<24} ratio {ratio:6.3f}  pack {encode:6.0f} MB/s  unpack {decode:6.0f} MB/s")


if __name__ == "__main__":
    main()
