from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vitgan.helpers import dataset, nano
from tests.vitgan.metrics.test_scores import Pixels
from vitgan.data import Shapes, TensorDataset
from vitgan.devices import SEEDS, another_seed
from vitgan.files import from_uint8
from vitgan.metrics.scores import Evaluator, Scorer
from vitgan.models import Generator, GeneratorConfig
from vitgan.models.base import Labels


class Replay(Generator):
    """A generator that gives out given images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(GeneratorConfig(patch_size=8, dim=8, heads=1, depth=1, latent_dim=8), image_size=32)
        self.images = images

    def sample(self, count: int, **_: object) -> Tensor:
        return self.images[:count]


def floor(evaluator: Evaluator) -> float:
    distance = evaluator.real_vs_real()
    assert distance is not None
    return distance


def test_real_images_score_near_the_floor_and_hit_every_mode() -> None:
    evaluator = Evaluator(Shapes(32, size=2000), samples=500, seed=0)
    other = from_uint8(Shapes(32, size=500, seed=9).fetch(range(500)))
    scores = evaluator(Replay(other))
    assert scores["sliced_wasserstein"] < 2 * floor(evaluator)
    assert 0.95 < scores["diversity"] < 1.05
    assert scores["modes_hit"] == 1
    assert scores["matched"] > 0.95


def test_noise_and_a_collapsed_generator_are_seen_for_what_they_are() -> None:
    evaluator = Evaluator(Shapes(32, size=1000), samples=200, seed=0)
    noise = evaluator(Replay(torch.randn(200, 3, 32, 32).clamp(-1, 1)))
    assert noise["sliced_wasserstein"] > 5 * floor(evaluator)
    assert noise["modes_hit"] == noise["matched"] == 0
    one_image = evaluator.real[:1].expand(200, -1, -1, -1)
    collapsed = evaluator(Replay(one_image))
    assert collapsed["diversity"] == 0
    assert collapsed["modes_hit"] <= 1 / 24
    assert collapsed["sliced_wasserstein"] > 3 * floor(evaluator)


class ByClass(Generator):
    """A generator that gives out an image of the class asked for."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(nano().generator, image_size=8, classes=3)
        assert data.labels is not None
        self.by_class = [from_uint8(data.images[data.labels == number]) for number in range(3)]

    def synthesise(self, w: Tensor) -> Tensor:
        return torch.stack([self.by_class[int(label)][0] for label in w[:, 0]])

    def map_latents(self, count: int, *, seed: int = 0, labels: Labels | None = None) -> Tensor:
        drawn = self._labels(count, seed, labels)
        assert drawn is not None
        return drawn.float().unsqueeze(1).expand(-1, self.latent_dim)


def test_classes_are_drawn_as_often_as_the_data_has_them(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 90 + [1] * 10 + [2] * 2)
    colours = torch.tensor([0, 255, 128], dtype=torch.uint8)[labels].view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    data = TensorDataset(colours.contiguous(), labels=labels, class_names=["a", "b", "c"])
    generator = ByClass(data)
    assert Evaluator(data, samples=102, seed=0)(generator)["sliced_wasserstein"] < 1e-3
    scorer = Scorer(data, Pixels(), samples=102, cache=tmp_path)
    drawn = scorer.labels(3)
    assert drawn is not None
    assert torch.bincount(drawn).tolist() == [90, 10, 2]
    assert scorer(generator)["frechet_pixels"] == pytest.approx(0, abs=0.01)
    assert scorer.labels(4) is None


def test_data_without_modes_and_smaller_than_asked_for_is_served() -> None:
    evaluator = Evaluator(dataset(), samples=64, seed=0)
    scores = evaluator(Generator(nano().generator, image_size=8))
    assert scores.keys() == {"sliced_wasserstein", "diversity"}
    assert evaluator.real_vs_real() is None


def test_evaluations_repeat() -> None:
    torch.manual_seed(0)
    generator = Generator(nano().generator, image_size=8)
    assert Evaluator(dataset(), samples=8, seed=3)(generator) == Evaluator(dataset(), samples=8, seed=3)(generator)


def test_the_last_seed_can_be_evaluated_too() -> None:
    scores = Evaluator(dataset(), samples=4, seed=SEEDS[-1])(Generator(nano().generator, image_size=8))
    assert scores["sliced_wasserstein"] > 0
    assert another_seed(SEEDS[-1]) == SEEDS[0]
    assert another_seed(0) == 1


@pytest.mark.parametrize("seed", ["a", None, 0.5, [1]])
def test_what_is_no_number_is_no_seed(seed: Any) -> None:
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        Generator(nano().generator, image_size=8).sample(1, seed=seed)


def test_whole_numbers_of_others_are_seeds() -> None:
    generator = Generator(nano().generator, image_size=8)
    for seed in (np.int64(3), torch.tensor(3)):
        assert torch.equal(generator.sample(1, seed=seed), generator.sample(1, seed=3))  # type: ignore[arg-type]


def test_images_that_are_all_the_same_have_no_diversity_to_compare_with() -> None:
    same = TensorDataset(dataset().images[:1].expand(10, -1, -1, -1))
    scores = Evaluator(same, samples=4, seed=0)(Generator(nano().generator, image_size=8))
    assert scores.keys() == {"sliced_wasserstein"}
