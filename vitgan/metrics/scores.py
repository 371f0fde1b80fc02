"""Scores of a generator against a data set, with and without the features of a network."""

import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vitgan.data import ImageDataset, Shapes, user_cache
from vitgan.data.base import labels_for
from vitgan.devices import another_seed
from vitgan.errors import InputError
from vitgan.files import atomic_write, from_uint8, to_uint8
from vitgan.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_pairwise_distance,
    moments,
    precision_recall,
    sliced_wasserstein,
)
from vitgan.metrics.features import FeatureNetwork
from vitgan.metrics.modes import mode_coverage
from vitgan.models import ImageGenerator

KEPT_ROWS = 10_000
"""Feature rows that are kept for the kernel distance, precision and recall; the moments are of all images."""
BATCH = 64
ON_INCEPTION = {"frechet": "fid", "kernel": "kid", "kernel_deviation": "kid_deviation"}
"""What the distances are called on the network that these names are defined by."""
MIN_IMAGES = 10
"""Images that a score needs at least: splits of the Inception Score, and neighbours of precision and recall."""


@dataclass(frozen=True)
class Statistics:
    """What is kept of a set of images: mean (D,) and covariance (D, D) in float64, and up to KEPT_ROWS rows (N, D)."""

    mean: Tensor
    covariance: Tensor
    rows: Tensor
    logits: Tensor | None = None


def statistics(batches: Iterable[Tensor], network: FeatureNetwork, advance: Callable[[int], None]) -> Statistics:
    """Of uint8 images (B, 3, H, W), batch after batch; `advance` is told how many are done."""
    features, logits = [], []
    for images in batches:
        rows, classes = network(images)
        features.append(rows)
        if classes is not None:
            logits.append(classes)
        advance(len(images))
    whole = torch.cat(features)
    return Statistics(*moments(whole), whole[:KEPT_ROWS], torch.cat(logits) if logits else None)


class Scorer:
    """Scores generators against `samples` images of a data set.

    The statistics of the data are kept in the user's cache under a key of the pixels and of the network.

    Args:
        dataset: the real images, RGB.
        network: whose features.
        samples: images on each side; fewer where the data set is smaller.
        seed: chooses the real images and the latents.
        cache: where the statistics are kept.
        progress: told (what, images done, of how many).

    Raises:
        ValueError: there are fewer than MIN_IMAGES images, or they are not RGB.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        network: FeatureNetwork,
        *,
        samples: int,
        seed: int = 0,
        cache: Path | None = None,
        progress: Callable[[str, int], Callable[[int], None]] | None = None,
    ) -> None:
        if dataset.channels != 3:
            raise InputError(f"feature networks take RGB images, and {dataset.name} has {dataset.channels} channels")
        self.samples = min(samples, len(dataset))
        if self.samples < MIN_IMAGES:
            raise InputError(f"scores need at least {MIN_IMAGES} images, got {self.samples}")
        self.dataset = dataset
        self.network = network
        self.seed = seed
        self.progress = progress or (lambda what, total: lambda done: None)
        self.order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[: self.samples]
        self.real = self._recall_or_compute(dataset, self.order, (cache or user_cache()) / "statistics")

    def __call__(self, generator: ImageGenerator, *, truncation: float = 1.0) -> dict[str, float]:
        """The scores by name.

        On Inception: fid, kid, kid_deviation, inception_score, inception_score_deviation, precision, recall. On any
        other network: frechet, kernel, kernel_deviation, precision and recall, each followed by the network's name.
        The deviation of the kernel distance is that of subsets of 1,000 images, and left out where there are no more.
        """
        labels = self.labels(generator.classes)
        w = generator.map_latents(self.samples, seed=another_seed(self.seed), labels=labels)
        mean = generator.mean_w(labels=labels) if truncation != 1 else None
        images = map(to_uint8, generator.render_batches(w, truncation=truncation, mean=mean))
        fake = statistics(images, self.network, self.progress("generated images", self.samples))
        return compare(self.real, fake, self.network)

    def labels(self, classes: int) -> Tensor | None:
        """The classes of samples: those of the real images; None where these have not so many, for an even draw."""
        return labels_for(self.dataset, self.order, classes)

    def warning(self) -> str | None:
        """What to know of distances between so few images, or None."""
        features = len(self.real.mean)
        if self.samples > features:
            return None
        return (
            f"{self.samples:,} images are too few for the covariance of {features:,} features: the Frechet distance is "
            f"far too high, and compares with others of {self.samples:,} images alone; precision and recall are rough"
        )

    def _recall_or_compute(self, dataset: ImageDataset, order: Tensor, folder: Path) -> Statistics:
        hasher = hashlib.blake2b(f"1 {self.network.key} {KEPT_ROWS}".encode(), digest_size=16)
        for part in order.split(BATCH):
            hasher.update(dataset.fetch(part).numpy().tobytes())
        path = folder / f"{hasher.hexdigest()}.safetensors"
        try:
            kept = load_file(path)
            return Statistics(kept["mean"], kept["covariance"], kept["rows"])
        except (OSError, SafetensorError, KeyError):
            pass
        images = (dataset.fetch(part) for part in order.split(BATCH))
        real = statistics(images, self.network, self.progress("real images", self.samples))
        tensors = {"mean": real.mean, "covariance": real.covariance, "rows": real.rows}
        try:
            with atomic_write(path) as file:
                file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        except OSError as error:  # only time is lost
            warnings.warn(f"statistics of the data are not kept for the next time: {error}", stacklevel=2)
        return real


def compare(real: Statistics, fake: Statistics, network: FeatureNetwork) -> dict[str, float]:
    """The scores of `fake` against `real`, under names that say which network they are on."""
    frechet = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
    kernel, deviation = kernel_distance(real.rows, fake.rows)
    precision, recall = precision_recall(real.rows, fake.rows)
    values = {"frechet": frechet, "kernel": kernel}
    if deviation is not None:
        values["kernel_deviation"] = deviation
    values |= {"precision": precision, "recall": recall}
    if not network.is_inception:
        own = network.name.replace("-", "_")
        return {f"{name}_{own}": value for name, value in values.items()}
    assert fake.logits is not None
    score, score_deviation = inception_score(fake.logits)
    values |= {"inception_score": score, "inception_score_deviation": score_deviation}
    return {ON_INCEPTION.get(name, name): value for name, value in values.items()}


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

    def real_vs_real(self) -> float | None:
        """The distance of other real images: a perfect generator's score. None where there are too few of them."""
        other = self.order[self.samples : 2 * self.samples]
        if len(other) < self.samples:
            return None
        return sliced_wasserstein(from_uint8(self.dataset.fetch(other)), self.real)

    @property
    def grid(self) -> Tensor:
        """Real images (64, C, H, W) to put beside samples."""
        return self.real[:64]
