"""Faults put into a copy of a kernel's source are found and named, one kernel of each family."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vitgan_kernels.l2_attention import kernels_short, kernels_tiled
from vitgan_kernels.l2_attention import launch as attention
from vitgan_kernels.modulated_siren import launch as siren
from vitgan_kernels.modulated_siren import triton_kernels

PAST_THE_END = "writes .* past the end of the tensor", "reads .* past the end of the tensor"
RACE, UNWRITTEN = "program instances", "nothing wrote"


def tokens() -> Tensor:
    return torch.randn(1, 2, 17, 8).half()


def short() -> tuple[Tensor, ...]:
    return attention.forward(tokens(), tokens(), tokens(), 0.3, False)


def tiled() -> tuple[Tensor, ...]:
    q = torch.randn(1, 1, 37, 8)
    return attention.forward(q, q.clone(), q.clone(), 0.3, False)


def layer() -> tuple[Tensor, ...]:
    weight, style = torch.randn(17, 8).half(), torch.randn(2, 8).half()
    return (siren.layer_forward(torch.randn(2, 129, 8).half(), (weight, style, None, None), 1.0, True),)


SHORT, TILED, LAYER = (attention, "short", kernels_short, short), (attention, "tiled", kernels_tiled, tiled), (
    siren, "kernels", triton_kernels, layer
)  # fmt: skip
OUT = "store_tokens((OUT, o_b, o_h, o_n), out / total[:, None], head, HEADS, start, N, e, FULL_E)"
QUERY = "query = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)"
Y = "    _store(Y, sample.to(tl.int64) * points + point, valid, n, outputs, y)\n\n\n@triton.jit\ndef network2_forward"
STORE = "store_tokens(at_out, out / total[:, None], head, HEADS, start, N, e, FULL_E)"
FAULTS = [
    (SHORT, STORE, STORE.replace("N, e", "N + 64, e"), PAST_THE_END[0]),
    (SHORT, QUERY, QUERY.replace("N, d", "N + 64, d"), PAST_THE_END[1]),
    (SHORT, STORE, STORE.replace("head, HEADS", "head * 0, HEADS"), RACE),
    (SHORT, "    " + STORE + "\n", "", UNWRITTEN),
    (TILED, OUT, OUT.replace("N, e", "N + 64, e"), PAST_THE_END[0]),
    (TILED, "first, M, d, D, FULL_D, KEYS)", "first, M + 64, d, D, FULL_D, KEYS)", PAST_THE_END[1]),
    (TILED, OUT, OUT.replace("start, N", "0, N"), RACE),
    (TILED, "    " + OUT + "\n", "", UNWRITTEN),
    (LAYER, Y, Y.replace("valid", "sample >= 0"), PAST_THE_END[0]),
    (LAYER, "x = _load(X, x_row, valid, k, inputs)", "x = _load(X, x_row, x_row >= 0, k, inputs)", PAST_THE_END[1]),
    (LAYER, Y, Y.replace("sample.to(tl.int64) * points + point", "tl.arange(0, SAMPLES * POINTS)"), RACE),
    (LAYER, Y, Y[Y.index("\n") :], UNWRITTEN),
]


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Any]:
    """A copy of a module with one text of its source replaced, the first of its kind."""
    made: list[str] = []

    def make(module: ModuleType, text: str, replacement: str) -> ModuleType:
        source = Path(str(module.__file__)).read_text()
        assert text in source
        path = tmp_path / "faulty_kernels.py"
        path.write_text(source.replace(text, replacement, 1))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        copy = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = copy
        made.append(path.stem)
        spec.loader.exec_module(copy)
        return copy

    yield make
    for name in made:
        del sys.modules[name]


@pytest.mark.parametrize(("family", "text", "replacement", "named"), FAULTS)
def test_a_fault_is_named(
    family: tuple[ModuleType, str, ModuleType, Any],
    text: str,
    replacement: str,
    named: str,
    faulty: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher, name, kernels, call = family
    monkeypatch.setattr(launcher, name, faulty(kernels, text, replacement))
    with pytest.raises(Exception, match=named):
        written(call)


def written(call: Any) -> None:
    for index, result in enumerate(call()):
        missing = int(result.isnan().sum())
        assert not missing, f"result {index} has {missing} elements that nothing wrote"
