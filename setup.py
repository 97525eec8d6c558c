"""Build the native extension ``_elastates``; everything else about the distribution stands in pyproject.toml.

csrc/ without bindings/ is compiled without torch (csrc/build_core.py); csrc/bindings/ is compiled by torch's own
BuildExtension, with ninja where it is found, and linked with the rest. Environment:

    ELASTATES_NO_CUDA=1    build the host-only stubs although nvcc is here
    ELASTATES_NO_URING=1   build without io_uring although liburing is here
    MAX_JOBS               compilers running at once (2)
    CXX                    host compiler (g++)
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.errors import CompileError

INSTALL_COMMAND = "pip install torch==2.13.0 && pip install --no-build-isolation ."

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"elastates: building needs torch in this environment ({error}). An isolated build would fetch another torch "
        f"than the one that runs. Run:\n    {INSTALL_COMMAND}"
    )

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_core import build_core_library, find_toolchain  # noqa: E402  (the import needs the line above)

os.environ.setdefault("MAX_JOBS", "2")


class BuildPerTorch(build):
    """Keeps each torch version's objects apart: an extension built against another one does not load."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = f"build/torch-{torch.__version__}"

    def run(self) -> None:
        # setuptools copies this folder into the wheel as it finds it, modules deleted from the checkout included.
        for package in ("datastates", "elaswave", "oneflow_sbp"):
            shutil.rmtree(Path(self.build_lib) / package, ignore_errors=True)
        super().run()


class BuildNative(BuildExtension):
    """Brings the core library up to date, then lets torch build the bindings on it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would use a folder that vanishes, and compile everything each time.
        self.build_temp = str(ROOT / f"build/torch-{torch.__version__}/objects-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        build_temp = Path(self.build_temp)
        build_temp.mkdir(parents=True, exist_ok=True)
        toolchain = find_toolchain()
        print(toolchain.describe(), flush=True)
        with open(build_temp / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two installs from one checkout share these objects
            try:
                library = build_core_library(toolchain, build_temp / "core", max_jobs=int(os.environ["MAX_JOBS"]))
            except subprocess.CalledProcessError as error:  # the compiler has said why
                raise CompileError(f"failed: {shlex.join(error.cmd)}") from None
            (extension,) = self.extensions
            extension.extra_objects = [str(library)]
            extension.depends = [str(library), *headers()]
            extension.extra_compile_args = ["-g1", "-fvisibility=hidden", *toolchain.defines]
            # Our static CUDA runtime must not be mistaken for the shared one that a CUDA torch brings.
            extension.extra_link_args = ["-Wl,--exclude-libs,ALL", *toolchain.link_flags]
            super().build_extensions()


def headers() -> list[str]:
    return sorted(str(path) for path in (ROOT / "csrc").rglob("*.h"))


def bindings() -> Extension:
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "bindings").glob("*.cc"))
    return CppExtension("_elastates", sources, include_dirs=[str(ROOT / "csrc")])


setup(ext_modules=[bindings()], cmdclass={"build": BuildPerTorch, "build_ext": BuildNative})
