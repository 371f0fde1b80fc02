"""The two optimisation steps: what each network is trained for, what it sees, and what it must not touch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.vitgan.helpers import NANO, assert_same, batch, everything, nano, training
from vitgan.config import LossConfig, OptimiserConfig
from vitgan.models import StyleGan2DiscriminatorConfig
from vitgan.training.augment import AugmentConfig
from vitgan.training.state import GANState
from vitgan_kernels.spectral_norm import grouping

NO_AUGMENTATION = AugmentConfig(translation=0, color=0, cutout=0, scaling=0)
LOGISTIC = LossConfig(bcr_real=2.0, bcr_fake=3.0)
LOSSES = {
    "logistic": LossConfig(bcr_real=0, bcr_fake=0),
    "logistic, bCR": LOGISTIC,
    "hinge, R2": LossConfig("hinge", bcr_real=0, bcr_fake=0, r2=0.4, penalty_every=3),
    "logistic, R1": LossConfig(bcr_real=0, bcr_fake=0, r1=0.7, penalty_every=2),
    "relativistic, all": LossConfig("relativistic", bcr_real=2.0, bcr_fake=3.0, r1=0.7, r2=0.3, penalty_every=2),
}


class Written:
    """The same training, written out: D on one kind of images at a time, the average one parameter at a time."""

    def __init__(self, twin: GANState) -> None:
        self.twin = twin
        self.config = twin.config
        self.g, self.d = twin.generator, twin.discriminator
        rates = twin.config.optimiser
        self.g_adam = torch.optim.Adam(self.g.parameters(), lr=rates.g_lr, betas=(rates.beta1, rates.beta2))
        self.d_adam = torch.optim.Adam(self.d.parameters(), lr=rates.d_lr, betas=(rates.beta1, rates.beta2))
        self.average: list[Tensor] = []
        self.steps = 0

    def step(self, real: Tensor) -> None:
        draws, loss = self.twin.random, self.config.loss
        z = torch.randn(len(real), self.config.generator.latent_dim, generator=draws)
        fake = self.g(z).detach()
        seen_real, seen_fake = self.augmented(real), self.augmented(fake)
        self.d.train()(real[:1])  # one power iteration, and from here on none
        self.d.eval()
        penalised = self.steps % loss.penalty_every == 0
        real_logits, r1 = self.logits(seen_real, penalised)
        fake_logits, r2 = self.logits(seen_fake, penalised)
        if loss.kind == "relativistic":
            total = softplus(fake_logits - real_logits).mean()
        elif loss.kind == "hinge":
            total = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
        else:
            total = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        total = total + loss.bcr_real * (real_logits - self.d(real)).square().mean()
        total = total + loss.bcr_fake * (fake_logits - self.d(fake)).square().mean()
        if penalised:
            total = total + loss.penalty_every * (loss.r1 * r1 + loss.r2 * r2)
        self.move(self.d_adam, total)

        z = torch.randn(len(real), self.config.generator.latent_dim, generator=draws)
        logits = self.d(self.augmented(self.g(z)))
        if loss.kind == "relativistic":
            total = softplus(self.d(self.augmented(real)) - logits).mean()
        elif loss.kind == "hinge":
            total = -logits.mean()
        else:
            total = softplus(-logits).mean()
        self.move(self.g_adam, total)
        self.steps += 1
        self.follow()

    def augmented(self, images: Tensor) -> Tensor:
        return self.twin.augment(images, self.twin.augment.draw(len(images), self.twin.random))

    def logits(self, images: Tensor, penalised: bool) -> tuple[Tensor, Tensor]:
        images = images.clone().requires_grad_()
        logits = self.d(images)
        if not penalised:
            return logits, torch.zeros(())
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return logits, gradient.square().sum((1, 2, 3)).mean()

    def move(self, adam: torch.optim.Adam, loss: Tensor) -> None:
        adam.zero_grad()
        parameters = adam.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        adam.step()

    def follow(self) -> None:
        """The average starts as the generator, then halves what is old every half-life, ramped up with the images."""
        now = [parameter.detach().clone() for parameter in self.g.parameters()]
        rates, images = self.config.optimiser, self.steps * self.config.batch_size
        keep = 0.5 ** (self.config.batch_size / min(rates.ema_half_life, rates.ema_ramp_up * images))
        self.average = [keep * old + (1 - keep) * new for old, new in zip(self.average or now, now, strict=True)]


@pytest.mark.parametrize("name", LOSSES)
def test_three_steps_are_those_written_out(name: str) -> None:
    rates = OptimiserConfig(g_lr=1e-3, d_lr=3e-3, ema_half_life=9, ema_ramp_up=1.0)
    actual, written = (training(loss=LOSSES[name], optimiser=rates) for _ in range(2))
    by_hand = Written(written)
    for number in range(3):
        actual.step(batch(number))
        by_hand.step(batch(number))
    average = dict(zip(dict(by_hand.g.named_parameters()), by_hand.average, strict=True))
    for network, expected in (
        (actual.discriminator, dict(by_hand.d.state_dict())),
        (actual.generator, dict(by_hand.g.state_dict())),
        (actual.averaged_generator, average),
    ):
        loss = actual.config.loss
        torch.testing.assert_close(
            determined(network.state_dict(), loss), determined(expected, loss), rtol=1e-3, atol=2e-5
        )
    assert torch.equal(actual.random.get_state(), written.random.get_state())


def determined(state: dict[str, Tensor], loss: LossConfig) -> dict[str, Tensor]:
    """All but what the loss does not depend on: its gradient is rounding, of which Adam makes steps of full length.

    These are the bias of the keys in dot-product attention, and what shifts all logits: where they are only compared,
    or lie within the margins of the hinge, as they do at the start.
    """
    shifts = set() if loss.kind == "logistic" else {"head.bias", "norm.bias"}
    return {name: x for name, x in state.items() if name not in {"blocks.0.attention.to_qkv.bias"} | shifts}


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_of_both_networks_moves(name: str) -> None:
    state = training(loss=LOSSES[name])
    before = everything(state)
    state.step(batch(0))
    still = set() if LOSSES[name].kind == "logistic" else {"head.bias", "norm.bias"}  # see `determined`
    for network in ("generator", "discriminator"):
        parameters = dict(getattr(state, network).named_parameters())
        assert [n for n, p in parameters.items() if n not in still and torch.equal(p, before[f"{network}.{n}"])] == []


class Watch:
    """Records what the discriminator is given and how, and what both networks look like between the two steps."""

    def __init__(self, state: GANState) -> None:
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []
        self.before_d: dict[str, Tensor | None] = {}
        self.after_d: list[dict[str, Tensor]] = []
        self.generator_after_d: dict[str, Tensor] = {}
        state.discriminator.register_forward_pre_hook(self._look)

        def d_begins(*_: Any) -> None:
            self.before_d = {name: p.grad for name, p in state.generator.named_parameters()}

        def d_ends(*_: Any) -> None:
            self.after_d.append({name: x.clone() for name, x in state.discriminator.state_dict().items()})
            self.d_gradients = [p.grad.clone() for p in state.discriminator.parameters() if p.grad is not None]
            self.generator_after_d = {name: x.clone() for name, x in state.generator.state_dict().items()}

        state.d_optimiser.register_step_pre_hook(d_begins)
        state.d_optimiser.register_step_post_hook(d_ends)

    def _look(self, module: Any, args: tuple[Tensor]) -> None:
        self.seen.append(args[0].detach().clone())
        self.modes.append(module.training)


def test_the_discriminator_s_step_gives_the_generator_no_gradient_and_leaves_it_alone() -> None:
    state = training()
    watch = Watch(state)
    before = {name: x.clone() for name, x in state.generator.state_dict().items()}
    state.step(batch(0))
    assert all(gradient is None for gradient in watch.before_d.values())
    assert_same(watch.generator_after_d, before)
    assert not any(torch.equal(p, before[name]) for name, p in state.generator.named_parameters()), "until its own"


def test_the_generator_s_step_leaves_the_discriminator_alone() -> None:
    """Its weights, its gradients and the vectors of its power iteration."""
    state = training()
    watch = Watch(state)
    for number in range(2):
        state.step(batch(number))
        assert len(watch.after_d) == number + 1, "one step of its optimiser"
        assert_same(dict(state.discriminator.state_dict()), watch.after_d[-1])
        gradients = [p.grad for p in state.discriminator.parameters()]
        assert len(gradients) == len(watch.d_gradients)
        for gradient, expected in zip(gradients, watch.d_gradients, strict=True):
            assert gradient is not None
            assert torch.equal(gradient, expected)
        assert all(p.requires_grad for p in state.discriminator.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("name", "views"), [("logistic", 2), ("logistic, bCR", 4), ("relativistic, all", 4)])
def test_the_discriminator_is_evaluated_once_on_all_that_its_step_needs(name: str, views: int, accumulate: int) -> None:
    state = training(loss=LOSSES[name], accumulate=accumulate)
    watch = Watch(state)
    state.step(batch(0))
    counts = [len(images) for images in watch.seen]
    part = NANO.batch_size // accumulate
    assert counts[:accumulate] == [views * part] * accumulate
    assert sum(counts[accumulate:]) == NANO.batch_size * (2 if "relativistic" in name else 1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_one_power_iteration(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = []
    plain = grouping.spectral_norm

    def counted(*args: Any, **kwargs: Any) -> Any:
        updates.append(kwargs["update"] and kwargs["n_iterations"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(grouping, "spectral_norm", counted)
    state = training(accumulate=accumulate)
    for number in range(2):
        updates.clear()
        state.step(batch(number))
        assert updates[0] == 1
        assert not any(updates[1:])


def test_both_steps_show_the_discriminator_augmented_images() -> None:
    """And bCR the same images clean: real and generated in the same order."""
    state = training(loss=LOGISTIC)
    watch = Watch(state)
    given: list[Tensor] = []

    def mark(images: Tensor, draws: Tensor) -> Tensor:
        assert draws.shape == (len(images), state.augment.width)
        given.append(images.detach().clone())
        return images + 100

    state.objectives.augment = mark  # type: ignore[assignment]
    real = batch(0)
    state.step(real)
    seen_by_d, seen_by_g = watch.seen
    seen_real, seen_fake, clean_real, clean_fake = seen_by_d.chunk(4)
    assert torch.equal(clean_real, real)
    torch.testing.assert_close([seen_real - 100, seen_fake - 100], [clean_real, clean_fake], rtol=0, atol=1e-4)
    assert clean_fake.abs().max() < 50
    assert len(given) == 3
    torch.testing.assert_close(seen_by_g, given[2] + 100)


def test_bcr_compares_each_image_with_itself_and_weighs_real_and_generated_ones_apart() -> None:
    state = training(loss=LOGISTIC)
    state.objectives.augment = lambda images, draws: images * 3  # type: ignore[assignment]
    brightness: list[Tensor] = []

    def bright(images: Tensor, labels: None) -> Tensor:
        brightness.append(images.detach().mean((1, 2, 3)))
        return images.mean((1, 2, 3)) * next(state.discriminator.parameters()).sum() ** 0

    state.discriminator.forward = bright  # type: ignore[method-assign, assignment]
    [(loss, scalars)] = state._d_losses(batch(0), None)
    clean_real, clean_fake = brightness[0].chunk(4)[2:]
    expected = 2 * (2 * clean_real).square().mean() + 3 * (2 * clean_fake).square().mean()
    torch.testing.assert_close(scalars["bcr"], expected)
    torch.testing.assert_close(loss.detach(), scalars["d_loss"] + expected)


def test_without_augmentation_there_is_nothing_for_bcr_to_do() -> None:
    scalars = training(loss=LOGISTIC, augment=NO_AUGMENTATION).step(batch(0))
    assert scalars["bcr"].item() == pytest.approx(0, abs=1e-10)
    assert "bcr" not in training(loss=LOSSES["logistic"]).step(batch(0))


def test_penalties_are_lazy() -> None:
    state = training(loss=LOSSES["relativistic, all"])
    penalised = ["r1" in state.step(batch(number)) for number in range(4)]
    assert penalised == [True, False, True, False]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(name: str, accumulate: int) -> None:
    """Where nothing is augmented; latents are drawn in blocks of 16 numbers, so that parts and whole draw the same."""
    generator = replace(NANO.generator, latent_dim=16)
    shared = {"loss": LOSSES[name], "augment": NO_AUGMENTATION, "generator": generator}
    whole, parts = training(**shared), training(**shared, accumulate=accumulate)
    expected, actual = whole.step(batch(0)), parts.step(batch(0))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    for one, other in ((whole.discriminator, parts.discriminator), (whole.generator, parts.generator)):
        gradients, others = ({n: p.grad for n, p in network.named_parameters()} for network in (one, other))
        torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-6)


def test_the_average_is_a_generator_that_trails_behind() -> None:
    rates = OptimiserConfig(ema_half_life=4.0, ema_ramp_up=1e9)  # half of it new with every batch of 4
    state = training(optimiser=rates)
    average = dict(state.averaged_generator.named_parameters())
    assert average.keys() == dict(state.generator.named_parameters()).keys()
    assert len(average) > 10
    assert not any(p.requires_grad for p in average.values())
    state.step(batch(0))
    for name, parameter in state.generator.named_parameters():
        assert torch.equal(average[name], parameter)
        assert average[name] is not parameter
    old = {name: p.clone() for name, p in average.items()}
    state.step(batch(1))
    for name, parameter in state.generator.named_parameters():
        torch.testing.assert_close(average[name], (old[name] + parameter) / 2)
        assert not torch.equal(average[name], parameter)
    different = state.averaged_generator.sample(2) - state.generator.sample(2)
    assert different.abs().max() > 1e-5


def test_the_average_halves_what_is_old_in_its_half_life_ramped_up_with_the_images() -> None:
    rates = OptimiserConfig(ema_half_life=6.0, ema_ramp_up=0.5)
    state = training(optimiser=rates)
    keeps = []
    for number in range(4):
        old = next(state.averaged_generator.parameters()).clone()
        state.step(batch(number))
        new, average = next(state.generator.parameters()), next(state.averaged_generator.parameters())
        keeps.append(((average - new) / (old - new)).median().item())
    # half-lives of 2 (not used: the first step copies), 4, 6 and then 6 images, with 4 images a step
    assert keeps[1:] == pytest.approx([0.5 ** (4 / 4), 0.5 ** (4 / 6), 0.5 ** (4 / 6)], rel=1e-2)


def test_a_state_that_is_taken_over_continues_bit_for_bit() -> None:
    first, second = training(), training(seed=1)
    for number in range(3):
        first.step(batch(number))
    tensors, values = first.state()
    second.load_state({name: x.clone() for name, x in tensors.items()}, dict(values))
    second.averaged_generator.load_state_dict(first.averaged_generator.state_dict())
    assert_same(everything(second), everything(first))
    for number in range(3, 6):
        first.step(batch(number))
        second.step(batch(number))
    assert_same(everything(second), everything(first))
    assert first.steps == second.steps == 6
    assert first.images == 24


@pytest.mark.parametrize("missing", ["random", "generator.positions.linear.weight", "discriminator.class_token"])
def test_a_state_that_lacks_something_is_refused(missing: str) -> None:
    tensors, values = training().state()
    del tensors[missing]
    with pytest.raises((KeyError, RuntimeError), match=missing.partition(".")[2] or missing):
        training().load_state(tensors, values)


def test_the_state_has_the_vectors_of_the_power_iteration() -> None:
    tensors, _ = training().state()
    for entry in ("_u", "_v", "sigma_init"):
        assert f"discriminator.patches.parametrizations.weight.0.{entry}" in tensors


def test_training_repeats_by_seed_whatever_else_draws_random_numbers() -> None:
    runs = []
    for seed, disturbed in ((0, False), (0, True), (1, False)):
        state = training(seed=seed)
        for number in range(2):
            if disturbed:
                torch.manual_seed(99)
            state.step(batch(number))
        runs.append(everything(state))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["generator.norm.gamma.weight"], runs[2]["generator.norm.gamma.weight"])
    assert not torch.equal(runs[0]["random"], runs[2]["random"])


def test_networks_start_by_seed() -> None:
    torch.manual_seed(99)
    first, again, other = (everything(training(seed=seed)) for seed in (0, 0, 1))
    assert_same(first, again)
    for name in ("generator.positions.linear.weight", "discriminator.class_token", "random"):
        assert not torch.equal(first[name], other[name])


def test_scalars_are_numbers_without_a_graph() -> None:
    scalars = training(loss=LOSSES["relativistic, all"]).step(batch(0))
    assert set(scalars) == {"d_loss", "d_real", "d_fake", "bcr", "r1", "r2", "g_loss"}
    for value in scalars.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert value.isfinite()


def test_learning_rates_fall_over_the_last_part_of_the_run() -> None:
    rates = OptimiserConfig(g_lr=1e-3, d_lr=2e-3, lr_decay=0.5)
    state = training(optimiser=rates)
    seen = []
    for number in range(nano().images // nano().batch_size):
        state.step(batch(number))
        seen.append((state.g_optimiser.param_groups[0]["lr"], state.d_optimiser.param_groups[0]["lr"]))
    factors = [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [g for g, _ in seen] == pytest.approx([1e-3 * factor for factor in factors])
    assert [d for _, d in seen] == pytest.approx([2e-3 * factor for factor in factors])


def test_groups_and_pairs_of_images_must_both_fit_a_batch() -> None:
    groups = {"discriminator_kind": "stylegan2", "loss": LossConfig(diversity=1.0)}
    three = StyleGan2DiscriminatorConfig(width=8, minibatch_group=3)
    with pytest.raises(ValueError, match="in groups of 6, but a part of the batch has 9"):
        training(batch_size=9, stylegan2_discriminator=three, **groups)
    training(batch_size=6, stylegan2_discriminator=three, **groups)
