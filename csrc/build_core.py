"""Compile everything under csrc/ but bindings/ into one static library, without torch and incrementally.

setup.py calls ``find_toolchain`` and ``build_core_library``. An object is compiled again when its command line changed
or when its source, or a header named in its dependency file, is newer; so editing Python compiles nothing.
Nothing here imports torch or setuptools.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent

# The same in the bindings, whose flags come from Python's own build: assert() must mean one thing in both.
CXX_FLAGS = ("-std=c++17", "-O3", "-g1", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
NVCC_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")

# Machine code for these where the compiler knows them, and PTX of the last one for what comes after.
GPU_ARCHITECTURES = (80, 90, 100, 120)

URING_PROBE = "#include <liburing.h>\nint main() { io_uring ring; return io_uring_queue_init(8, &ring, 0) > 0; }\n"
CUDA_PROBE = (
    "#include <cuda_runtime.h>\nint main() { int count; return cudaGetDeviceCount(&count) == 0 && count < 0; }\n"
)


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """What this machine can compile; decided once, by compiling and linking a small program."""

    cxx: tuple[str, ...]
    """Command of the host compiler."""
    nvcc: str | None
    """Path of nvcc, or None for a build without CUDA."""
    cuda_include_dir: str | None = None
    cuda_library_dir: str | None = None
    """Where libcudart_static.a lies."""
    gpu_architectures: tuple[int, ...] = ()
    has_uring: bool = False

    @property
    def defines(self) -> tuple[str, ...]:
        cuda = ("-DELASTATES_WITH_CUDA",) if self.nvcc else ()
        return cuda + (("-DELASTATES_WITH_URING",) if self.has_uring else ())

    @property
    def include_flags(self) -> tuple[str, ...]:
        cuda = ("-isystem", self.cuda_include_dir) if self.cuda_include_dir else ()
        return (f"-I{CSRC}", *cuda)

    @property
    def link_flags(self) -> tuple[str, ...]:
        """What a program that links the library needs behind it."""
        cuda = (f"-L{self.cuda_library_dir}", "-lcudart_static", "-lrt", "-ldl") if self.nvcc else ()
        return (*cuda, *(("-luring",) if self.has_uring else ()), "-pthread")

    def describe(self) -> str:
        architectures = " ".join(f"sm_{arch}" for arch in self.gpu_architectures)
        cuda = f"{self.nvcc} ({architectures})" if self.nvcc else "no (the host-only stubs are built)"
        return f"elastates: C++ {' '.join(self.cxx)}; CUDA {cuda}; io_uring {'yes' if self.has_uring else 'no'}"


def find_toolchain() -> Toolchain:
    """Look for the compilers and libraries; ELASTATES_NO_CUDA=1 and ELASTATES_NO_URING=1 turn their parts off."""
    cxx = tuple(shlex.split(os.environ.get("CXX", "g++")))
    has_uring = not _is_set("ELASTATES_NO_URING") and _links((*cxx, "-xc++", "-"), URING_PROBE, ("-luring",))
    for nvcc in [] if _is_set("ELASTATES_NO_CUDA") else _nvcc_candidates():
        cuda = _probe_cuda(cxx, nvcc, has_uring)
        if cuda:
            return cuda
    return Toolchain(cxx=cxx, nvcc=None, has_uring=has_uring)


def build_core_library(toolchain: Toolchain, build_dir: Path, *, max_jobs: int) -> Path:
    """Bring ``build_dir``/libelastates_core.a up to date and return its path.

    Raises:
        subprocess.CalledProcessError: a compiler refused a source; its message has been printed.
    """
    commands = _compile_commands(toolchain, build_dir)
    stale = [(output, command) for output, command in commands.items() if _is_stale(output, command)]
    with ThreadPoolExecutor(max_jobs) as pool:
        list(pool.map(lambda job: _compile(*job), stale))
    return _archive(build_dir / "libelastates_core.a", sorted(commands))


def _compile_commands(toolchain: Toolchain, build_dir: Path) -> dict[Path, list[str]]:
    """Object file -> the command that makes it."""
    cxx = [*toolchain.cxx, *CXX_FLAGS, *toolchain.defines, *toolchain.include_flags]
    nvcc = [str(toolchain.nvcc), *NVCC_FLAGS, *toolchain.defines, *toolchain.include_flags, *_gencode(toolchain)]
    commands = {}
    for source in _core_sources(with_cuda=toolchain.nvcc is not None):
        output = build_dir / source.relative_to(CSRC).with_suffix(source.suffix + ".o")
        compiler = nvcc if source.suffix == ".cu" else cxx
        commands[output] = [*compiler, "-MMD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
    return commands


def _core_sources(*, with_cuda: bool) -> list[Path]:
    suffixes = {".cc", ".cu"} if with_cuda else {".cc"}
    candidates = (path for path in CSRC.rglob("*") if path.suffix in suffixes)
    return sorted(path for path in candidates if path.relative_to(CSRC).parts[0] != "bindings")


def _gencode(toolchain: Toolchain) -> list[str]:
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in toolchain.gpu_architectures]
    newest = toolchain.gpu_architectures[-1:]
    return flags + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in newest]


def _is_stale(output: Path, command: list[str]) -> bool:
    command_file = Path(f"{output}.cmd")
    if not output.exists() or not command_file.exists() or command_file.read_text() != shlex.join(command):
        return True
    built_ns = output.stat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns > built_ns for path in _dependencies(output))


def _dependencies(output: Path) -> list[Path]:
    """The files named in the make rule that the compiler wrote next to ``output``."""
    rule = Path(f"{output}.d").read_text().replace("\\\n", " ")
    return [Path(name) for name in rule.partition(":")[2].split()]


def _compile(output: Path, command: list[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)
    Path(f"{output}.cmd").write_text(shlex.join(command))


def _archive(library: Path, objects: list[Path]) -> Path:
    """Pack the objects anew unless the library is newer than all of them and holds just these."""
    members = "\n".join(map(str, objects))
    member_file = Path(f"{library}.members")
    if library.exists() and member_file.exists() and member_file.read_text() == members:
        built_ns = library.stat().st_mtime_ns
        if all(path.stat().st_mtime_ns <= built_ns for path in objects):
            return library
    library.parent.mkdir(parents=True, exist_ok=True)
    library.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", str(library), *map(str, objects)], check=True)
    member_file.write_text(members)
    return library


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def _links(compile_command: tuple[str, ...], program: str, link_flags: tuple[str, ...]) -> bool:
    """Whether ``program``, fed on standard input, compiles and links."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [*compile_command, "-o", f"{scratch}/probe", *link_flags]
        return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def _nvcc_candidates() -> list[str]:
    """Every nvcc that could be used, best first: PATH, CUDA_HOME, the usual place, the nvidia-* wheels."""
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    paths = [Path(root) / "bin" / "nvcc" for root in roots if root] + sorted(wheels.glob("cu*/bin/nvcc"))
    on_path = shutil.which("nvcc")
    return ([on_path] if on_path else []) + [str(path) for path in paths if os.access(path, os.X_OK)]


def _probe_cuda(cxx: tuple[str, ...], nvcc: str, has_uring: bool) -> Toolchain | None:
    """The toolchain with this nvcc, or None if what it stands on cannot link a program against static cudart."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "probe.cu").write_text(CUDA_PROBE)
        answer = subprocess.run(
            [nvcc, "--dryrun", "-c", f"{scratch}/probe.cu"], cwd=scratch, capture_output=True, text=True
        )
    top = next((line.partition("=")[2] for line in answer.stderr.splitlines() if "TOP=" in line), None)
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    architectures = tuple(arch for arch in GPU_ARCHITECTURES if f"sm_{arch}" in known)
    if top is None or not architectures:
        return None
    for library_dir in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        toolchain = Toolchain(
            cxx=cxx,
            nvcc=nvcc,
            cuda_include_dir=os.path.realpath(f"{top}/include"),
            cuda_library_dir=os.path.realpath(f"{top}/{library_dir}"),
            gpu_architectures=architectures,
            has_uring=has_uring,
        )
        compile_command = (*cxx, *toolchain.include_flags, "-xc++", "-", "-xnone")
        if _links(compile_command, CUDA_PROBE, toolchain.link_flags):
            return toolchain
    return None
