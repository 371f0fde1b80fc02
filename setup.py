"""Builds the extension module `vitgan_kernels._native` from csrc/; everything else is in pyproject.toml.

One ninja file compiles each source and links them, so a second build compiles only what changed. Where the
extension cannot be built the package installs without it, with one line that says what is missing (pip shows
it with -v); VITGAN_REQUIRE_NATIVE=1 makes that an error. CXX, CXXFLAGS and LDFLAGS are respected.
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
# no -march: a wheel must run on machines other than the one that built it
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]


class CannotBuildError(Exception):
    """The extension cannot be built here; the text says what is missing and what to do."""


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


def ninja_file(sources: list[str], target: str) -> str:
    """The build as ninja reads it: one rule for each kind of source, one object for each source, one link."""
    compiler = find_compiler()
    flags = [*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    # a JSON string of plain characters is also a C string
    flags_for_build_info = f"-DVITGAN_CXX_FLAGS={json.dumps(shlex.join(flags))}"
    depfile = ["-MMD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
    rules = {
        "cxx": [*compiler, *flags, *depfile],
        "binding": [*compiler, *flags, *find_includes(), flags_for_build_info, *depfile],
        "link": [*compiler, "-shared", "-pthread", "-o", "$out", "$in", *shlex.split(os.environ.get("LDFLAGS", ""))],
    }
    lines = []
    for rule, command in rules.items():
        lines += [f"rule {rule}", f"  command = {ninja_command(command)}"]
        if rule != "link":
            lines += ["  depfile = $out.d", "  deps = gcc"]
    objects = []
    for source in sources:
        rule = "binding" if Path(source).stem == "binding" else "cxx"
        objects.append(f"{Path(source).stem}.o")
        lines.append(f"build {objects[-1]}: {rule} {source}")
    lines.append(f"build {target}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildNative(build_ext):
    """Builds an extension through ninja, or says in one line why not."""

    def build_extension(self, ext: Extension) -> None:
        """Leave the module where setuptools expects it, or nothing."""
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            built = self.run_ninja(ext.sources, module)
        except CannotBuildError as error:
            self.give_up(ext, module, str(error))
        else:
            module.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built, module)

    def run_ninja(self, sources: list[str], module: Path) -> Path:
        """Compile and link, in a folder that the next build of the same tree finds again."""
        folder = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        # relative: a space or a dollar in the checkout's path would need the quoting of ninja and of make
        text = ninja_file([os.path.relpath(ROOT / source, folder) for source in sources], module.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(text)
        if subprocess.run([find_ninja(), "-C", str(folder)], check=False).returncode != 0:
            raise CannotBuildError("the C++ compiler failed: mend what it says above (pip shows it with -v)")
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
    ext_modules=[Extension("vitgan_kernels._native", SOURCES, optional=True)],
    cmdclass={"build_ext": BuildNative},
)
