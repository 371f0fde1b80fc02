"""Builds the extension module `vitgan_kernels._native` from csrc/; everything else is in pyproject.toml.

One ninja file compiles each source and links them, so a second build compiles only what changed. Where nvcc is found
(NVCC, PATH, or CUDA_HOME/bin), the CUDA sources are part of it, for the architectures in VITGAN_CUDA_ARCHS ("80 90 100"
if unset; "none" leaves CUDA out) and any newer. Where the extension or its CUDA part cannot be built, the package
installs without, with one line that says what is missing (pip shows it with -v); VITGAN_REQUIRE_NATIVE=1 makes it an
error to be without the extension. CXX, CXXFLAGS and LDFLAGS are respected.

csrc/*.simd.cpp are compiled once for each level of csrc/levels.h whose flags the compiler knows.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cpp"))
CUDA_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cu"))
# no -march: a wheel runs on machines other than its builder; products and sums unfused, for the same bits everywhere
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off"]
# kernels fuse products and sums, and read no errno
SIMD_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti"]
OPTIONAL_SIMD_FLAGS = ["-Wno-psabi", "-fno-version-loops-for-strides"]  # GCC's own; the second from GCC 11
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
LEVELS = {"generic": [], "avx2": AVX2, "avx512": AVX512, "amx": AMX}
CUDA_FLAGS = ["-O3", "-std=c++17", "--threads", "0", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
CUDA_ARCHS = "80 90 100"


class CannotBuildError(Exception):
    """The extension, or its CUDA part, cannot be built here; the text says what is missing and what to do."""


def find_compiler() -> list[str]:
    """The C++ compiler's command: CXX, which may hold options too, or the first of the usual names."""
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]):
            return command
        raise CannotBuildError(f"CXX names {command[0]!r}, which is not a program: correct or unset CXX")
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise CannotBuildError("no C++ compiler was found: install one (on Debian and Ubuntu: apt install g++)")


def find_nvcc() -> str:
    """The nvcc program: NVCC, or the first on PATH or in CUDA_HOME."""
    if command := os.environ.get("NVCC"):
        if path := shutil.which(command):
            return path
        raise CannotBuildError(f"NVCC names {command!r}, which is not a program: correct or unset NVCC")
    in_home = str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"))
    if path := shutil.which("nvcc") or shutil.which(in_home):
        return path
    raise CannotBuildError("no nvcc was found: install the CUDA toolkit, or name its compiler in NVCC")


def cuda_architectures() -> list[str]:
    """The numbers of VITGAN_CUDA_ARCHS, as "80" or "90a"; empty to leave CUDA out."""
    archs = os.environ.get("VITGAN_CUDA_ARCHS", CUDA_ARCHS).replace(",", " ").split()
    if archs == ["none"]:
        return []
    for arch in archs:
        if not arch.removesuffix("a").removesuffix("f").isdigit():
            sys.exit(f"vitgan: VITGAN_CUDA_ARCHS has {arch!r}: give numbers such as {CUDA_ARCHS!r}, or 'none'")
    return archs


def knows(compiler: list[str], flags: list[str]) -> bool:
    """Whether the compiler takes the flags, for the machine that it compiles for."""
    command = [*compiler, "-Werror", *flags, "-x", "c++", "-c", "-", "-o", os.devnull]
    return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0


def known_levels(compiler: list[str]) -> dict[str, list[str]]:
    """The levels that can be compiled, lowest first, with their flags."""
    common = SIMD_FLAGS + [flag for flag in OPTIONAL_SIMD_FLAGS if knows(compiler, [flag])]
    known = {}
    for level, flags in LEVELS.items():
        if not knows(compiler, flags):
            break
        known[level] = [*common, *flags, f"-DVITGAN_LEVEL={level}"]
    return known


def find_includes() -> list[str]:
    """Flags for the headers of Python and pybind11."""
    try:
        import pybind11
    except ImportError as error:
        raise CannotBuildError("pybind11 is not installed: pip install pybind11") from error
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").exists():
        what_to_do = "install Python's headers (on Debian and Ubuntu: apt install python3-dev)"
        raise CannotBuildError(f"Python.h is not in {python}: {what_to_do}")
    # as system headers they stay out of the dependency files: isolated builds have them in a new place each time
    return ["-isystem", pybind11.get_include(), "-isystem", python]


def find_ninja() -> str:
    """The ninja program, of the Python package or else on PATH."""
    try:
        import ninja
    except ImportError:
        if path := shutil.which("ninja"):
            return path
        raise CannotBuildError("ninja is not installed: pip install ninja") from None
    return str(Path(ninja.BIN_DIR, "ninja"))


def ninja_command(arguments: list[str]) -> str:
    """A shell command for a ninja rule; $in and $out stay ninja's own."""
    own = ("$in", "$out", "$out.d")
    return " ".join(a if a in own else shlex.quote(a).replace("$", "$$") for a in arguments)


def ninja_file(sources: list[str], cuda_sources: list[str], archs: list[str], target: str) -> str:
    """The build as ninja reads it: a rule for each kind of source and each level, their objects, one link."""
    compiler = find_compiler()
    flags = [*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    levels = known_levels(compiler)
    # a JSON string of plain characters is also a C string
    defines = [f"-DVITGAN_CXX_FLAGS={json.dumps(shlex.join(flags))}"]
    flags += [f"-DVITGAN_WITH_{level.upper()}" for level in levels if level != "generic"]
    linker_flags = shlex.split(os.environ.get("LDFLAGS", ""))
    depfile = ["-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
    rules = {
        "cxx": [*compiler, *flags, *depfile],
        **{level: [*compiler, *flags, *own, *depfile] for level, own in levels.items()},
        "link": [*compiler, "-shared", "-pthread", "-o", "$out", "$in", *linker_flags],
    }
    if archs:
        # The runtime is linked in: the module then loads where there is no CUDA. nvcc knows where it lies; nvcc may be
        # a wrapper script, so its own path does not tell.
        nvcc = [find_nvcc(), "-ccbin", compiler[0]]
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        # and for devices newer than these, in a form that their driver compiles
        newest = max(archs, key=lambda arch: int(arch.rstrip("af")))
        targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        rules["nvcc"] = [*nvcc, *CUDA_FLAGS, *targets, "-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
        passed_on = [part for flag in ["-pthread", *linker_flags] for part in ("-Xcompiler", flag)]
        hidden = ["-Xlinker", "--exclude-libs,ALL"]
        rules["link"] = [*nvcc, "-shared", "-cudart", "static", "-o", "$out", "$in", *hidden, *passed_on]
        defines.append(f"-DVITGAN_WITH_CUDA={json.dumps(' '.join(f'sm_{arch}' for arch in archs))}")
    rules["binding"] = [*compiler, *flags, *find_includes(), *defines, *depfile]
    lines = []
    for rule, command in rules.items():
        lines += [f"rule {rule}", f"  command = {ninja_command(command)}"]
        if rule != "link":
            lines += ["  depfile = $out.d", "  deps = gcc"]
    objects = []
    for source in [*sources, *(cuda_sources if archs else [])]:
        name = Path(source).name
        if name.endswith(".simd.cpp"):
            rules_of_source = list(levels)
        else:
            rules_of_source = ["nvcc" if name.endswith(".cu") else "binding" if name.endswith("binding.cpp") else "cxx"]
        for rule in rules_of_source:
            # the binding differs with and without CUDA, and a build that falls back from one to the other keeps both
            with_cuda = f"-{'-'.join(archs)}" if rule == "binding" and archs else ""
            objects.append(f"{name}-{rule}{with_cuda}.o")
            lines.append(f"build {objects[-1]}: {rule} {source}")
    lines.append(f"build {target}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildNative(build_ext):
    """Builds an extension through ninja, or says in one line why not."""

    def build_extension(self, ext: Extension) -> None:
        """Leave the module where setuptools expects it, or nothing."""
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            built = self.build_with_cuda_or_without(module)
        except CannotBuildError as error:
            self.give_up(ext, module, str(error))
        else:
            module.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built, module)

    def build_with_cuda_or_without(self, module: Path) -> Path:
        """The whole of it if that can be, and otherwise the CPU's part, with one line that says so."""
        archs = cuda_architectures()
        if archs:
            try:
                return self.run_ninja(module, archs)
            except CannotBuildError as error:
                without_cuda = self.run_ninja(module, [])
                print(f"vitgan: installing without the CUDA kernels: {error}; then install again", file=sys.stderr)
                return without_cuda
        return self.run_ninja(module, [])

    def run_ninja(self, module: Path, archs: list[str]) -> Path:
        """Compile and link, in a folder that the next build of the same tree finds again."""
        folder = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        # relative: a space or a dollar in the checkout's path would need the quoting of ninja and of make
        sources, cuda_sources = (
            [os.path.relpath(ROOT / source, folder) for source in kind] for kind in (SOURCES, CUDA_SOURCES)
        )
        text = ninja_file(sources, cuda_sources, archs, module.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(text)
        if subprocess.run([find_ninja(), "-C", str(folder)], check=False).returncode != 0:
            compilers = "nvcc or the C++ compiler" if archs else "the C++ compiler"
            raise CannotBuildError(f"{compilers} failed: mend what it says above (pip shows it with -v)")
        return folder / module.name

    def give_up(self, ext: Extension, module: Path, reason: str) -> None:
        """One line and no extension, not even an earlier build's: it would not match the sources."""
        if os.environ.get("VITGAN_REQUIRE_NATIVE") == "1":
            sys.exit(f"vitgan: the compiled extension is required (VITGAN_REQUIRE_NATIVE=1): {reason}")
        module.unlink(missing_ok=True)
        if self.editable_mode:
            package = self.get_finalized_command("build_py").get_package_dir(ext.name.rpartition(".")[0])
            Path(package, module.name).unlink(missing_ok=True)
        print(
            f"vitgan: installing without the compiled extension: {reason}; then install again",
            file=sys.stderr,
        )


setup(
    ext_modules=[Extension("vitgan_kernels._native", [*SOURCES, *CUDA_SOURCES], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
