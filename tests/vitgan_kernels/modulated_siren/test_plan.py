"""Which kernels and tiles serve a size, and how much memory the fused head of the generator needs."""

import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitgan_kernels import modulated_siren, triton_support
from vitgan_kernels.modulated_siren import plan


@pytest.mark.parametrize("rows", [32, 64, 128])
def test_tiles_of_points_waste_little_and_split_a_sample_seldom(rows: int) -> None:
    for points in range(1, 400):
        size = plan.points_of_tile(points, rows)
        assert rows % size == 0
        padded = -(-points // size) * size
        assert padded < points + 16 or padded < 2 * points
    assert [plan.points_of_tile(points, 64) for points in (1, 3, 16, 36, 49, 64, 65, 256)] == [
        1,
        4,
        16,
        16,
        64,
        64,
        16,
        64,
    ]


@pytest.mark.parametrize("kernel", plan._TILES)
def test_tiles_fit_tensor_cores_and_are_no_larger_than_the_matrix(kernel: str) -> None:
    for kind in plan._TILES[kernel]:
        for target in ("cuda", "hip"):
            small, large = (plan.tile(kernel, kind, target, columns=n, depth=n) for n in (1, 4096))  # type: ignore[arg-type]
            assert (small.columns, small.depth) == (16, 16)
            assert small.rows == large.rows
            assert large.columns >= 32


def test_samples_at_a_time_fill_the_workspace_evenly() -> None:
    assert plan.samples_at_a_time(8192, 0) == 8192
    assert plan.samples_at_a_time(8192, plan.WORKSPACE // 8192) == 8192
    assert plan.samples_at_a_time(8192, plan.WORKSPACE // 4096) == 4096
    assert plan.samples_at_a_time(10, plan.WORKSPACE // 4) == 4
    assert plan.samples_at_a_time(3, 10 * plan.WORKSPACE) == 1


@pytest.mark.parametrize(
    ("kind", "widths", "fused"),
    [
        ("half", [384, 384, 3], True),
        ("half", [384, 512, 512, 16], True),
        ("half", [384, 2048, 3], True),
        ("half", [384, 384, 513, 3], False),
        ("half", [384, 384, 17], False),
        ("half", [384, 3], False),
        ("half", [8, 8, 8, 8, 3], False),
        ("tf32", [384, 384, 256, 3], True),
        ("tf32", [384, 384, 384, 3], False),
        ("ieee", [384, 384, 3], False),
    ],
)
def test_which_networks_are_one_kernel(kind: plan.Kind, widths: list[int], fused: bool) -> None:
    assert (plan.obstacle_to_fusion(kind, widths) is None) == fused


def eager(x: Tensor, weights: list[Tensor], styles: list[Tensor]) -> Tensor:
    """The algebra without weights for each sample, as one writes it."""
    for index, (weight, style) in enumerate(zip(weights, styles, strict=True)):
        x = (x * style.unsqueeze(1)) @ weight.t()
        x = torch.sin(30 * x) if index < len(weights) - 1 else x
    return x


class Memory(TorchDispatchMode):
    """Bytes of the storages that are alive at a time, of those that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


class NoKernels:
    """In place of the kernels' module: launches that do nothing."""

    def __getattr__(self, name: str) -> Any:
        class Kernel:
            def __getitem__(self, grid: Any) -> Any:
                return lambda *args, **kwargs: None

        return Kernel()


def operands(widths: list[int], batch: int, points: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)

    return (
        empty(points, widths[0]),
        [empty(o, i) for i, o in pairwise(widths)],
        [empty(batch, i) for i in widths[:-1]],
    )


def peak_of_eager(widths: list[int], batch: int, points: int) -> int:
    """Forward and backward passes, gradients of all inputs included."""
    x, weights, styles = operands(widths, batch, points)
    grad = torch.empty(batch, points, widths[-1], dtype=torch.bfloat16, device="meta")
    with Memory() as memory:
        torch.autograd.grad(eager(x, weights, styles), [x, *weights, *styles], grad)
    return memory.peak


def peak_of_fused(widths: list[int], batch: int, points: int) -> int:
    """The same."""
    launch = pytest.importorskip("vitgan_kernels.modulated_siren.launch")
    stack = pytest.importorskip("vitgan_kernels.modulated_siren.stack")
    x, weights, styles = operands(widths, batch, points)
    layers = [(w.detach(), s.detach(), None, None) for w, s in zip(weights, styles, strict=True)]
    grad = torch.empty(batch, points, widths[-1], dtype=torch.bfloat16, device="meta")
    with pytest.MonkeyPatch.context() as patch, Memory() as memory:
        patch.setattr(launch, "kernels", NoKernels())
        out = stack.forward(x.detach(), layers, 30.0, False)
        gradients = stack.backward(grad, x.detach(), layers, 30.0, False, [True, True, True])
    assert out.shape == grad.shape
    assert gradients[0] is not None
    return memory.peak


@pytest.mark.parametrize(("images", "hidden_layers"), [(1, 1), (1, 2), (1, 3), (8, 1), (32, 1), (32, 2), (128, 2)])
def test_the_head_of_a_generator_at_128_pixels_needs_a_third_of_the_memory(images: int, hidden_layers: int) -> None:
    """The paper's generator: width 384, patches of 8 x 8 pixels. Everything that both passes allocate is counted."""
    size = [384] * (hidden_layers + 1) + [3], images * 16 * 16, 64
    assert peak_of_eager(*size) >= 3 * peak_of_fused(*size)


@pytest.mark.skipif(not triton_support.INTERPRETED, reason="runs without values on the CPU")
def test_nothing_is_kept_between_the_passes_but_the_inputs() -> None:
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage()._cdata)
        return tensor

    with FakeTensorMode():
        x, weights, styles = torch.empty(5, 4), [torch.empty(6, 4), torch.empty(3, 6)], [torch.empty(2, 4)]
        styles.append(torch.empty(2, 6))
        inputs = [tensor.requires_grad_() for tensor in (x, *weights, *styles)]
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            modulated_siren(x, weights, styles, backend="triton")
        assert sorted(kept) == sorted(tensor.untyped_storage()._cdata for tensor in inputs)
