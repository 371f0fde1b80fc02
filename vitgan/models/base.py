"""What every generator can do: from latents through w to images, by number, by seed, by class."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.devices import check_seed
from vitgan.errors import InputError
from vitgan.models.layers import EqualLinear

Labels = Tensor | Sequence[int]
"""Whole numbers, one an image."""
MEAN_OF = 4096
"""Latents that the mean w is taken of."""
BATCH = 32
"""Images that are computed at a time, always: in batches of other sizes a matrix product rounds otherwise."""


class MappingNetwork(nn.Module):
    """z, normalised to unit mean square, through equalised layers with leaky ReLU to w.

    With classes, an embedding of the class, normalised in the same way, stands beside z (Karras et al., 2020).

    Shape: z (B, dim), labels int64 (B,) or None -> (B, dim).
    """

    def __init__(self, dim: int, depth: int, lr_multiplier: float, *, classes: int = 0) -> None:
        super().__init__()
        if classes and not depth:
            raise InputError("a conditional generator needs a mapping network: a mapping_depth of at least 1")
        self.classes = classes
        self.embedding = nn.Embedding(classes, dim) if classes else None
        widths = [2 * dim if classes else dim] + [dim] * depth
        self.layers = nn.ModuleList(EqualLinear(width, dim, lr_multiplier=lr_multiplier) for width in widths[:depth])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        w = F.rms_norm(z, z.shape[-1:], eps=1e-8)
        if self.embedding is not None:
            if labels is None:
                raise InputError(f"this generator is conditional: give labels (B,), numbers below {self.classes}")
            embedded = self.embedding(labels)
            w = torch.cat([w, F.rms_norm(embedded, embedded.shape[-1:], eps=1e-8)], dim=1)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), 0.2) * 2**0.5
        return w


class ImageGenerator(nn.Module):
    """The part that all generators share; a subclass sets the attributes and implements `synthesise`.

    Attributes:
        mapping: from z and the class to w.
        image_size: side of the images in pixels.
        channels: 1 to 4.
        latent_dim: size of z and w.
        classes: number of classes; 0 for an unconditional generator.
    """

    def __init__(self, mapping: MappingNetwork, *, latent_dim: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.mapping = mapping
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.channels = channels
        self.classes = mapping.classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images for latents. z (B, latent_dim), normal; labels int64 (B,) if conditional.

        -> (B, channels, image_size, image_size), about [-1, 1].

        Raises ValueError where z has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise InputError(f"z must be (B, {self.latent_dim}), got {tuple(z.shape)}")
        return self.synthesise(self.mapping(z, labels))

    def synthesise(self, w: Tensor) -> Tensor:
        """Images for mapped latents. w (B, latent_dim) -> (B, channels, image_size, image_size)."""
        raise NotImplementedError

    def latents(self, count: int, *, seed: int) -> Tensor:
        """(count, latent_dim) standard normal latents in the weights' dtype, the same on every device for a seed.

        Raises ValueError where count is not a whole number of at least 0.
        """
        if not isinstance(count, int) or count < 0:
            raise InputError(f"the number of latents must be a whole number of at least 0, got {count}")
        random = torch.Generator().manual_seed(check_seed(seed))
        # PyTorch draws normal numbers 16 at a time: of a whole number of batches the first are the same for any count.
        drawn = torch.randn(math.ceil(count / BATCH) * BATCH, self.latent_dim, generator=random)[:count]
        return drawn.to(next(self.parameters()))

    def random_labels(self, count: int, *, seed: int) -> Tensor | None:
        """(count,) classes drawn evenly, the same on every device; None for an unconditional generator."""
        if not self.classes:
            return None
        # A stream of its own: the latents of a seed are the same with and without classes.
        random = torch.Generator().manual_seed(check_seed(seed) ^ 0x5EED)
        return torch.randint(self.classes, (count,), generator=random).to(self.device)

    @torch.no_grad()
    def map_latents(self, count: int, *, seed: int = 0, labels: Labels | None = None) -> Tensor:
        """Mapped random latents w (count, latent_dim), for `render`.

        labels: int64 (count,), or (1,) for all of one class; None draws them, if conditional.

        Raises:
            ValueError: there are labels and the generator is unconditional, or they are not of its classes.
        """
        classes = self._labels(count, seed, labels)
        inputs = [self.latents(count, seed=seed)] + ([] if classes is None else [classes])
        return torch.cat(list(in_whole_batches(self.mapping, *inputs)))

    @torch.no_grad()
    def mean_w(self, *, labels: Labels | None = None) -> Tensor:
        """The mean of w (latent_dim,), over the classes given or over all: what truncation pulls towards."""
        if labels is not None and len(labels):
            labels = _whole_numbers(labels)
            labels = labels.repeat(math.ceil(MEAN_OF / len(labels)))[:MEAN_OF]
        return self.map_latents(MEAN_OF, seed=0, labels=labels).mean(dim=0)

    @torch.no_grad()
    def sample(self, count: int, *, seed: int = 0, truncation: float = 1.0, labels: Labels | None = None) -> Tensor:
        """Sampled images in [-1, 1], (count, channels, image_size, image_size).

        On one machine, image i of a seed is the same bit for bit whatever the count.

        Args:
            count: number of images.
            seed: chooses the latents.
            truncation: pulls w towards its mean; 1 leaves it, 0 gives the mean image (StyleGAN's psi).
            labels: as in `map_latents`. With one class for all, the mean is that class's own.
        """
        w = self.map_latents(count, seed=seed, labels=labels)
        mean = (
            self.mean_w(labels=labels if labels is not None and len(labels) == 1 else None) if truncation != 1 else None
        )
        return self.render(w, truncation=truncation, mean=mean)

    def render(self, w: Tensor, *, truncation: float = 1.0, mean: Tensor | None = None) -> Tensor:
        """Images in [-1, 1] for mapped latents w (N, latent_dim), truncated as in `sample`, towards `mean`."""
        return torch.cat(list(self.render_batches(w, truncation=truncation, mean=mean)))

    def render_batches(self, w: Tensor, *, truncation: float = 1.0, mean: Tensor | None = None) -> Iterator[Tensor]:
        """The images of `render`, at most BATCH at a time."""
        if not math.isfinite(truncation):
            raise InputError(f"truncation must be a finite number, got {truncation}")
        target = self.mean_w() if mean is None and truncation != 1 else mean

        @torch.no_grad()
        def images(part: Tensor) -> Tensor:
            if truncation != 1 and target is not None:
                part = target.lerp(part, truncation)
            return self.synthesise(part).clamp(-1, 1)

        return in_whole_batches(images, w)

    @torch.no_grad()
    def walk(self, count: int, *, seed: int = 0, stops: int = 4, labels: Labels | None = None) -> Tensor:
        """w (count, latent_dim), for `render`, along a closed walk through `stops` random points."""
        if count < 1 or stops < 1:
            raise InputError(f"a walk needs at least 1 image and 1 stop, got {count} and {stops}")
        points = self.map_latents(stops, seed=seed, labels=labels)
        place = torch.arange(count, device=points.device) * stops / count
        before = place.long()
        return points[before].lerp(points[(before + 1) % stops], (place - before).unsqueeze(1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _labels(self, count: int, seed: int, labels: Labels | None) -> Tensor | None:
        if labels is None:
            return self.random_labels(count, seed=seed)
        if not self.classes:
            raise InputError("this generator is unconditional, it takes no labels")
        given = _whole_numbers(labels)
        fits = given.shape in ((count,), (1,)) and all(0 <= label < self.classes for label in given.tolist())
        if not fits:
            raise InputError(
                f"labels must be ({count},) or (1,) numbers from 0 to {self.classes - 1}, got {tuple(given.shape)} "
                f"like {given.flatten()[:5].tolist()}"
            )
        return given.to(self.device).expand(count)


def _whole_numbers(labels: Labels) -> Tensor:
    """Labels as int64. TypeError where they are none."""
    try:
        given = torch.as_tensor(labels)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(f"labels must be whole numbers, got {labels!r}") from error
    if given.numel() and (given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool):
        raise TypeError(f"labels must be whole numbers, got {given.dtype}")
    return given.long()


def in_whole_batches(function: Callable[..., Tensor], *inputs: Tensor) -> Iterator[Tensor]:
    """`function` of inputs (N, ...), BATCH rows at a time; zeros fill the last batch up, and their results are dropped.

    So a row's result is the same bit for bit however many others there are.
    """
    for parts in zip(*(rows.split(BATCH) for rows in inputs), strict=True):
        count = len(parts[0])
        yield function(*(F.pad(part, [0, 0] * (part.ndim - 1) + [0, BATCH - count]) for part in parts))[:count]
