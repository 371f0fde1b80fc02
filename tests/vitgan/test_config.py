import json
from collections.abc import Callable

import pytest

from vitgan.config import Config, LossConfig, OptimiserConfig, from_dict, to_dict
from vitgan.presets import PRESETS
from vitgan.training.augment import AugmentConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_know_their_name(name: str) -> None:
    config = PRESETS[name]
    assert config.preset == name
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_the_paper_s_settings() -> None:
    config = PRESETS["cifar10"]
    assert (config.generator.dim, config.generator.heads, config.generator.depth) == (384, 6, 4)
    assert (config.image_size // config.generator.patch_size) ** 2 == 64
    assert (PRESETS["celeba64"].image_size // PRESETS["celeba64"].generator.patch_size) ** 2 == 64
    assert PRESETS["celeba64"].generator.depth == PRESETS["celeba64"].discriminator.depth == 6
    assert (config.loss.bcr_real, config.loss.bcr_fake, config.loss.r1) == (10, 10, 0)
    assert config.batch_size == 128
    assert (config.optimiser.g_lr, config.optimiser.beta1, config.optimiser.beta2) == (2e-3, 0, 0.99)
    augment = config.augment
    assert {augment.translation, augment.color, augment.cutout, augment.scaling} == {0.8}


def test_the_original_implementation_s_settings() -> None:
    config = PRESETS["vitgan-pytorch-cifar10"]
    assert (config.generator.latent_dim, config.generator.heads, config.generator.depth) == (32, 4, 4)
    assert config.optimiser.g_lr == config.optimiser.d_lr == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 10, "accumulate": 3}, "multiple of accumulate"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 100_000}, "at most 1024"),
        ({"workers": -1}, "workers must not be negative"),
        ({"max_minutes": -1}, "max_minutes must be positive"),
        ({"log_every": 0}, "log_every"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (LossConfig, {"r1": -1.0}),
        (LossConfig, {"penalty_every": 0}),
        (OptimiserConfig, {"g_lr": 0.0}),
        (OptimiserConfig, {"ema_ramp_up": 0.0}),
        (OptimiserConfig, {"beta2": 1.0}),
        (OptimiserConfig, {"lr_decay": 1.5}),
        (AugmentConfig, {"cutout": 1.1}),
    ],
)
def test_parts_out_of_range_are_refused(kind: Callable[..., object], changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        kind(**changes)


def test_unknown_keys_are_refused_at_any_depth() -> None:
    values = to_dict(PRESETS["tiny"])
    values["generator"]["widht"] = 1
    with pytest.raises(ValueError, match="'widht' in GeneratorConfig"):
        from_dict(Config, values)
