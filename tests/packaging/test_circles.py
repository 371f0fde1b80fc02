"""Imports go one way: no module of a package imports, now or later, one that imports it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vitgan
import vitgan_kernels


def imports(folder: Path) -> dict[str, set[str]]:
    """By module, the modules of the package that it imports anywhere, also inside functions."""
    files = {".".join(file.relative_to(folder.parent).with_suffix("").parts): file for file in folder.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{file}:{node.lineno}: imports are absolute"
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                whole = len(inner) < len(node.names)  # the rest are names of the module itself
                graph[name] |= inner | ({node.module} & files.keys() if whole else set())
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & files.keys()
    return graph


@pytest.mark.parametrize("package", [vitgan, vitgan_kernels], ids=lambda package: package.__name__)
def test_no_circle_of_imports(package: object) -> None:
    graph = imports(Path(package.__path__[0]))  # type: ignore[attr-defined]
    assert len(graph) > 20
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_a_circle_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from p import b\n")
    (package / "b.py").write_text("def f():\n    from p.a import g\n")
    assert imports(package) == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.a"}}
