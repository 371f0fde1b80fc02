"""Numbers that say how a run is doing, from the averaged generator, without any network."""

import torch
from torch import Tensor

from vitgan.data import ImageDataset, Shapes
from vitgan.data.base import labels_for
from vitgan.images import from_uint8
from vitgan.metrics.distances import mean_pairwise_distance, sliced_wasserstein
from vitgan.metrics.modes import mode_coverage
from vitgan.models import ImageGenerator
from vitgan.seeds import another_seed


class Evaluator:
    """Compares samples with a fixed random part of the data.

    Args:
        dataset: the training data.
        samples: images on each side; fewer where the data set is smaller.
        seed: chooses the real images and the latents, the same at every evaluation.
    """

    def __init__(self, dataset: ImageDataset, *, samples: int, seed: int) -> None:
        self.dataset = dataset
        self.samples = min(samples, len(dataset))
        self.seed = seed
        self.order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
        self.real = from_uint8(dataset.fetch(self.order[: self.samples]))
        self.real_distance = mean_pairwise_distance(self.real)

    def __call__(self, generator: ImageGenerator) -> dict[str, float]:
        """Sliced Wasserstein distance and diversity, and for shapes the modes hit.

        Samples have the classes of the real images, which is what training draws them from.
        `diversity` is the mean distance between two samples in units of that between two real images, and left out
        where that is 0. `modes_hit` is the share of the known modes that samples hit, `matched` the share of samples
        that are clearly one of them.
        """
        labels = labels_for(self.dataset, self.order[: self.samples], generator.classes)
        fake = generator.sample(self.samples, seed=another_seed(self.seed), labels=labels).cpu()
        result = {"sliced_wasserstein": sliced_wasserstein(fake, self.real)}
        if self.real_distance > 0:
            result["diversity"] = mean_pairwise_distance(fake) / self.real_distance
        if isinstance(self.dataset, Shapes) and self.dataset.channels == 3:
            coverage = mode_coverage(fake, self.dataset)
            result["modes_hit"] = coverage.share_of_modes_hit
            result["matched"] = coverage.share_of_samples_matched
        return result

    def floor(self) -> float | None:
        """The distance of other real images: a perfect generator's score. None where there are too few of them."""
        other = self.order[self.samples : 2 * self.samples]
        if len(other) < self.samples:
            return None
        return sliced_wasserstein(from_uint8(self.dataset.fetch(other)), self.real)

    @property
    def grid(self) -> Tensor:
        """Real images (64, C, H, W) to put beside samples."""
        return self.real[:64]
