"""The script ./run: which Python it takes, when it installs, and what it says when it cannot.

A stand-in for Python writes down how it is called, so nothing is downloaded or installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "dirname", "basename", "find", "cksum", "sort", "sed", "mkdir", "cp", "rm", "mv")

# {kind} is what the real probe would find; `-m venv` copies the stand-in; pip and doctor fail where LOG.fail exists.
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-c "*ensurepip*) echo {kind} ;;
    "-c "*version_info*) echo 3.11 ;;
    "-c "*native*) echo "the extension is built" ;;
    "--version ") echo "Python {name}" ;;
    "-m venv")
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        cp "$0" "$3/bin/vitgan"
        echo "make $3" >>"$LOG" ;;
    "-m pip") case $3 in
        --version) ;;
        list) printf 'numpy==2.4.0\\nnvidia-nccl==2\\npip==26.3\\ntorch==2.13.0+cpu\\nvitgan==0.1.0\\n' ;;
        *)
            shift 2
            echo "pip $* ${{PIP_CONSTRAINT:-}} ${{PIP_BUILD_CONSTRAINT:-}}" >>"$LOG"
            [ ! -e "$LOG.fail" ] ;;
        esac ;;
    *)
        echo "$(basename "$0") $* in $(pwd)" >>"$LOG"
        [ ! -e "$LOG.fail" ] ;;
esac
"""


class Checkout:
    """A checkout, and a PATH with nothing but the Pythons that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home, self.bin, self.log = (folder / name for name in ("a checkout", "home", "bin", "log"))
        self.fail = folder / "log.fail"
        for path in (self.root, self.home, self.bin):
            path.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
        for name in ("run", "pyproject.toml", "constraints.txt", "setup.py"):
            shutil.copy(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "csrc", self.root / "csrc")

    def add_python(self, name: str, kind: str = "yes") -> None:
        (self.bin / name).write_text(STAND_IN.format(kind=kind, name=name))
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "run", *arguments],
            cwd=self.home,
            env={"PATH": str(self.bin), "LOG": str(self.log)} | environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        """What was called since this was last asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace(str(self.root), "ROOT").strip() for line in lines]


@pytest.fixture
def empty(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def checkout(empty: Checkout) -> Checkout:
    empty.add_python("python3")
    return empty


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    checkout.run("train")
    checkout.calls()
    return checkout


def pip(extras: str = "", constraints: str = " constraints.txt constraints.txt") -> str:
    return f"pip install -q --disable-pip-version-check -e ROOT{extras}{constraints}"


def test_train_makes_the_environment_installs_and_goes_where_the_user_is(checkout: Checkout) -> None:
    result = checkout.run("train", "--steps", "two words")
    assert result.returncode == 0, result.stderr
    assert checkout.calls() == ["make ROOT/.venv", pip(), f"vitgan train --steps two words in {checkout.home}"]
    assert result.stdout == ""
    making, installing, extension = result.stderr.splitlines()
    assert making == f"vitgan: making {checkout.root}/.venv with Python python3"
    assert "downloads PyTorch" in installing
    assert extension == "vitgan: the extension is built"


def test_installs_again_only_when_something_that_matters_changed(installed: Checkout) -> None:
    result = installed.run("train")
    assert installed.calls() == [f"vitgan train in {installed.home}"]
    assert result.stderr == ""
    for name in ("pyproject.toml", "constraints.txt", "setup.py", "csrc/binding.cpp"):
        with (installed.root / name).open("a") as file:
            file.write("\n")
        installed.run("train")
        assert installed.calls()[0] == pip(), name
    installed.run("train", CXX="another")
    assert installed.calls()[0] == pip()


def test_extras_add_up(installed: Checkout) -> None:
    installed.run("test", "-x", "tests/vitgan")
    assert installed.calls() == [pip("[test]"), "python -m pytest -n 2 --dist worksteal -x tests/vitgan in ROOT"]
    installed.run("check")
    assert installed.calls() == [
        pip("[test,dev]"),
        "python -m ruff check . in ROOT",
        "python -m ruff format --check . in ROOT",
        "python -m mypy in ROOT",
    ]
    installed.run("test")
    assert installed.calls() == ["python -m pytest -n 2 --dist worksteal in ROOT"]


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    checkout.fail.touch()
    assert checkout.run("train").returncode != 0
    assert checkout.calls() == ["make ROOT/.venv", pip()]
    checkout.fail.unlink()
    assert checkout.run("train").returncode == 0
    assert checkout.calls() == [pip(), f"vitgan train in {checkout.home}"]


def test_the_environment_can_be_elsewhere(checkout: Checkout) -> None:
    assert checkout.run("train", VITGAN_VENV="here").returncode == 0
    assert checkout.calls()[0] == f"make {checkout.home}/here"
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": "yes", "python3.12": "yes"}, "python3"),
        ({"python3": "older", "python3.12": "yes"}, "python3.12"),
        ({"python3": "newer", "python3.14": "yes"}, "python3.14"),
        ({"python3": "ensurepip", "python3.11": "yes"}, "python3.11"),
        ({"python": "yes"}, "python"),
    ],
)
def test_takes_a_python_that_works(empty: Checkout, pythons: dict[str, str], taken: str) -> None:
    for name, kind in pythons.items():
        empty.add_python(name, kind)
    (empty.bin / "python3.13").write_text("#!/bin/sh\nexit 127\n")  # as a shim of pyenv does
    (empty.bin / "python3.13").chmod(0o755)
    assert f"with Python {taken}\n" in empty.run("train").stderr


def test_a_python_newer_than_any_tested_gets_the_newest_releases(empty: Checkout) -> None:
    empty.add_python("python3", "newer")
    result = empty.run("train")
    assert result.returncode == 0
    assert empty.calls()[1] == pip(constraints="")
    assert "newer than any tested" in result.stderr


@pytest.mark.parametrize(
    ("pythons", "environment", "message"),
    [
        ({}, {}, "no Python from 3.11 on was found: install one"),
        ({"python3": "older"}, {}, "no Python from 3.11 on was found: install one"),
        ({"python3": "ensurepip"}, {}, "python3 has no ensurepip, so it cannot make a virtual environment"),
        ({"python3": "ensurepip"}, {}, "apt install python3.11-venv"),
        ({"python3": "yes"}, {"PYTHON": "/no/such"}, "PYTHON is '/no/such', which is not a Python from 3.11 on"),
    ],
)
def test_says_what_is_missing(
    empty: Checkout, pythons: dict[str, str], environment: dict[str, str], message: str
) -> None:
    for name, kind in pythons.items():
        empty.add_python(name, kind)
    result = empty.run("train", **environment)
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert message in line
    assert empty.calls() == []


def test_refuses_an_environment_of_an_older_python(installed: Checkout) -> None:
    (installed.root / ".venv" / "vitgan-installed").unlink()
    (installed.root / ".venv" / "bin" / "python").write_text(STAND_IN.format(kind="older", name="python"))
    result = installed.run("train")
    assert result.returncode != 0
    assert "holds a Python older than 3.11: remove that folder" in result.stderr
    assert installed.calls() == []


def test_renew_writes_the_versions_of_a_new_environment(empty: Checkout) -> None:
    empty.add_python("python3.11")
    result = empty.run("renew", "torch==2.13.0")
    assert result.returncode == 0, result.stderr
    heading, *versions = (empty.root / "constraints.txt").read_text().splitlines()
    assert heading.startswith("# ")
    assert heading.endswith("./run renew torch==2.13.0")
    assert versions == ["numpy==2.4.0", "torch==2.13.0"]
    assert empty.calls()[1] == "pip install -q --disable-pip-version-check ROOT[dev] torch==2.13.0"
    assert not (empty.root / "build" / "renew").exists()

    empty.fail.touch()
    assert empty.run("renew").returncode != 0
    assert (empty.root / "constraints.txt").read_text().splitlines() == [heading, *versions]


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("help",), 0), (("--help",), 0), (("tran",), 1)])
def test_tells_its_commands(checkout: Checkout, arguments: tuple[str, ...], status: int) -> None:
    result = checkout.run(*arguments)
    assert result.returncode == status
    for command in ("./run train", "./run sample", "./run test", "./run check", "./run gpu", "./run renew"):
        assert command in result.stderr
    assert ("there is no command 'tran'" in result.stderr) == (status == 1)
    assert os.listdir(checkout.home) == []  # noqa: PTH208
