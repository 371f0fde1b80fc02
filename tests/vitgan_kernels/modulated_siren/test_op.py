"""The public functions: what they refuse, autocast, meta tensors, torch.compile."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import modulated_linear, modulated_siren

X, WEIGHT, STYLE, BIAS = torch.randn(2, 4, 3), torch.randn(5, 3), torch.randn(2, 3), torch.randn(5)
WEIGHT2, STYLE2, BIAS2 = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x": X[0, 0]}, r"x must be \(B, P, I\), or \(P, I\) shared by all samples, got \(3,\)"),
        ({"x": X[None]}, r"x must be \(B, P, I\), .*, got \(1, 2, 4, 3\)"),
        ({"x": X[:1]}, r"x \(1, 4, 3\) and style \(2, 3\) differ in the batch size"),
        ({"weight": WEIGHT.T}, r"weight must be \(O, 3\) for 3 input features, got \(3, 5\)"),
        ({"weight": WEIGHT[None]}, r"weight must be \(O, 3\) for 3 input features, got \(1, 5, 3\)"),
        ({"style": STYLE[:, :2]}, r"style must be \(B, 3\) for 3 input features, got \(2, 2\)"),
        ({"style": STYLE[0]}, r"style must be \(B, 3\) for 3 input features, got \(3,\)"),
        ({"bias": BIAS[:3]}, r"bias must be \(5,\), got \(3,\)"),
        ({"bias": BIAS[None]}, r"bias must be \(5,\), got \(1, 5\)"),
        ({"activation": "relu"}, "the activation must be None or \"sine\", got 'relu'"),
        ({"omega": float("nan")}, "omega must be a finite number, got nan"),
        ({"omega": None}, "omega must be a finite number, got None"),
        ({"eps": float("inf")}, "eps must be a finite number, got inf"),
        ({"eps": -1e-8}, "eps must not be negative, got -1e-08"),
    ],
)
def test_linear_arguments_that_do_not_fit(replaced: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "weight": WEIGHT, "style": STYLE, "bias": BIAS} | replaced
    with pytest.raises(ValueError, match=f"^modulated_linear: {message}"):
        modulated_linear(**arguments)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"weights": []}, "one entry for each of at least one layer, got 0 weights, 2 styles and 2 biases"),
        ({"styles": [STYLE]}, "got 2 weights, 1 styles and 2 biases"),
        ({"biases": [BIAS]}, "got 2 weights, 2 styles and 1 biases"),
        ({"styles": [STYLE], "biases": None}, "got 2 weights, 1 styles and none biases"),
        ({"x": X[0, 0]}, r"x must be \(B, P, I\)"),
        ({"x": X[:1]}, "differ in the batch size"),
        ({"weights": [WEIGHT, WEIGHT2.T]}, r"weight of layer 1 must be \(O, 5\) for 5 input features, got \(5, 6\)"),
        ({"styles": [STYLE2, STYLE2]}, r"style of layer 0 must be \(B, 3\) for 3 input features, got \(2, 5\)"),
        ({"styles": [STYLE, STYLE2[:1]]}, r"styles must share one batch size, got \[\(2, 3\), \(1, 5\)\]"),
        ({"biases": [BIAS, BIAS]}, r"bias of layer 1 must be \(6,\), got \(5,\)"),
        ({"final_activation": "tanh"}, "the activation must be None or \"sine\", got 'tanh'"),
        ({"omega": float("inf")}, "omega must be a finite number, got inf"),
    ],
)
def test_siren_arguments_that_do_not_fit(replaced: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": X,
        "weights": [WEIGHT, WEIGHT2],
        "styles": [STYLE, STYLE2],
        "biases": [BIAS, BIAS2],
    }
    with pytest.raises(ValueError, match=f"^modulated_siren: .*{message}"):
        modulated_siren(**(arguments | replaced))


def test_what_is_not_a_floating_point_tensor() -> None:
    with pytest.raises(TypeError, match=r"^modulated_linear: style must be a Tensor, got float"):
        modulated_linear(X, WEIGHT, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^modulated_linear: x must be floating point, got torch.uint8"):
        modulated_linear(X.byte(), WEIGHT, STYLE)
    with pytest.raises(TypeError, match=r"^modulated_siren: biases\[1\] must be floating point, got torch.int64"):
        modulated_siren(X, [WEIGHT, WEIGHT2], [STYLE, STYLE2], [BIAS, BIAS2.long()])


def test_only_biases_may_be_none() -> None:
    with pytest.raises(TypeError, match=r"^modulated_linear: style must be a Tensor, got NoneType"):
        modulated_linear(X, WEIGHT, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^modulated_siren: weights\[1\] must be a Tensor, got NoneType"):
        modulated_siren(X, [WEIGHT, None], [STYLE, STYLE2])  # type: ignore[list-item]


@pytest.mark.parametrize("layers", ["weights", "styles", "biases"])
def test_a_stack_is_of_lists_and_not_of_one_tensor(layers: str) -> None:
    arguments: dict[str, Any] = {"weights": [WEIGHT], "styles": [STYLE], "biases": [BIAS]}
    arguments[layers] = arguments[layers][0]
    with pytest.raises(TypeError, match=f"^modulated_siren: {layers} must be a list of tensors, got Tensor"):
        modulated_siren(X, **arguments)


def test_demodulation_is_on_or_off() -> None:
    with pytest.raises(TypeError, match=r"^modulated_linear: demodulate must be True or False, got 'no'"):
        modulated_linear(X, WEIGHT, STYLE, demodulate="no")  # type: ignore[arg-type]


def test_dtypes_and_devices_that_differ() -> None:
    with pytest.raises(TypeError, match=r"^modulated_linear: x is torch.float32 but bias is torch.float64: convert"):
        modulated_linear(X, WEIGHT, STYLE, BIAS.double())
    with pytest.raises(ValueError, match=r"^modulated_siren: x is on cpu but styles\[1\] is on meta: move one"):
        modulated_siren(X, [WEIGHT, WEIGHT2], [STYLE, STYLE2.to("meta")])


def test_autocast_rounds_the_inputs_and_nothing_else() -> None:
    tensors = (X, WEIGHT, STYLE, BIAS)
    expected = modulated_linear(*(t.bfloat16() for t in tensors), activation="sine", demodulate=True)
    weights, styles = [WEIGHT, WEIGHT2], [STYLE, STYLE2]
    rounded = [w.bfloat16() for w in weights], [s.bfloat16() for s in styles], [BIAS.bfloat16(), None]
    expected_stack = modulated_siren(X.bfloat16(), *rounded)
    with torch.autocast("cpu", torch.bfloat16):
        out = modulated_linear(*tensors, activation="sine", demodulate=True)
        out_stack = modulated_siren(X, weights, styles, [BIAS, None])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close([out, out_stack], [expected, expected_stack], rtol=0, atol=0)


def test_shapes_are_known_without_data() -> None:
    out = modulated_linear(X.to("meta"), WEIGHT.to("meta"), STYLE.to("meta"), demodulate=True)
    assert out.shape == (2, 4, 5)


def test_linear_compiles_as_one_graph() -> None:
    weight = WEIGHT.clone().requires_grad_()

    def loss(weight: Tensor) -> Tensor:
        return modulated_linear(X, weight, STYLE, BIAS, activation="sine", omega=1.5, demodulate=True).square().sum()

    value = torch.compile(loss, backend="aot_eager", fullgraph=True)(weight)
    torch.testing.assert_close(value, loss(weight))
    torch.testing.assert_close(torch.autograd.grad(value, weight), torch.autograd.grad(loss(weight), weight))


def test_siren_compiles_as_one_graph() -> None:
    def call(x: Tensor) -> Tensor:
        return modulated_siren(x, [WEIGHT, WEIGHT2], [STYLE, STYLE2], [BIAS, None], omega=1.5, demodulate=True)

    torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(X[0]), call(X[0]))


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="style must be a Tensor, got NoneType"):
        modulated_linear(torch.randn(5, 3), torch.randn(4, 3), None)  # type: ignore[arg-type]
