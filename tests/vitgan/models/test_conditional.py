"""Generation and judgement by class, in every network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vitgan.models import (
    CnnDiscriminator,
    CnnDiscriminatorConfig,
    CnnGenerator,
    CnnGeneratorConfig,
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    ImageGenerator,
    StyleGan2Discriminator,
    StyleGan2DiscriminatorConfig,
)

GENERATORS: dict[str, Callable[..., ImageGenerator]] = {
    "vit": lambda **o: Generator(
        GeneratorConfig(patch_size=4, latent_dim=8, dim=8, depth=1, heads=2, mapping_depth=2), image_size=8, **o
    ),
    "cnn": lambda **o: CnnGenerator(CnnGeneratorConfig(latent_dim=8, width=4), image_size=8, **o),
}
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "vit": lambda **o: Discriminator(
        DiscriminatorConfig(patch_size=4, dim=8, depth=1, heads=2), image_size=8, **o
    ).eval(),
    "cnn": lambda **o: CnnDiscriminator(CnnDiscriminatorConfig(width=4), image_size=8, **o).eval(),
    "stylegan2": lambda **o: StyleGan2Discriminator(
        StyleGan2DiscriminatorConfig(width=8, minibatch_group=1), image_size=8, **o
    ),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_s_images_depend_on_the_class(kind: str) -> None:
    generator, z = GENERATORS[kind](classes=3), torch.randn(2, 8)
    a, b = (generator(z, torch.full((2,), label)) for label in (0, 2))
    assert (a - b).abs().max() > 1e-3
    with pytest.raises(ValueError, match="conditional: give labels"):
        generator(z)


@pytest.mark.parametrize("kind", GENERATORS)
def test_samples_of_a_class_of_random_classes_and_of_none(kind: str) -> None:
    generator = GENERATORS[kind](classes=3)
    one = generator.sample(5, seed=1, labels=torch.tensor([2]))
    assert torch.equal(one, generator.sample(5, seed=1, labels=torch.full((5,), 2)))
    drawn = generator.random_labels(64, seed=0)
    assert drawn is not None
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(generator.sample(5, seed=1), generator.sample(5, seed=1))
    for bad in ([3], [-1], [0, 1]):
        with pytest.raises(ValueError, match="numbers from 0 to 2"):
            generator.sample(5, labels=torch.tensor(bad))
    assert torch.equal(one, generator.sample(5, seed=1, labels=[2]))
    none: Any
    for none in ([0.5], [True], ["a"], torch.tensor([1.0])):
        with pytest.raises(TypeError, match="labels must be whole numbers, got"):
            generator.sample(1, labels=none)
    with pytest.raises(ValueError, match=r"got \(0,\) like \[\]"):
        generator.sample(5, labels=[])
    with pytest.raises(ValueError, match="at least 1 image and 1 stop, got 4 and 0"):
        generator.walk(4, stops=0)
    with pytest.raises(ValueError, match="unconditional"):
        GENERATORS[kind]().sample(5, labels=torch.tensor([0]))


def test_truncation_of_one_class_goes_to_that_class_s_mean() -> None:
    generator = GENERATORS["vit"](classes=3)
    [a], [b] = (generator.sample(1, truncation=0, labels=torch.tensor([label])) for label in (0, 1))
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(a, generator.render(generator.mean_w(labels=torch.tensor([0])).unsqueeze(0))[0])


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_has_a_logit_for_each_class_and_gives_the_image_s_own(kind: str) -> None:
    torch.manual_seed(0)
    critic = DISCRIMINATORS[kind](classes=3)
    images = torch.randn(6, 3, 8, 8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = critic(images, labels)
    assert logits.shape == (6,)
    for label in range(3):
        torch.testing.assert_close(critic(images, torch.full((6,), label))[labels == label], logits[labels == label])
    assert (critic(images, (labels + 1) % 3) - logits).abs().min() > 1e-5
    with pytest.raises(ValueError, match="conditional: give labels"):
        critic(images)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_unconditional_discriminators_do_not_see_labels(kind: str) -> None:
    critic, images = DISCRIMINATORS[kind](), torch.randn(2, 3, 8, 8)
    assert torch.equal(critic(images, torch.tensor([0, 1])), critic(images))


def test_the_latent_has_as_much_to_say_as_the_class() -> None:
    """Both enter the mapping network with unit mean square."""
    mapping: Any = GENERATORS["vit"](classes=3).mapping
    seen: list[torch.Tensor] = []
    mapping.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mapping(100 * torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))
    for half in seen[0].chunk(2, dim=1):
        torch.testing.assert_close(half.square().mean(1), torch.ones(4))


def test_a_conditional_generator_without_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="mapping_depth of at least 1"):
        CnnGenerator(CnnGeneratorConfig(mapping_depth=0), image_size=8, classes=2)
