"""The public function: what it refuses, autocast, meta tensors, torch.compile."""

import pytest
import torch
from torch import Tensor

from vitgan_kernels import l2_attention

Q, K, V = torch.randn(2, 4, 3), torch.randn(2, 5, 3), torch.randn(2, 5, 6)


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (Q[0, 0], K, V, r"at least 2 dimensions .* got q \(3,\), k \(2, 5, 3\), v \(2, 5, 6\)"),
        (Q, K[0, 0], V, "at least 2 dimensions"),
        (Q, K, V[0, 0], "at least 2 dimensions"),
        (Q, K[..., :2], V, r"same number of features, got q \(2, 4, 3\), k \(2, 5, 2\)"),
        (Q, K[:, :4], V, r"k and v must have the same number of tokens, got .* k \(2, 4, 3\), v \(2, 5, 6\)"),
        (Q, None, V, r"k and v must have the same number of tokens, got .* k \(2, 4, 3\), v \(2, 5, 6\)"),
        (Q, K[:, :0], V[:, :0], r"at least one key of at least one feature, got .* k \(2, 0, 3\)"),
        (Q[..., :0], K[..., :0], V, "at least one key of at least one feature"),
        (Q[:1].expand(3, 4, 3), K, V, r"leading dimensions do not broadcast, got q \(3, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(q: Tensor, k: Tensor | None, v: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^l2_attention: .*{message}"):
        l2_attention(q, k, v)


def test_what_is_not_a_floating_point_tensor() -> None:
    with pytest.raises(TypeError, match=r"^l2_attention: v must be a Tensor, got list"):
        l2_attention(Q, K, [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^l2_attention: k must be floating point, got torch.int64: .*k\.float\(\)"):
        l2_attention(Q, K.long(), V)
    with pytest.raises(
        TypeError, match=r"^l2_attention: v must be floating point, got torch.float8_e4m3fn: .* float16"
    ):
        l2_attention(Q, K, V.to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"^l2_attention: q must be floating point, got torch.complex64"):
        l2_attention(Q.to(torch.complex64), K, V)


@pytest.mark.parametrize(("q", "k", "v", "name"), [(None, K, V, "q"), (None, None, V, "q"), (Q, K, None, "v")])
def test_only_keys_may_be_none(q: Tensor, k: Tensor | None, v: Tensor, name: str) -> None:
    with pytest.raises(TypeError, match=f"^l2_attention: {name} must be a Tensor, got NoneType"):
        l2_attention(q, k, v)


def test_dtypes_and_devices_that_differ() -> None:
    with pytest.raises(TypeError, match=r"^l2_attention: q is torch.float32 but v is torch.float64: convert one, or"):
        l2_attention(Q, K, V.double())
    with pytest.raises(ValueError, match=r"^l2_attention: q is on cpu but k is on meta: move one"):
        l2_attention(Q, K.to("meta"), V)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True])
def test_scale_that_is_no_number(scale: float) -> None:
    with pytest.raises(ValueError, match=r"^l2_attention: scale must be a finite number, got "):
        l2_attention(Q, K, V, scale=scale)


def test_metric_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"^l2_attention: metric must be one of sqeuclidean, euclidean, got 'cosine'"):
        l2_attention(Q, K, V, metric="cosine")  # type: ignore[arg-type]


def test_backends() -> None:
    torch.testing.assert_close(l2_attention(Q, K, V, backend="reference"), l2_attention(Q, K, V))
    with pytest.raises(ValueError, match="unknown backend 'fastest'"):
        l2_attention(Q, K, V, backend="fastest")


@pytest.mark.parametrize("k", [K, None])
def test_autocast_rounds_the_inputs_and_nothing_else(k: Tensor | None) -> None:
    v = V if k is not None else V[:, :4]
    expected = l2_attention(Q.bfloat16(), None if k is None else k.bfloat16(), v.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        out = l2_attention(Q, k, v)
        mixed = l2_attention(Q.bfloat16(), k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close([out, mixed], [expected, expected], rtol=0, atol=0)


def test_autocast_leaves_float64_alone() -> None:
    expected = l2_attention(Q.double(), K.double(), V.double())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(l2_attention(Q.double(), K.double(), V.double()), expected, rtol=0, atol=0)


def test_autocast_gives_gradients_in_the_dtype_of_the_inputs() -> None:
    q = Q.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = l2_attention(q, K, V)
    out.float().square().sum().backward()
    assert q.grad is not None
    exact = Q.double().requires_grad_()
    l2_attention(exact, K.double(), V.double()).square().sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(q.grad.double(), exact.grad, rtol=0.1, atol=0.05)


def test_shapes_are_known_without_data() -> None:
    out = l2_attention(Q.to("meta"), K.to("meta"), V.to("meta"))
    assert out.shape == (2, 4, 6)
    assert out.device.type == "meta"


@pytest.mark.parametrize("tied", [False, True])
def test_compiles_as_one_graph(tied: bool) -> None:
    q = Q.clone().requires_grad_()
    k, v = (None, V[:, :4]) if tied else (K, V)

    def loss(q: Tensor) -> Tensor:
        return l2_attention(q, k, v, scale=0.5).square().sum()

    value = torch.compile(loss, backend="aot_eager", fullgraph=True)(q)
    torch.testing.assert_close(value, loss(q))
    torch.testing.assert_close(torch.autograd.grad(value, q), torch.autograd.grad(loss(q), q))


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_scale_that_changes_compiles_at_most_twice_where_it_may_be_a_symbol(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(q: Tensor, scale: float) -> Tensor:
        return l2_attention(q, None, V[:, :4], scale=scale)

    compiled = torch.compile(call, backend=count, fullgraph=True, dynamic=dynamic)
    for scale in (0.5, 0.6, 0.7, 0.8):
        torch.testing.assert_close(compiled(Q, scale), call(Q, scale))
    assert len(graphs) <= (4 if dynamic is False else 2)


def test_exports_with_any_number_of_keys() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return l2_attention(q, k, v)

    tokens = torch.export.Dim("tokens", min=2, max=1000)
    exported = torch.export.export(Model(), (Q, K, V), dynamic_shapes=({}, {1: tokens}, {1: tokens}))
    k, v = torch.randn(2, 70, 3), torch.randn(2, 70, 6)
    torch.testing.assert_close(exported.module()(Q, k, v), l2_attention(Q, k, v))


def test_a_scale_may_be_a_tensor_that_learns() -> None:
    scale = torch.tensor(0.4, requires_grad=True)
    out = l2_attention(Q, K, V, scale=scale)
    torch.testing.assert_close(out, l2_attention(Q, K, V, scale=0.4))
    assert torch.autograd.grad(out.sum(), scale)[0].isfinite()


def test_compiles_as_one_graph_under_autocast() -> None:
    def call(q: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return l2_attention(q, K, V)

    torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(Q), call(Q))
