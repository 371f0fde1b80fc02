"""Any generator with any discriminator, optional terms of the losses, classes, bfloat16, whole-graph compiling."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vitgan.helpers import NANO, assert_same, batch, everything, training
from vitgan.cli import main
from vitgan.config import Config, LossConfig
from vitgan.models import CnnDiscriminatorConfig, CnnGeneratorConfig, StyleGan2DiscriminatorConfig
from vitgan.training import losses
from vitgan.training.losses import diversity_loss
from vitgan.training.state import GANState

SMALL: dict[str, Any] = {
    "cnn_generator": CnnGeneratorConfig(latent_dim=8, width=4, max_width=8),
    "cnn_discriminator": CnnDiscriminatorConfig(width=4, max_width=8),
    "stylegan2_discriminator": StyleGan2DiscriminatorConfig(width=8),
}
ALL = LossConfig("hinge", bcr_real=1, bcr_fake=1, r1=0.1, r2=0.1, history=0.5, noise=0.5, diversity=0.5)
CLASSES = {"conditional": True, "class_names": ("a", "b", "c")}
LABELS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize(("g", "d"), list(product(["vit", "cnn"], ["vit", "cnn", "stylegan2"])))
@pytest.mark.parametrize("classes", [{}, CLASSES], ids=["unconditional", "conditional"])
def test_any_generator_trains_with_any_discriminator(g: str, d: str, classes: dict[str, Any]) -> None:
    state = training(generator_kind=g, discriminator_kind=d, loss=ALL, **SMALL, **classes)
    labels = LABELS if classes else None
    before = everything(state)
    for number in range(2):
        scalars = state.step(batch(number), labels)
        assert all(value.isfinite() for value in scalars.values())
    after = everything(state)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for network in ("generator", "discriminator", "average"):
        assert sum(name.startswith(f"{network}.") for name in moved) > 5
    assert torch.equal(state.generator.latents(2, seed=0), state.averaged_generator.latents(2, seed=0))
    assert state.averaged_generator.sample(2).shape == (2, 3, 8, 8)


def test_images_that_are_compared_need_whole_groups() -> None:
    with pytest.raises(ValueError, match="make --batch-size a multiple of 8"):
        training(discriminator_kind="stylegan2", accumulate=2, **SMALL)
    with pytest.raises(ValueError, match="make --batch-size a multiple of 8"):
        training(loss=LossConfig(diversity=1.0), accumulate=4)


class Seen:
    """What the discriminator is given in its own step."""

    def __init__(self, state: GANState) -> None:
        self.images: list[Tensor] = []
        self.labels: list[Tensor | None] = []
        state.discriminator.register_forward_pre_hook(self._look)
        state.objectives.augment = lambda images, draws: images  # type: ignore[assignment]

    def _look(self, module: torch.nn.Module, args: tuple[Tensor, Tensor | None]) -> None:
        if module.training:
            self.images.append(args[0].detach().clone())
            self.labels.append(args[1])


def test_classes_go_with_their_images_through_every_view() -> None:
    state = training(loss=ALL, **CLASSES)
    seen = Seen(state)
    state.step(batch(0), LABELS)
    assert len(seen.images[0]) == 6 * 4
    [labels] = seen.labels
    assert labels is not None
    assert torch.equal(labels, LABELS.repeat(6))


def test_the_history_keeps_images_of_earlier_steps_and_gives_places_to_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = training(loss=LossConfig(bcr_real=0, bcr_fake=0, history=1.0))
    seen = Seen(state)
    state.step(batch(0))
    _, first_fake, shown = seen.images[0].chunk(3)
    assert torch.equal(shown, first_fake), "there is no other yet"
    state.step(batch(1))
    _, second_fake, shown = seen.images[1].chunk(3)
    assert torch.equal(shown, first_fake)
    assert not torch.equal(shown, second_fake)
    monkeypatch.setattr("vitgan.training.state.HISTORY_TURNOVER", 0.5)
    kept = 0.0
    for number in range(2, 27):
        before = seen.images[-1].chunk(3)[2]
        state.step(batch(number))
        _, fake, shown = seen.images[-1].chunk(3)
        old = (shown == before).flatten(1).all(1)
        kept += old.float().mean().item() / 25
        del fake
    assert kept == pytest.approx(0.5, abs=0.2)


def test_history_is_part_of_the_state() -> None:
    first, second = training(loss=ALL), training(loss=ALL, seed=3)
    for number in range(2):
        first.step(batch(number))
    tensors, values = first.state()
    assert tensors["history"].shape == (4, 3, 8, 8)
    second.load_state({name: x.clone() for name, x in tensors.items()}, dict(values))
    second.averaged_generator.load_state_dict(first.averaged_generator.state_dict())
    for state in (first, second):
        state.step(batch(2))
    assert_same(everything(first), everything(second))


def test_noise_is_uniform_over_the_range_and_rejected() -> None:
    state = training(loss=LossConfig(bcr_real=0, bcr_fake=0, noise=2.0))
    seen = Seen(state)
    state.objectives.loss = replace(state.objectives.loss, noise=0.0)
    plain = state.objectives.of_discriminator
    state.objectives.loss = replace(state.objectives.loss, noise=2.0)
    scalars = state.step(batch(0))
    noise = seen.images[0].chunk(3)[2]
    assert noise.min() < -0.9
    assert noise.max() > 0.9
    assert noise.mean().abs() < 0.1
    assert scalars["noise"] > 0
    total, parts = plain(seen.images[0], None, 4, False)
    torch.testing.assert_close(total.detach(), parts["d_loss"] + 2 * parts["noise"])


def test_sameness_is_one_for_copies_and_falls_with_distance() -> None:
    z = torch.randn(6, 8)
    copies = torch.randn(3, 3, 4, 4).repeat_interleave(2, dim=0)
    assert diversity_loss(copies, z).item() == pytest.approx(1, abs=1e-3)
    assert diversity_loss(100 * torch.randn(6, 3, 4, 4), z).item() == 0
    images = torch.zeros(2, 1, 2, 2)
    images[1] = 0.5
    assert diversity_loss(images, torch.tensor([[0.0, 0.0], [1.0, 1.0]])).item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="in pairs"):
        diversity_loss(copies[:5], z[:5])


def test_diversity_is_added_to_the_generator_s_loss_alone() -> None:
    plain, diverse = training(loss=LossConfig()), training(loss=LossConfig(diversity=3.0))
    plain.step(batch(0))
    scalars = diverse.step(batch(0))
    assert scalars["diversity_loss"] > 0
    a, b = everything(plain), everything(diverse)
    assert_same(*({n: x for n, x in s.items() if n.startswith("discriminator.")} for s in (a, b)))
    assert not torch.equal(a["generator.norm.gamma.weight"], b["generator.norm.gamma.weight"])


def test_terms_that_are_off_leave_no_trace() -> None:
    """Neither in the numbers that are drawn nor in what is shown."""
    state = training(loss=LossConfig(bcr_real=0, bcr_fake=0))
    seen = Seen(state)
    assert set(state.step(batch(0))) == {"d_loss", "d_real", "d_fake", "g_loss"}
    assert len(seen.images[0]) == 2 * 4
    assert state.history is None


def test_a_step_does_not_wait_for_the_device() -> None:
    """Reading a number out of a tensor is what would: the operator `_local_scalar_dense`."""
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                waits.append(str(func))
            return func(*args, **(kwargs or {}))

    state = training(loss=ALL, **CLASSES)
    state.step(batch(0), LABELS)
    with Watch():
        state.step(batch(1), LABELS)
        assert waits == []
        float(torch.ones(()))
    assert waits, "the watch works"


def test_bfloat16_changes_little_and_keeps_weights_in_float32() -> None:
    exact, rough = training(loss=ALL, bf16=False), training(loss=ALL, bf16=True)
    expected, actual = exact.step(batch(0)), rough.step(batch(0))
    assert any(not torch.equal(actual[name], expected[name]) for name in actual)
    for name in ("d_loss", "g_loss"):
        assert actual[name].item() == pytest.approx(expected[name].item(), abs=0.05)
    assert {p.dtype for p in rough.generator.parameters()} == {torch.float32}


def test_compiled_steps_are_whole_graphs_and_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1 and R2 in the same graph as the forward pass; a graph break would raise. ViTs: test_cuda_graphs.py."""
    monkeypatch.setattr(losses, "COMPILE_BACKEND", "aot_eager")
    torch._dynamo.reset()
    loss = LossConfig("relativistic", bcr_real=1, bcr_fake=1, r1=0.5, r2=0.5, penalty_every=1)
    options: dict[str, Any] = {"loss": loss, "discriminator_kind": "stylegan2", **SMALL}
    plain, compiled = training(**options), training(**options, compile=True)
    for number in range(2):
        expected, actual = plain.step(batch(number)), compiled.step(batch(number))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
        compiled.load_state(*plain.state())  # Adam makes full steps of what is rounding alone


def test_compiling_without_a_compiler_is_one_line_and_leaves_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-c++ -O1")
    assert main(["train", "--preset", "tiny", "--compile", "--device", "cpu", "--out", str(tmp_path / "run")]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "--compile needs a C++ compiler, and there is no no-such-c++ here: install one" in line
    assert list(tmp_path.iterdir()) == []


def test_the_hybrid_preset_is_stylegan2_s_discriminator_with_lazy_r1() -> None:
    from vitgan.presets import PRESETS

    config: Config = PRESETS["cifar10-hybrid"]
    assert config.discriminator_kind == "stylegan2"
    assert config.generator_kind == "vit"
    assert config.loss.r1 > 0
    assert config.loss.penalty_every == 16
    assert config.generator == PRESETS["cifar10"].generator
    assert NANO.discriminator_kind == "vit"
