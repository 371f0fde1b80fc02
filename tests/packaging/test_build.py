"""Wheel, editable installation, source distribution: what they hold, and that both packages import."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "csrc", "kernels", "vitgan")

Result = subprocess.CompletedProcess[str]
Build = Callable[..., tuple[Result, Any]]
FreshTree = Callable[[], Path]

# Imports every module of both packages and uses one operator, then tells where they came from.
TRY_OUT = """
import importlib, json, pkgutil, sys
import torch, vitgan, vitgan_kernels
from vitgan_kernels.spectral_norm import native
for package in (vitgan, vitgan_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert vitgan_kernels.l2_attention(*torch.ones(3, 2, 5, 4)).shape == (2, 5, 4)
print(json.dumps({"files": [vitgan.__file__, vitgan_kernels.__file__], "native": native.available()}))
"""


def run(command: list[str], folder: Path, **environment: str) -> Result:
    """Run a command, its messages in one stream, without what this process inherited of variables of ours."""
    dropped = ("PYTHONPATH", "CXX", "CXXFLAGS", "LDFLAGS", "NVCC", "CUDA_HOME", "PYTHON")
    env = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("VITGAN_")}
    return subprocess.run(
        command,
        cwd=folder,
        env=env | environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def fresh_tree(tmp_path_factory: pytest.TempPathFactory) -> FreshTree:
    """Makes copies of the sources without anything built from them, in folders whose name needs quoting."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("source") / "a $tree's copy"
        folder.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                built = shutil.ignore_patterns("*.so", "__pycache__")
                shutil.copytree(ROOT / name, folder / name, ignore=built)
            else:
                shutil.copy(ROOT / name, folder / name)
        return folder

    return copy


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build("wheel" | "editable" | "sdist", tree, **variables) -> what was printed, and the file made.

    These are the hooks that pip calls, run with the setuptools of this environment, so without a network.
    """

    def run_hook(kind: str, tree: Path, **environment: str) -> tuple[Result, Path | None]:
        into = tmp_path_factory.mktemp(kind)
        code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        environment = {"CXXFLAGS": "-O0", "VITGAN_CUDA_ARCHS": "none"} | environment  # for the time that it takes
        result = run([sys.executable, "-c", code, str(into)], tree, **environment)
        return result, next(into.glob("vitgan-*"), None)

    return run_hook


class Built(NamedTuple):
    tree: Path
    wheel: Path
    editable: Path


@pytest.fixture(scope="module")
def built(build: Build, fresh_tree: FreshTree) -> Built:
    """A wheel and then an editable installation's wheel, from the same tree, with the machine's C++ compiler alone."""
    tree = fresh_tree()
    result, wheel = build("wheel", tree)
    assert result.returncode == 0, result.stdout
    assert "the C++ compiler failed" not in result.stdout, result.stdout
    result, editable = build("editable", tree)
    assert result.returncode == 0, result.stdout
    return Built(tree, wheel, editable)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def holds_extension(wheel: Path) -> bool:
    return any(re.fullmatch(r"vitgan_kernels/_native\..*\.so", name) for name in names_in(wheel))


def python_files(tree: Path) -> set[str]:
    """The modules that a user can import, as paths below the folder they are installed in."""
    files = set()
    for parent, package in ((tree, "vitgan"), (tree / "kernels", "vitgan_kernels")):
        files |= {path.relative_to(parent).as_posix() for path in (parent / package).rglob("*.py")}
    return files


class Environment:
    """A virtual environment with the dependencies of this one, but not with the vitgan that this one has."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # Named in a .pth file, folders come after the environment's own, and their .pth files, which hold the
        # hooks of an editable installation, are not read.
        outside = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (self.packages / "dependencies.pth").write_text("\n".join(outside))

    def install(self, wheel: Path) -> None:
        """What pip does with a wheel, an editable installation's too."""
        options = ["-q", "--no-deps", "--no-index", "--target", str(self.packages)]
        result = run([sys.executable, "-m", "pip", "install", *options, str(wheel)], self.folder)
        assert result.returncode == 0, result.stdout

    def tell(self, code: str) -> str:
        result = run([str(self.python), "-c", code], self.folder, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stdout
        return result.stdout.splitlines()[-1]

    def try_out(self) -> dict[str, Any]:
        return json.loads(self.tell(TRY_OUT))


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.fixture
def compiler(built: Built) -> None:
    if not holds_extension(built.wheel):
        assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", "the wheel holds no extension"
        pytest.skip("no C++ compiler here")


def test_wheel_holds_both_packages_whole_and_nothing_else(built: Built) -> None:
    names = {name for name in names_in(built.wheel) if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == python_files(built.tree)
    assert {name.partition("/")[0] for name in names} == {"vitgan", "vitgan_kernels"}


def test_wheel_says_what_it_needs(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        read = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    # no upper bounds: an installation beside a newer PyTorch keeps it
    assert "Requires-Python: >=3.11\n" in read["METADATA"]
    assert "Requires-Dist: torch>=2.11\n" in read["METADATA"]
    assert not re.search(r"Requires-Dist: (torchvision|pybind11|ninja|setuptools)[^;]*\n", read["METADATA"])
    assert "vitgan = vitgan.cli:main" in read["entry_points.txt"]
    assert "MIT License" in read["LICENSE"]


def test_the_constraints_fix_every_requirement_of_development() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    fixed = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["test"], *extras["dev"], *extras["kernels"]]:
        wanted = Requirement(line)
        assert wanted.name == "vitgan" or wanted.specifier.contains(fixed[canonicalize_name(wanted.name)]), line


def test_both_packages_import_from_a_wheel(built: Built, environment: Environment) -> None:
    environment.install(built.wheel)
    told = environment.try_out()
    assert told["files"] == [
        str(environment.packages / "vitgan" / "__init__.py"),
        str(environment.packages / "vitgan_kernels" / "__init__.py"),
    ]
    assert told["native"][0] == holds_extension(built.wheel), told["native"][1]


def test_both_packages_import_from_an_editable_installation(built: Built, environment: Environment) -> None:
    environment.install(built.editable)
    told = environment.try_out()
    assert told["files"] == [
        str(built.tree / "vitgan" / "__init__.py"),
        str(built.tree / "kernels" / "vitgan_kernels" / "__init__.py"),
    ]
    in_place = list((built.tree / "kernels" / "vitgan_kernels").glob("_native*.so"))
    assert told["native"][0] == (len(in_place) == 1), told["native"][1]

    later = built.tree / "vitgan" / "written_later.py"
    later.touch()
    try:
        assert environment.tell("import vitgan.written_later as m; print(m.__file__)") == str(later)
    finally:
        later.unlink()


def test_source_distribution_holds_what_a_build_needs(built: Built, build: Build, tmp_path: Path) -> None:
    result, archive = build("sdist", built.tree)
    assert result.returncode == 0, result.stdout
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    tree = built.tree
    for folder in ("csrc", "vitgan", "kernels"):
        for path in (tree / folder).rglob("*.*"):
            built_here = path.suffix in (".so", ".pyc")
            assert (path.relative_to(tree).as_posix() in names) != built_here, path
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


@pytest.mark.usefixtures("compiler")
def test_a_second_build_compiles_only_what_changed(built: Built, build: Build) -> None:
    def steps() -> int:
        result, _ = build("editable", built.tree)
        if "ninja: no work to do" in result.stdout:
            return 0
        return int(re.findall(r"^\[\d+/(\d+)\]", result.stdout, re.MULTILINE)[-1])

    assert steps() == 0
    (built.tree / "csrc" / "spectral_norm.cpp").touch()
    assert steps() == 2, "one object and the link"
    (built.tree / "csrc" / "spectral_norm.h").touch()
    assert steps() == 3, "both objects include the header"


@pytest.mark.parametrize(
    ("variables", "missing", "what_to_do"),
    [
        (
            {"CXX": "/no/such/c++ -O1"},
            "CXX names '/no/such/c++', which is not a program",
            "correct or unset CXX",
        ),
        (
            {"PATH": "/no/such/folder"},
            "no C++ compiler was found",
            "install one (on Debian and Ubuntu: apt install g++)",
        ),
        ({"CXX": "false"}, "the C++ compiler failed", "mend what it says above"),
    ],
    ids=["CXX is wrong", "no compiler", "compiler fails"],
)
def test_without_a_compiler_it_installs_with_one_clear_line(
    variables: dict[str, str],
    missing: str,
    what_to_do: str,
    build: Build,
    fresh_tree: FreshTree,
    environment: Environment,
) -> None:
    tree = fresh_tree()
    stale = tree / "kernels" / "vitgan_kernels" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.write_text("an extension of other sources")

    result, wheel = build("wheel", tree, **variables)
    assert result.returncode == 0, result.stdout
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("vitgan:"))
    assert "without the compiled extension" in line
    assert missing in line
    assert what_to_do in line
    assert not holds_extension(wheel)
    assert stale.exists(), "a wheel's build leaves an editable installation alone"

    environment.install(wheel)
    told = environment.try_out()
    assert told["native"][0] is False
    assert "is not built" in told["native"][1]

    result, editable = build("editable", tree, **variables)
    assert editable is not None, result.stdout
    assert not stale.exists(), "an extension that does not match the sources must not stay"

    result, wheel = build("wheel", tree, VITGAN_REQUIRE_NATIVE="1", **variables)
    assert result.returncode != 0
    assert wheel is None
    assert missing in result.stdout.splitlines()[-1]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("nvcc", "missing", "what_to_do"),
    [
        ("/no/such/nvcc", "NVCC names '/no/such/nvcc', which is not a program", "correct or unset NVCC"),
        ("false", "nvcc or the C++ compiler failed", "mend what it says above"),
    ],
    ids=["NVCC is wrong", "nvcc fails"],
)
def test_without_nvcc_it_installs_the_cpu_part_with_one_clear_line(
    built: Built, build: Build, nvcc: str, missing: str, what_to_do: str
) -> None:
    result, wheel = build("wheel", built.tree, VITGAN_CUDA_ARCHS="80 90 100", NVCC=nvcc)
    assert result.returncode == 0, result.stdout
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("vitgan:"))
    assert "without the CUDA kernels" in line
    assert missing in line
    assert what_to_do in line
    assert holds_extension(wheel)


@pytest.mark.usefixtures("compiler")
def test_nvcc_compiles_for_every_architecture_and_the_module_loads_without_a_driver(
    built: Built, build: Build, environment: Environment
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    archs = ("sm_80", "sm_90", "sm_100")
    result, wheel = build("wheel", built.tree, VITGAN_CUDA_ARCHS="80 90 100", NVCC_APPEND_FLAGS="-Xptxas -v")
    assert result.returncode == 0, result.stdout
    assert not [line for line in result.stdout.splitlines() if line.startswith("vitgan:")], result.stdout
    for arch in archs:
        assert len(re.findall(rf"Compiling entry function '\w+' for '{arch}'", result.stdout)) == 2, "two kernels"
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stdout)
    assert spilled == [("0", "0", "0")] * 2 * len(archs)
    assert "code=compute_100 " in result.stdout, "for newer devices, to be compiled by their driver"

    environment.install(wheel)
    code = "from vitgan_kernels.spectral_norm import native; print(native.available(), native.device_available(99))"
    told = environment.tell(code)
    assert "CUDA for sm_80 sm_90 sm_100" in told
    assert "cannot run on cuda:99 (vitgan_kernels.spectral_norm: " in told, "whatever CUDA says, with its text"


def test_architectures_that_are_none_are_an_error(built: Built, build: Build) -> None:
    result, wheel = build("wheel", built.tree, VITGAN_CUDA_ARCHS="sm_90")
    assert wheel is None
    assert "vitgan: VITGAN_CUDA_ARCHS has 'sm_90': give numbers such as '80 90 100', or 'none'" in result.stdout
