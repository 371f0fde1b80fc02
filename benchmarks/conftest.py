"""pytest benchmarks/ [--size paper] [--record NAME]

On a CPU, OMP_NUM_THREADS=1 gives steadier times where other work has a core. Ctrl-C still writes the rows that are
done.
"""

from pathlib import Path

import pytest

from benchmarks.machine import pick_device
from benchmarks.records import FOLDER
from benchmarks.session import SECONDS, Session

SESSION: Session | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitgan")
    group.addoption("--size", choices=list(SECONDS), default="small", help="paper: the full tables, for a GPU")
    group.addoption("--record", metavar="NAME", help="write the result file benchmarks/results/<device>/NAME.json")
    group.addoption("--record-in", metavar="FOLDER", type=Path, default=FOLDER, help="in another folder than that")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "default")  # compilers warn of much that is not ours


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`sizes`: each of the module's SIZES for the size and device of this run."""
    if "sizes" in metafunc.fixturenames:
        cases = metafunc.module.SIZES[metafunc.config.getoption("--size")][pick_device().type]
        metafunc.parametrize("sizes", cases, ids=str)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    global SESSION
    SESSION = Session(request.config.getoption("--size"))
    return SESSION


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    name = config.getoption("--record")
    if name and SESSION is not None and SESSION.rows:
        terminalreporter.write_line(f"results: {SESSION.save(name, config.getoption('--record-in'))}")
