"""Tells torch of the backend "elastic" when torch is imported: the command line, which needs none, stays quick."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

BACKEND_NAME = "elastic"


def register_with_torch() -> None:
    """Register now if torch is imported already, else right after it has been."""
    if "torch" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _TorchWatcher())


def _register() -> None:
    import torch.distributed as dist

    if dist.is_available():
        dist.Backend.register_backend(BACKEND_NAME, _create, extended_api=True, devices=["cpu", "cuda"])


def _create(options: object, backend_options: object) -> object:
    """What torch calls for a new group; the native code is loaded with the first."""
    from elaswave.backend import create_process_group

    if getattr(options, "enable_reconfigure", False):
        from elaswave.reconfigure import create_awaiting_group

        return create_awaiting_group(options)
    return create_process_group(options, backend_options)


class _TorchWatcher(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find torch, and registers when its code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_module_and_register(module: ModuleType) -> None:
            run_module(module)
            _register()

        spec.loader.exec_module = run_module_and_register  # type: ignore[method-assign]
        return spec
