"""The script ./run: which Python it takes, when it installs, and what it says when it cannot.

A stand-in for Python writes down how it is called, so nothing is downloaded or installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# {kind} is what the real probe would find; `-m venv` copies the stand-in; pip fails where LOG.fail exists.
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-c "*ensurepip*) echo {kind} ;;
    "-c "*version_info*) echo 3.11 ;;
    "-c "*native*) echo "the extension is built" ;;
    "--version ") echo "Python 3.11.99" ;;
    "-m venv")
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        cp "$0" "$3/bin/vitgan"
        echo "make $3" >>"$LOG" ;;
    "-m pip") [ "$3" = --version ] || {{ shift 2; echo "pip $*" >>"$LOG"; [ ! -e "$LOG.fail" ]; }} ;;
    *) echo "$(basename "$0") $* in $(pwd)" >>"$LOG" ;;
esac
"""


class Machine:
    """A checkout and a PATH with nothing but the Pythons that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a checkout"
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.log = folder / "log"
        for path in (self.checkout, self.home, self.bin):
            path.mkdir()
        for tool in ("sh", "dirname", "basename", "find", "cksum", "sort", "sed", "mkdir", "cp", "rm"):
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
        for name in ("run", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, self.checkout / name)
        shutil.copytree(ROOT / "csrc", self.checkout / "csrc")

    def add_python(self, name: str, kind: str = "yes") -> None:
        (self.bin / name).write_text(STAND_IN.format(kind=kind))
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "run", *arguments],
            cwd=self.home,
            env={"PATH": str(self.bin), "LOG": str(self.log)} | environment,
            check=False,
            capture_output=True,
            text=True,
        )

    def done(self) -> list[str]:
        """What was called since this was last asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace(str(self.checkout), "CHECKOUT") for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def pip(extras: str = "") -> str:
    return f"pip install -q --disable-pip-version-check -e CHECKOUT{extras}"


def test_train_makes_the_environment_installs_and_goes_where_the_user_is(machine: Machine) -> None:
    machine.add_python("python3")
    result = machine.run("train", "--steps", "two words")
    assert result.returncode == 0, result.stderr
    assert machine.done() == [
        "make CHECKOUT/.venv",
        pip(),
        f"vitgan train --steps two words in {machine.home}",
    ]
    assert result.stdout == ""
    told = result.stderr.splitlines()
    assert len(told) == 3
    assert all(line.startswith("vitgan: ") for line in told)
    assert "with Python 3.11.99" in told[0]
    assert "downloads PyTorch" in told[1]
    assert told[2] == "vitgan: the extension is built"


def test_installs_again_only_when_something_that_matters_changed(machine: Machine) -> None:
    machine.add_python("python3")
    machine.run("train")
    machine.done()

    result = machine.run("train")
    assert machine.done() == [f"vitgan train in {machine.home}"]
    assert result.stderr == ""

    for name in ("pyproject.toml", "setup.py", "csrc/power_iteration.h"):
        with (machine.checkout / name).open("a") as file:
            file.write("\n")
        machine.run("train")
        assert machine.done()[0] == pip(), name
    machine.run("train", CXX="another")
    assert machine.done()[0] == pip()


def test_extras_add_up(machine: Machine) -> None:
    machine.add_python("python3")
    machine.run("train")
    machine.done()
    machine.run("test", "-x", "tests/vitgan")
    assert machine.done() == [pip("[test]"), "python -m pytest -n 2 --dist worksteal -x tests/vitgan in CHECKOUT"]
    machine.run("check")
    assert machine.done() == [
        pip("[test,dev]"),
        "python -m ruff check . in CHECKOUT",
        "python -m ruff format --check . in CHECKOUT",
        "python -m mypy in CHECKOUT",
    ]
    machine.run("test")
    assert machine.done() == ["python -m pytest -n 2 --dist worksteal in CHECKOUT"]
    machine.run("gpu", "--seconds", "60")
    assert machine.done() == ["python -m benchmarks.gpu_hour --seconds 60 in CHECKOUT"]
    machine.run("docs")
    installed, pages = machine.done()
    assert installed == pip("[test,dev,docs]")
    assert pages.startswith("python -m pdoc --docformat google --output-directory build/docs vitgan_kernels vitgan ")


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    machine.add_python("python3")
    fail = machine.log.with_name("log.fail")
    fail.touch()
    assert machine.run("train").returncode != 0
    assert machine.done() == ["make CHECKOUT/.venv", pip()]
    fail.unlink()
    assert machine.run("train").returncode == 0
    assert machine.done() == [pip(), f"vitgan train in {machine.home}"]


def test_the_environment_can_be_elsewhere(machine: Machine) -> None:
    machine.add_python("python3")
    assert machine.run("train", VITGAN_VENV="here").returncode == 0
    assert machine.done()[0] == f"make {machine.home}/here"
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": "yes", "python3.12": "yes"}, "python3"),
        ({"python3": "version", "python3.12": "yes"}, "python3.12"),
        ({"python3": "ensurepip", "python3.11": "yes"}, "python3.11"),
        ({"python": "yes"}, "python"),
    ],
)
def test_takes_a_python_that_works(machine: Machine, pythons: dict[str, str], taken: str) -> None:
    for name, kind in pythons.items():
        machine.add_python(name, kind)
    machine.add_python("python3.13", "a shim that fails")
    (machine.bin / "python3.13").write_text("#!/bin/sh\nexit 127\n")
    marked = machine.bin / taken
    marked.write_text(marked.read_text().replace("3.11.99", "of choice"))
    assert "with Python of choice" in machine.run("train").stderr


@pytest.mark.parametrize(
    ("pythons", "environment", "message"),
    [
        ({}, {}, "no Python from 3.11 to 3.13 was found: install one"),
        ({"python3": "version"}, {}, "no Python from 3.11 to 3.13 was found: install one"),
        ({"python3": "ensurepip"}, {}, "python3 has no ensurepip, so it cannot make a virtual environment"),
        ({"python3": "ensurepip"}, {}, "apt install python3.11-venv"),
        ({"python3": "yes"}, {"PYTHON": "/no/such"}, "PYTHON is '/no/such', which is not a Python from 3.11"),
    ],
)
def test_says_what_is_missing(
    machine: Machine, pythons: dict[str, str], environment: dict[str, str], message: str
) -> None:
    for name, kind in pythons.items():
        machine.add_python(name, kind)
    result = machine.run("train", **environment)
    assert result.returncode != 0
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert machine.done() == []


def test_refuses_an_environment_of_another_python(machine: Machine) -> None:
    machine.add_python("python3")
    machine.run("train")
    (machine.checkout / ".venv" / "vitgan-installed").unlink()
    (machine.checkout / ".venv" / "bin" / "python").write_text(STAND_IN.format(kind="version"))
    machine.done()
    result = machine.run("train")
    assert result.returncode != 0
    assert "holds another Python than 3.11 to 3.13: remove that folder" in result.stderr
    assert machine.done() == []


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("help",), 0), (("--help",), 0), (("tran",), 1)])
def test_tells_its_commands(machine: Machine, arguments: tuple[str, ...], status: int) -> None:
    result = machine.run(*arguments)
    assert result.returncode == status
    for command in ("./run train", "./run sample", "./run test", "./run check", "./run gpu"):
        assert command in result.stderr
    assert ("there is no command 'tran'" in result.stderr) == (status == 1)
    assert os.listdir(machine.home) == []  # noqa: PTH208
