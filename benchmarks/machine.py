"""What a figure was measured on, so that it can be judged later."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

MB = 10**6


def describe(directory: Path) -> dict[str, Any]:
    """CPU, memory, kernel, file system of ``directory`` and library versions, ready for JSON."""
    mount_point, file_system, options = mount_of(directory)
    return {
        "cpu_model": _field_of("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB),
        "kernel": platform.release(),
        "file_system": file_system,
        "mount_point": mount_point,
        "mount_options": options,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_average_1min": os.getloadavg()[0],
    }


def mount_of(directory: Path) -> tuple[str, str, str]:
    """Mount point, file system type and options of the longest mount that contains ``directory``."""
    target = directory.resolve()
    best = ("/", "unknown", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if target.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind, options)
    return best


def _field_of(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return platform.machine()
