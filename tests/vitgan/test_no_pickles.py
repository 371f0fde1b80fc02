"""No code path reads a pickle: what torch.load, numpy and pickle itself would run stays unread."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vitgan
import vitgan_kernels

OWN_WORKERS = ["stream.py: pickle.loads(next(batches))"]
"""What the processes that decode images send through a pipe of this process's own."""


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def reads_a_pickle(call: ast.Call) -> bool:
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    name = ast.unparse(call.func)
    if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
        return said.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return said.get("allow_pickle", "False") != "False"
    module, _, function = name.partition(".")
    return module in ("pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal") and function != "dumps"


def test_no_file_of_the_packages_reads_a_pickle() -> None:
    folders = [Path(vitgan.__path__[0]), Path(vitgan_kernels.__path__[0])]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 50
    found = [
        f"{file.name}: {ast.unparse(call)}"
        for file in files
        for call in calls(file.read_text())
        if reads_a_pickle(call)
    ]
    assert found == OWN_WORKERS


def test_the_search_finds_readers() -> None:
    bad = ["torch.load(f)", "np.load(f, allow_pickle=True)", "pickle.load(f)", "torch.load(f, weights_only=False)"]
    good = ["torch.load(f, weights_only=True)", "np.load(f)", "json.load(f)", "load_file(f)"]
    assert [reads_a_pickle(next(calls(line))) for line in bad + good] == [True] * 4 + [False] * 4
