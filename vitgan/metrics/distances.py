"""How far samples are from data, without any network: for watching a run, not for comparing papers."""

import torch
from torch import Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance between two sets of images, in units of their pixels.

    The images are projected on random unit vectors; on each, the distance of two sorted samples is exact; the result is
    the root of their mean square. Two sets of constant images that differ by c have distance c, about.

    Args:
        a, b: (N, C, H, W) of one floating-point dtype, on one device.
        projections: number of random directions.
        seed: of the directions.

    Raises:
        ValueError: the shapes differ, are not (N, C, H, W), or N is 0.
    """
    if a.shape != b.shape or a.ndim != 4 or len(a) == 0:
        raise ValueError(
            f"two equally large sets of images (N, C, H, W) are needed, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    pixels = a[0].numel()
    directions = torch.randn(pixels, projections, generator=torch.Generator().manual_seed(seed)).to(a)
    directions = directions / directions.norm(dim=0)
    sorted_a, sorted_b = ((images.flatten(1) @ directions).sort(dim=0).values for images in (a, b))
    return float((sorted_a - sorted_b).square().mean().sqrt())


def mean_pairwise_distance(images: Tensor, *, pairs: int = 10_000, seed: int = 0) -> float:
    """Mean root-mean-square difference of two different images of a set; 0 for a generator that has collapsed.

    Args:
        images: (N, C, H, W), floating point.
        pairs: number of random pairs that the mean is of.
        seed: of the pairs.

    Raises:
        ValueError: there are fewer than two images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"at least two images (N, C, H, W) are needed, got {tuple(images.shape)}")
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(len(images), (pairs,), generator=random)
    second = (first + torch.randint(1, len(images), (pairs,), generator=random)) % len(images)
    flat = images.flatten(1)
    chunks = zip(first.split(1000), second.split(1000), strict=True)
    distances = [(flat[i] - flat[j]).square().mean(dim=1).sqrt() for i, j in chunks]
    return float(torch.cat(distances).mean())
