"""SpectralNormGroup: a whole model under spectral normalisation."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as pytorch_spectral_norm

from vitgan_kernels import SpectralNormGroup, spectral_norm
from vitgan_kernels.spectral_norm import grouping as group_file


class Net(nn.Module):
    """Matrices of several kinds, and parameters that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.deep = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4, bias=False))
        self.embedding = nn.Embedding(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        h = self.norm(self.convolution(images).mean((2, 3)))
        return self.deep(h + self.embedding.weight.sum(0)).sum(1)


NAMES = ["convolution", "deep.0", "deep.2"]


def images() -> Tensor:
    return torch.randn(3, 2, 5, 5)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def original(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(f"{name}.parametrizations.weight.original")


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight as the layer by itself uses it."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def top_singular_value(weight: Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().flatten(1))[0])


def test_finds_the_matrices_and_nothing_else() -> None:
    model = Net()
    group = SpectralNormGroup(model)
    assert group.names == NAMES
    assert not hasattr(model.embedding, "parametrizations")
    names = {name for name, _ in model.named_parameters()}
    assert "embedding.weight" in names
    assert {f"{name}.parametrizations.weight.original" for name in NAMES} < names
    assert not any(name in names for name in ("convolution.weight", "deep.0.weight"))
    assert all(original(model, name).is_leaf for name in NAMES)


def test_only_some_matrices() -> None:
    model = Net()
    group = SpectralNormGroup(model, only=lambda name, layer: isinstance(layer, nn.Linear) and name != "deep.2")
    assert group.names == ["deep.0"]


def test_putting_it_on_changes_nothing_yet() -> None:
    """The norm of each matrix stays what it was: improved spectral normalisation keeps the initialisation."""
    torch.manual_seed(1)
    plain = Net()
    model = copy.deepcopy(plain)
    SpectralNormGroup(model)
    x = images()
    torch.testing.assert_close(model.eval()(x), plain(x), rtol=1e-4, atol=1e-5)


def test_improved_keeps_the_norm_whatever_the_weight_becomes() -> None:
    model = Net()
    SpectralNormGroup(model)
    before = {name: top_singular_value(original(model, name)) for name in NAMES}
    with torch.no_grad():
        for name in NAMES:
            original(model, name).mul_(3)
    for name in NAMES:
        assert top_singular_value(weight_of(model, name)) == pytest.approx(before[name], rel=1e-3)


def test_classic_scales_to_one() -> None:
    model = Net()
    SpectralNormGroup(model, improved=False)
    for name in NAMES:
        assert top_singular_value(weight_of(model, name)) == pytest.approx(1, rel=1e-3)


def test_sigma_is_that_of_a_decomposition_from_the_start() -> None:
    model = Net()
    sigma = SpectralNormGroup(model).sigma()
    assert list(sigma) == NAMES
    for name, value in sigma.items():
        assert value.item() == pytest.approx(top_singular_value(original(model, name)), rel=0.01)


def test_sigma_follows_weights_that_move() -> None:
    """u and v that were computed but never stored would stay those of the start, with sigma off by a third."""
    model = Net()
    group = SpectralNormGroup(model)
    with torch.no_grad():
        for name in NAMES:
            original(model, name).normal_()
    stale = group.sigma()
    assert any(abs(stale[n].item() / top_singular_value(original(model, n)) - 1) > 0.2 for n in NAMES)
    for _ in range(100):
        model(images())
    for name, value in group.sigma().items():
        exact = top_singular_value(original(model, name))
        assert value.item() == pytest.approx(exact, rel=0.01)


def test_all_weights_of_a_forward_come_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    results, used = [], []

    def watched(*args: Any, **kwargs: Any) -> Any:
        results.append(spectral_norm(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(group_file, "spectral_norm", watched)
    model = Net()
    SpectralNormGroup(model)
    for name in NAMES:
        model.get_submodule(name).register_forward_hook(lambda layer, args, output: used.append(layer.weight))
    model(images())
    [(scaled, _)] = results
    assert len(scaled) == len(used) == len(NAMES)
    assert all(mine is theirs for mine, theirs in zip(used, scaled, strict=True))


def test_a_training_forward_is_one_power_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[0]))
        return spectral_norm(*args, **kwargs)

    monkeypatch.setattr(group_file, "spectral_norm", counted)
    model = Net()
    SpectralNormGroup(model)
    with torch.no_grad():
        original(model, "deep.0").normal_()
    matrix, u = original(model, "deep.0").detach(), model.get_buffer("deep.0.parametrizations.weight.0._u").clone()
    model(images())
    assert calls == [3]
    v = nn.functional.normalize(matrix.mT @ u, dim=0)
    torch.testing.assert_close(model.get_buffer("deep.0.parametrizations.weight.0._v"), v)
    expected = nn.functional.normalize(matrix @ v, dim=0)
    torch.testing.assert_close(model.get_buffer("deep.0.parametrizations.weight.0._u"), expected)
    model.eval()(images())
    assert calls == [3, 3]


def test_several_power_iterations_a_forward() -> None:
    models = []
    for iterations, forwards in ((3, 1), (1, 3)):
        torch.manual_seed(1)
        model = Net()
        SpectralNormGroup(model, n_iterations=iterations)
        with torch.no_grad():
            original(model, "deep.0").copy_(torch.linspace(-1, 2, 32).view(8, 4).sin())
        for _ in range(forwards):
            model(images())
        models.append(model)
    torch.testing.assert_close(buffers(models[0]), buffers(models[1]), rtol=0, atol=0)


def test_training_stores_u_and_v_and_evaluation_changes_nothing() -> None:
    model = Net()
    SpectralNormGroup(model)
    with torch.no_grad():
        for name in NAMES:
            original(model, name).normal_()
    moved = [f"{name}.parametrizations.weight.0.{vector}" for name in NAMES for vector in ("_u", "_v")]
    before = buffers(model)
    model.eval()(images())
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)
    model.train()(images())
    after = buffers(model)
    assert all(not torch.allclose(after[name], before[name]) for name in moved)
    with torch.no_grad():
        model(images())
    assert all(not torch.equal(buffers(model)[name], after[name]) for name in moved), "also without a graph"
    torch.testing.assert_close(
        {name: after[name] for name in after if name not in moved},
        {name: before[name] for name in before if name not in moved},
        rtol=0,
        atol=0,
    )


def test_u_v_and_the_norms_are_in_the_state_dict() -> None:
    model = Net()
    SpectralNormGroup(model)
    for name in NAMES:
        for entry in ("original", "0._u", "0._v", "0.sigma_init"):
            assert f"{name}.parametrizations.weight.{entry}" in model.state_dict()


@pytest.mark.parametrize("improved", [True, False])
def test_state_dict_round_trip_is_exact(improved: bool) -> None:
    model, other = Net(), Net()
    for each in (model, other):
        SpectralNormGroup(each, improved=improved)
    with torch.no_grad():
        original(model, "deep.0").normal_()
    for _ in range(3):
        model(images())
    other.load_state_dict(model.state_dict())
    x = images()
    torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(other.train()(x), model.train()(x), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def under_pytorch_s_own() -> Net:
    model = Net()
    for name in NAMES:
        pytorch_spectral_norm(model.get_submodule(name))
    return model


def test_shares_the_state_dict_of_pytorch_s_own_spectral_norm() -> None:
    theirs, mine, theirs_again = under_pytorch_s_own(), Net(), under_pytorch_s_own()
    with torch.no_grad():
        for name in NAMES:
            original(theirs, name).mul_(2)
    x = images()
    theirs(x)
    SpectralNormGroup(mine, improved=False)
    mine.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x))
    theirs_again.load_state_dict(mine.state_dict())
    torch.testing.assert_close(theirs_again.eval()(x), theirs(x))


def test_a_state_dict_without_the_norms_leaves_them_as_they_are() -> None:
    theirs, mine = under_pytorch_s_own(), Net()
    SpectralNormGroup(mine)
    norms = [name for name in mine.state_dict() if name.endswith("sigma_init")]
    before = buffers(mine)
    mine.load_state_dict(theirs.state_dict())
    assert len(norms) == len(NAMES)
    assert all(torch.equal(mine.get_buffer(name), before[name]) for name in norms)
    for name in NAMES:
        torch.testing.assert_close(original(mine, name), original(theirs, name))
    with pytest.raises(RuntimeError, match="sigma_init"):
        theirs.load_state_dict(mine.state_dict())


def test_a_copy_is_a_model_of_its_own() -> None:
    model = Net()
    model.group = SpectralNormGroup(model)  # type: ignore[assignment]
    twin = copy.deepcopy(model)
    x = images()
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0, atol=0)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        original(twin, "deep.0").normal_()
    twin.train()(x)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    fresh = twin.eval()(x)
    assert not torch.allclose(fresh, model(x))
    assert isinstance(twin.group, SpectralNormGroup)
    assert twin.group.layers[0] is twin.convolution
    assert twin.group.sigma()["deep.0"] != model.group.sigma()["deep.0"]  # type: ignore[operator, union-attr]


def test_follows_the_model_to_another_dtype() -> None:
    model = Net()
    SpectralNormGroup(model)
    model.double()
    assert model(images().double()).dtype == torch.float64
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float64}


def test_an_exception_in_the_forward_leaves_no_weights_behind() -> None:
    model = Net()
    group = SpectralNormGroup(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 5, 5, 5))
    with torch.no_grad():
        original(model, "deep.0").normal_()
    x = torch.randn(2, 4)
    scale = model.get_buffer("deep.0.parametrizations.weight.0.sigma_init") / group.sigma()["deep.0"]
    expected = x @ original(model, "deep.0").mT * scale
    torch.testing.assert_close(model.deep[0](x) - model.get_parameter("deep.0.bias"), expected)
    stale = model.eval()(images())
    with torch.no_grad():
        original(model, "deep.2").copy_(torch.randn(4, 8))
    assert not torch.allclose(model(images()), stale)


def test_a_layer_by_itself_scales_its_own_weight_and_moves_nothing() -> None:
    model = Net()
    group = SpectralNormGroup(model)
    before = buffers(model)
    x = torch.randn(2, 4)
    weight = original(model, "deep.0") * before["deep.0.parametrizations.weight.0.sigma_init"] / group.sigma()["deep.0"]
    torch.testing.assert_close(model.deep[0](x), x @ weight.mT + model.get_parameter("deep.0.bias"))
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)


def test_autocast_leaves_the_norms_alone() -> None:
    model = Net()
    group = SpectralNormGroup(model)
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).dtype == torch.bfloat16
        layer_alone, sigma = weight_of(model, "deep.0"), group.sigma()
    twin(images())
    torch.testing.assert_close(buffers(model), buffers(twin), rtol=0, atol=0)
    torch.testing.assert_close(layer_alone, weight_of(twin, "deep.0"), rtol=0, atol=0)
    assert all(value.dtype == torch.float32 for value in sigma.values())


def test_models_without_a_matrix() -> None:
    with pytest.raises(ValueError, match="LayerNorm has no weight of two or more dimensions to normalise"):
        SpectralNormGroup(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="Net has no weight"):
        SpectralNormGroup(Net(), only=lambda name, layer: False)
    with pytest.raises(ValueError, match="Embedding has no weight"):
        SpectralNormGroup(nn.Embedding(3, 4))
    with pytest.raises(TypeError, match=r"only must be a function of \(name, layer\) or None, got 'deep.0'"):
        SpectralNormGroup(Net(), only="deep.0")  # type: ignore[arg-type]


def test_a_weight_of_zeros() -> None:
    model = Net()
    nn.init.zeros_(model.get_parameter("deep.2.weight"))
    with pytest.raises(ValueError, match=r"the weight of deep\.2 is zero and has no spectral norm to scale by"):
        SpectralNormGroup(model)
    nn.init.ones_(model.get_parameter("deep.2.weight"))
    SpectralNormGroup(model)  # what failed has changed nothing


def test_what_a_module_of_attention_keeps_under_another_name_is_not_passed_over() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 1)})
    with pytest.raises(ValueError, match=r"attention is an nn\.MultiheadAttention, .* leave it out with only="):
        SpectralNormGroup(model)
    group = SpectralNormGroup(model, only=lambda name, layer: name != "attention")
    assert group.names == ["attention.out_proj", "head"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LazyLinear(3), "the weight of 1 has no shape yet"),
        (nn.Linear(3, 3).requires_grad_(False), "the weight of 1 is not finite"),
    ],
)
def test_weights_that_have_no_norm(layer: nn.Module, message: str) -> None:
    if type(layer) is nn.Linear and not layer.weight.is_meta:
        layer.weight[0] = float("nan")
    with pytest.raises(ValueError, match=f"SpectralNormGroup: {message}"):
        SpectralNormGroup(nn.Sequential(nn.Linear(3, 3), layer))


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module is needed, got str"):
        SpectralNormGroup("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SpectralNormGroup: n_iterations must be an integer of at least 0, got -1"):
        SpectralNormGroup(nn.Linear(3, 3), n_iterations=-1)
    with pytest.raises(ValueError, match="SpectralNormGroup: eps must be positive, got 0"):
        SpectralNormGroup(nn.Linear(3, 3), eps=0)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        SpectralNormGroup(nn.Linear(3, 3), backend="gpu")


def test_a_transposed_convolution() -> None:
    with pytest.raises(ValueError, match="0 is a transposed convolution, not supported: leave it out with only="):
        SpectralNormGroup(nn.Sequential(nn.ConvTranspose2d(2, 3, 3)))


def test_normalised_twice() -> None:
    model = Net()
    SpectralNormGroup(model)
    with pytest.raises(ValueError, match="the weight of convolution is parametrised already: remove that first"):
        SpectralNormGroup(model)


def test_a_data_parallel_replica_is_refused_in_training_and_served_in_evaluation() -> None:
    model = Net()
    SpectralNormGroup(model)
    x = images()
    expected = model.eval()(x)
    replica = copy.copy(model)
    replica._is_replica = True  # type: ignore[assignment]
    torch.testing.assert_close(replica(x), expected)
    replica.training = True
    with pytest.raises(RuntimeError, match=r"train under torch\.nn\.parallel\.DistributedDataParallel"):
        replica(x)
