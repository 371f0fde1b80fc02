"""Distances between sets of images, or of their features: plain mathematics, without any network."""

import torch
from torch import Tensor

from vitgan.errors import InputError


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
        raise InputError(
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
        raise InputError(f"at least two images (N, C, H, W) are needed, got {tuple(images.shape)}")
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(len(images), (pairs,), generator=random)
    second = (first + torch.randint(1, len(images), (pairs,), generator=random)) % len(images)
    flat = images.flatten(1)
    chunks = zip(first.split(1000), second.split(1000), strict=True)
    distances = [(flat[i] - flat[j]).square().mean(dim=1).sqrt() for i, j in chunks]
    return float(torch.cat(distances).mean())


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), with N - 1, of features (N, D); N at least 2."""
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"at least two rows of features (N, D) are needed, got {tuple(features.shape)}")
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) between two normal distributions (Heusel et al., 2017).

    On Inception features this is FID. It is biased upwards for few images: compare only equal numbers of them.
    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ cov_b @ root)
    trace = cov_a.trace() + cov_b.trace() - 2 * inner.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + trace)


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased: mean and deviation over subsets.

    On Inception features this is KID (Binkowski et al., 2018). Features (N, D) and (M, D); sets smaller than
    subset_size make smaller subsets. The deviation is None where each subset is all there is.
    """
    size = min(subset_size, len(a), len(b))
    is_whole = size == len(a) == len(b)
    if size < 2:
        raise InputError(f"at least two rows of features in each set are needed, got {len(a)} and {len(b)}")
    random = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(1 if is_whole else subsets):
        x = a[torch.randperm(len(a), generator=random)[:size]].double()
        y = b[torch.randperm(len(b), generator=random)[:size]].double()
        xx, yy, xy = ((one @ other.T / a.shape[1] + 1) ** 3 for one, other in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append(within - 2 * xy.mean())
    result = torch.stack(values)
    return float(result.mean()), None if is_whole else float(result.std(unbiased=False))


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | image) from p(class) (Salimans et al., 2016): mean and deviation.

    logits (N, classes), shuffled and cut into `splits` parts.
    """
    if len(logits) < splits:
        raise InputError(f"{splits} splits need at least as many images, got {len(logits)}")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    for part in logits[order].double().tensor_split(splits):
        log_p = part.log_softmax(dim=1)
        divergence = (log_p.exp() * (log_p - log_p.exp().mean(dim=0).log())).sum(dim=1)
        scores.append(divergence.mean().exp())
    result = torch.stack(scores)
    return float(result.mean()), float(result.std(unbiased=False))


def precision_recall(real: Tensor, fake: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of features (N, D) and (M, D).

    Precision: the share of fake within the distance of some real one to its third nearest real neighbour (so that
    the manifold of the real ones is a union of balls); recall: the same with the parts exchanged.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise InputError(f"more than {neighbours} images of each kind are needed, got {len(real)} and {len(fake)}")
    return _share_inside(fake, real, neighbours), _share_inside(real, fake, neighbours)


def _share_inside(points: Tensor, centres: Tensor, neighbours: int, block: int = 1024) -> float:
    # The nearest of all is the point itself, at 0.
    radii = torch.cat(
        [_distances(part, centres).kthvalue(neighbours + 1, dim=1).values for part in centres.split(block)]
    )
    inside = [(_distances(part, centres) <= radii).any(dim=1) for part in points.split(block)]
    return torch.cat(inside).double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
