"""Modules of other projects: recognised, replaced by the operators, and trained on as if nothing had happened."""

import copy
import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from vitgan_kernels import swap, unswap, use_backend
from vitgan_kernels.l2_attention import op as l2_op

_spec = importlib.util.spec_from_file_location("swap_theirs", Path(__file__).with_name("theirs.py"))
assert _spec is not None
assert _spec.loader is not None
theirs: Any = importlib.util.module_from_spec(_spec)
sys.modules["swap_theirs"] = theirs  # under this name their classes are pickled
_spec.loader.exec_module(theirs)

CASES: dict[str, tuple[Any, list[tuple[int, ...]], str]] = {
    "original attention": (lambda: theirs.MultiHeadAttention(8), [(2, 9, 8)], "MultiHeadAttention"),
    "original attention, many tokens": (lambda: theirs.MultiHeadAttention(8, 2), [(2, 40, 8)], "MultiHeadAttention"),
    "original spectral norm": (lambda: theirs.SpectralNorm(nn.Linear(5, 4)), [(3, 5)], "SpectralNorm"),
    "original spectral norm, conv": (
        lambda: theirs.SpectralNorm(nn.Conv2d(2, 4, 4, stride=2)),
        [(2, 2, 8, 8)],
        "SpectralNorm",
    ),
    "original SIREN": (lambda: theirs.Siren(30.0), [(2, 9, 6), (2, 6)], "Siren"),
    "original SIREN, deep, demodulated": (
        lambda: theirs.Siren(2.0, 2.0, demodulation=True, style=5),
        [(2, 9, 6), (2, 5)],
        "Siren",
    ),
    "original sine layer": (lambda: theirs.ModulatedSineLayer(6, 4, 5), [(2, 9, 6), (2, 5)], "ModulatedSineLayer"),
    "original modulated layer": (lambda: theirs.ModulatedLinear(6, 4, 6), [(2, 9, 6), (2, 6)], "ModulatedLinear"),
    "GigaGAN": (lambda: theirs.SelfAttention(6), [(2, 6, 3, 5)], "SelfAttention"),
    "StyleGAN2 conv": (lambda: theirs.ModulatedConv2d(6, 3), [(2, 6, 3, 5), (2, 4)], "ModulatedConv2d"),
    "StyleGAN2 to RGB": (
        lambda: theirs.ModulatedConv2d(6, 3, demodulate=False),
        [(2, 6, 3, 5), (2, 4)],
        "ModulatedConv2d",
    ),
    "stylegan2-pytorch conv": (lambda: theirs.Conv2DMod(6, 3), [(2, 6, 3, 5), (2, 6)], "Conv2DMod"),
    "CIPS linear": (lambda: theirs.CipsLinear(6, 3), [(2, 7, 6), (2, 4)], "CipsLinear"),
    "SIREN": (
        lambda: nn.Sequential(theirs.SineLayer(2, 6), theirs.SineLayer(6, 6), nn.Linear(6, 3)),
        [(4, 5, 2)],
        "Sequential",
    ),
    "SIREN, lucidrains, two frequencies": (
        lambda: nn.Sequential(theirs.LucidrainsSiren(2, 6, 5.0), theirs.LucidrainsSiren(6, 3)),
        [(9, 2)],
        "Sequential",
    ),
    "SIREN layer": (lambda: nn.ModuleDict({"a": theirs.SineLayer(2, 6)})["a"], [(9, 2)], "SineLayer"),
}
PARAMETERS = [pytest.param(*case, id=name) for name, case in CASES.items()]


def pair(make: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    plain = make().to(dtype)
    return plain, copy.deepcopy(plain)


def inputs(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def train(model: nn.Module, shapes: list[tuple[int, ...]], optimizer: Any, steps: int, penalty: bool) -> list[float]:
    losses = []
    for step in range(steps):
        x = inputs(shapes, next(model.parameters()).dtype, seed=step)
        out = model(*x)
        loss = (out - 0.3).square().mean()
        if penalty:
            slopes = torch.autograd.grad(out.sum(), x, create_graph=True, allow_unused=True)
            loss = loss + sum(slope.square().sum() for slope in slopes if slope is not None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("make", "shapes", "was"), PARAMETERS)
def test_training_goes_on_as_if_nothing_had_happened(make: Any, shapes: Any, was: str) -> None:
    models = pair(make)
    keys = [list(model.state_dict()) for model in models]
    tensors = dict(models[1].named_parameters())
    optimizers = [torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2) for model in models]
    penalty = was != "MultiHeadAttention"  # whose torch.cdist has no second derivative
    before = [train(m, shapes, o, 3, penalty) for m, o in zip(models, optimizers, strict=True)]
    assert before[0] == before[1]

    report = swap(models[1])
    assert str(report).startswith(f"swap of {was}: ")
    row = report.rows[0]
    assert row.swapped, str(report)
    assert (row.path, row.was) == ("", was)
    assert row.differences["float64"] < 1e-12
    assert type(models[1]).__name__ == f"Swapped{was}"
    assert isinstance(models[1], type(models[0]))
    assert list(models[1].state_dict()) == keys[1] == keys[0]
    assert all(parameter is tensors[name] for name, parameter in models[1].named_parameters())

    middle = [train(m, shapes, o, 6, penalty) for m, o in zip(models, optimizers, strict=True)]
    assert len({f"{loss:.6f}" for loss in middle[0]}) > 3, "the losses must move for their equality to say anything"
    torch.testing.assert_close(middle[1], middle[0], rtol=1e-9, atol=1e-12)
    models[0].load_state_dict(models[1].state_dict())
    unswap(models[1])
    assert type(models[1]) is type(models[0])
    torch.testing.assert_close(models[1](*inputs(shapes)), models[0](*inputs(shapes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["GigaGAN", "StyleGAN2 conv", "SIREN layer", "original sine layer"])
def test_lower_precision(name: str, dtype: torch.dtype) -> None:
    make, shapes, _ = CASES[name]
    plain, model = pair(make, dtype)
    report = swap(model)
    assert report.rows[0].swapped, str(report)
    assert set(report.rows[0].differences) == {"float64", str(dtype).removeprefix("torch.")}
    assert model(*inputs(shapes, dtype)).dtype == plain(*inputs(shapes, dtype)).dtype == dtype


# The original's spectral norm leaves a weight with a history on its layer, which PyTorch does not copy, swapped or not.
COPIED = [
    pytest.param(*case, id=name)
    for name, case in CASES.items()
    if not name.startswith(("original attention", "original spectral norm"))
]


@pytest.mark.parametrize(("make", "shapes", "was"), COPIED)
def test_copies_and_pickles_are_swapped_models_of_their_own(make: Any, shapes: Any, was: str) -> None:
    model = make().double()
    swap(model)
    expected = model(*inputs(shapes))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        assert type(twin) is type(model)
        torch.testing.assert_close(twin(*inputs(shapes)), expected)
        with torch.no_grad():
            next(twin.parameters()).add_(1)
    torch.testing.assert_close(model(*inputs(shapes)), expected)
    unswap(twins[1])
    assert type(twins[1]).__name__ == was


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: theirs.AttentionOfSquares(8), "disagrees"),
        (lambda: theirs.MultiHeadAttention(8, discriminator=False), "products of queries and keys"),
        (lambda: theirs.MultiHeadAttention(8, dropout=0.1), "drops attention weights"),
        (lambda: theirs.StraightModulatedLinear(6, 4, 5), "disagrees"),
        (lambda: theirs.ResidualSelfAttention(6), "disagrees"),
        (lambda: theirs.SelfAttention(6, dot_product=True), "products of queries and keys"),
        (lambda: theirs.ModulatedConv2d(6, 3, 3), "its kernel is 3x3"),
        (lambda: theirs.ModulatedConv2d(6, 3, upsample=True), "it resamples (upsample)"),
        (lambda: theirs.ShiftedModulatedConv2d(6, 3), "disagrees"),
        (lambda: theirs.Conv2DMod(6, 3, 3), "its kernel is 3x3"),
        (lambda: theirs.LastSineLayer(2, 6), "disagrees"),
        (lambda: theirs.Siren(30.0, 1.0), "different frequencies"),
        (lambda: theirs.SelfAttention(6).to("meta"), "the check could not run"),
    ],
)
def test_what_looks_alike_is_left_alone_with_the_reason(make: Any, reason: str) -> None:
    model = make()
    kind = type(model)
    report = swap(model)
    row = report.rows[0]
    assert row.path == ""
    assert not row.swapped
    assert reason in row.now
    assert type(model) is kind
    if reason == "disagrees":
        assert row.differences["float64"] > 1e-3


def test_an_attention_that_never_had_keys_of_its_own() -> None:
    plain, model = pair(lambda: theirs.SelfAttention(6))
    del model.to_k
    assert swap(model).rows[0].swapped
    torch.testing.assert_close(model(*inputs([(2, 6, 3, 5)])), plain(*inputs([(2, 6, 3, 5)])))


def test_a_scale_that_is_no_number_is_not_recognised() -> None:
    model = theirs.CipsLinear(6, 3)
    model.scale = torch.full((6,), 0.4)
    assert swap(model).rows == []


def test_a_stack_that_cannot_be_replaced_leaves_its_layers_to_their_own_recipe() -> None:
    model = theirs.Siren(3.0, 1.0).double()
    plain = copy.deepcopy(model)
    rows = {row.path: row.swapped for row in swap(model).rows}
    assert rows == {"": False, "net.0": True, "net.1": True, "net.2": True}
    x = inputs([(2, 9, 6), (2, 6)])
    torch.testing.assert_close(model(*x), plain(*x))


def test_layers_inside_a_replaced_stack_are_not_replaced_as_well() -> None:
    assert [row.path for row in swap(theirs.Siren(3.0)).rows] == [""]
    stack = nn.Sequential(theirs.SineLayer(2, 4), nn.Linear(4, 3))
    assert [row.path for row in swap(nn.ModuleList([stack])).rows] == ["0"]
    assert {row.now for row in swap(stack).rows} == {"it is swapped already"}


def test_a_slice_of_a_replaced_stack_computes_what_a_slice_does() -> None:
    model = nn.Sequential(theirs.SineLayer(2, 4), theirs.SineLayer(4, 4), nn.Linear(4, 3)).double()
    x = torch.randn(5, 2).double()
    expected = [model[:2](x), model[2:](torch.sin(torch.ones(5, 4).double()))]
    swap(model)
    torch.testing.assert_close([model[:2](x), model[2:](torch.sin(torch.ones(5, 4).double()))], expected)


def test_hooks_of_users_stay_and_do_not_run_in_the_check() -> None:
    seen: list[int] = []
    model = nn.Sequential(theirs.SelfAttention(6))
    model[0].register_forward_hook(lambda *_: seen.append(1))
    assert swap(model).rows[0].swapped
    assert not seen
    model(torch.randn(1, 6, 2, 2))
    assert seen == [1]


def test_a_hook_inside_a_stack_keeps_it_as_it_is() -> None:
    model = nn.Sequential(theirs.SineLayer(2, 4), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda *_: None)
    rows = swap(model).rows
    assert "hooks, which would not run" in rows[0].now
    assert rows[1].swapped


@pytest.mark.parametrize(
    ("make", "inside"),
    [(lambda: theirs.SpectralNorm(nn.Linear(5, 4)), "module"), (lambda: theirs.MultiHeadAttention(8), "att_drop")],
)
def test_a_hook_on_what_is_called_no_more_keeps_the_module(make: Any, inside: str) -> None:
    model = make()
    getattr(model, inside).register_forward_hook(lambda *_: None)
    row = swap(model).rows[0]
    assert not row.swapped
    assert "hooks, which would not run" in row.now


def test_a_forward_that_was_set_on_the_module_is_left_alone() -> None:
    model = theirs.SelfAttention(6)
    model.forward = lambda fmap: fmap
    assert "a forward of its own" in swap(model).rows[0].now


def test_a_whole_critic_with_spectral_norm_of_every_kind_in_it() -> None:
    model = nn.Sequential(
        torch_spectral_norm(nn.Conv2d(3, 6, 1)),
        theirs.SelfAttention(6),
        nn.utils.spectral_norm(nn.Conv2d(6, 6, 1)),
        nn.Flatten(),
        theirs.SpectralNorm(nn.Linear(24, 1)),
    ).double()
    plain = copy.deepcopy(model)
    report = swap(model)
    assert {row.path for row in report.rows if row.swapped} == {"0.weight", "1", "2.weight", "4"}, str(report)
    assert "one call a forward for 2 tensors" in next(row.now for row in report.rows if row.path == "2.weight")
    x = torch.randn(2, 3, 2, 2).double()
    for _ in range(3):
        torch.testing.assert_close(model(x), plain(x))
    for one in (model, plain):
        one.eval()
    torch.testing.assert_close(model(x), plain(x))


def test_swap_in_the_middle_of_training_takes_what_a_forward_left_behind() -> None:
    model = theirs.MultiHeadAttention(8).double()
    plain = copy.deepcopy(model)
    x = torch.randn(2, 5, 8).double()
    for one in (model, plain):
        one(x)
    assert model.qkv.module.weight.grad_fn is not None
    sigma = model.qkv.w_init_sigma.copy()
    report = swap(model)
    assert [row.swapped for row in report.rows] == [True] * 3, str(report)
    assert (model.qkv.w_init_sigma == sigma).all()
    torch.testing.assert_close(model(x), plain(x))


def test_the_swapped_attention_has_the_second_derivative_that_cdist_lacks() -> None:
    model = theirs.MultiHeadAttention(8).double()
    x = torch.randn(2, 5, 8).double().requires_grad_()
    swap(model)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_through_the_triton_kernels_in_the_interpreter() -> None:
    plain, model = pair(lambda: theirs.SelfAttention(6), torch.float32)
    with use_backend("triton"):
        # float64 has no kernel, so the check must be made without them
        assert "BackendError" in swap(model).rows[0].now
    assert swap(model).rows[0].swapped
    x = torch.randn(1, 6, 2, 3)
    with use_backend("triton"):
        fused = model(x)
        gradients = torch.autograd.grad(fused.square().sum(), list(model.parameters()))
    expected = plain(x)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), list(plain.parameters())))
    assert any(i.backend == "triton" for i in l2_op.OPERATOR.implementations)


def test_under_torch_compile() -> None:
    plain, model = pair(lambda: nn.Sequential(theirs.SelfAttention(6), nn.Tanh()), torch.float32)
    swap(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 6, 2, 2, requires_grad=True)
    torch.testing.assert_close(compiled(x), plain(x))
    grads = [torch.autograd.grad(m(x).sum(), list(p.parameters())) for m, p in ((compiled, model), (plain, plain))]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
