"""L2SelfAttention, held against attention written out head by head."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgan_kernels import L2SelfAttention, use_backend


def by_hand(module: L2SelfAttention, x: Tensor, scale: float) -> Tensor:
    """Each head by itself, with softmax and distances written out; queries and keys from their own projections."""
    q, v = projected(module, "to_q", x), projected(module, "to_v", x)
    k = q if module.to_k is None else projected(module, "to_k", x)
    width = q.shape[-1] // module.heads
    outs = []
    for head in range(module.heads):
        part = slice(head * width, (head + 1) * width)
        squares = torch.cdist(q[..., part], k[..., part], compute_mode="donot_use_mm_for_euclid_dist").square()
        outs.append(torch.softmax(-scale * squares, dim=-1) @ v[..., part])
    return projected(module, "to_out", torch.cat(outs, dim=-1))


def projected(module: L2SelfAttention, name: str, x: Tensor) -> Tensor:
    layer: Any = module.get_submodule(name)
    return x @ layer.weight.mT + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize(("heads", "scale"), [(1, None), (2, None), (3, 0.4), (12, 2.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_every_head_attends_in_its_own_features(heads: int, scale: float | None, tied: bool) -> None:
    module = L2SelfAttention(12, heads, scale=scale, tied=tied).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    expected = by_hand(module, x, (12 // heads) ** -0.5 if scale is None else scale)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("queries", [1, 3, 7])
def test_fewer_queries_are_the_first_of_all(queries: int, tied: bool, metric: Any) -> None:
    """So are the gradients of what is computed of them, and those of a gradient penalty."""
    module = L2SelfAttention(12, 3, tied=tied, metric=metric).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    variables = [x, *module.parameters()]
    results = []
    for out in (module(x, queries=queries), module(x)[:, :queries]):
        first = torch.autograd.grad(out.square().sum(), variables, create_graph=True)
        results.append([out, *first, *torch.autograd.grad(first[0].square().sum(), variables)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("queries", [0, -1, 6, True, 1.5])
def test_a_number_of_queries_that_there_is_not(queries: Any) -> None:
    with pytest.raises(ValueError, match=f"queries must be a whole number from 1 to 5 .*, got {queries}"):
        L2SelfAttention(8, 2)(torch.ones(2, 5, 8), queries=queries)


def test_queries_and_keys_share_one_projection() -> None:
    tied, untied = L2SelfAttention(8, 2), L2SelfAttention(8, 2, tied=False)
    assert tied.to_k is None
    names = {name for name, _ in tied.named_parameters()}
    assert names == {"to_q.weight", "to_v.weight", "to_v.bias", "to_out.weight", "to_out.bias"}
    assert {name for name, _ in untied.named_parameters()} - names == {"to_q.bias", "to_k.weight", "to_k.bias"}


def test_tied_attention_looks_at_its_own_token_first() -> None:
    """No token is nearer than a token is to itself, which holds only where Wq = Wk."""
    module = L2SelfAttention(6, 1, scale=1e4)
    for linear in ("to_v", "to_out"):
        nn.init.eye_(module.get_parameter(f"{linear}.weight"))
        nn.init.zeros_(module.get_parameter(f"{linear}.bias"))
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(module(x), x)


def test_shapes() -> None:
    module = L2SelfAttention(8, 2)
    for shape in ((5, 8), (3, 5, 8), (2, 3, 5, 8), (0, 5, 8), (3, 1, 8)):
        assert module(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_parameter(tied: bool) -> None:
    """A bias that queries and keys share would get none but rounding: distances do not depend on it."""
    module = L2SelfAttention(8, 2, tied=tied)
    module(torch.randn(2, 5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-3 for p in module.parameters())


def test_projections_can_be_of_another_kind() -> None:
    made = []

    def without_bias(in_features: int, out_features: int) -> nn.Linear:
        made.append((in_features, out_features))
        return nn.Linear(in_features, out_features, bias=False)

    module = L2SelfAttention(8, 2, linear=without_bias)
    assert made == [(8, 8)] * 3
    assert module.to_q.bias is None


@pytest.mark.parametrize(("dim", "heads"), [(8, 3), (8, 0), (8, -2)])
def test_heads_that_do_not_divide(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=rf"dim must be a multiple of heads, got dim={dim}, heads={heads}"):
        L2SelfAttention(dim, heads)


def test_a_width_is_a_positive_whole_number() -> None:
    for dim in (0, 8.0, "8"):
        with pytest.raises(ValueError, match="L2SelfAttention: dim must be a whole number of at least 1, got "):
            L2SelfAttention(dim)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"metric": "cosine"}, "L2SelfAttention: metric must be one of sqeuclidean, euclidean, got 'cosine'"),
        ({"scale": float("nan")}, "L2SelfAttention: scale must be a finite number, got nan"),
        ({"backend": "gpu"}, "unknown backend 'gpu'"),
    ],
)
def test_settings_that_no_call_could_use_are_refused_at_once(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        L2SelfAttention(8, 2, **setting)


def test_backend_is_handed_on() -> None:
    module, x = L2SelfAttention(8, 2, backend="reference"), torch.randn(2, 5, 8)
    with use_backend("triton"):  # which the argument goes before
        assert module(x).shape == x.shape


def test_metric_is_handed_on() -> None:
    module, x = L2SelfAttention(8, 2, metric="euclidean"), torch.randn(2, 5, 8)
    by_distance = module(x)
    module.metric = "sqeuclidean"
    assert not torch.allclose(module(x), by_distance)


@pytest.mark.parametrize("shape", [(8,), (3, 7)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"L2SelfAttention: tokens must be \(\.\.\., N, 8\), got \("):
        L2SelfAttention(8, 2)(torch.ones(shape))
