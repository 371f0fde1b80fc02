"""Which numbers are seeds."""

import operator

SEEDS = range(-(2**63), 2**63)
"""Those that PyTorch takes."""


def check_seed(seed: int) -> int:
    """The seed as an int. TypeError or ValueError unless random numbers can start from it."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be a whole number, got {seed!r}") from None
    if not SEEDS.start <= number < SEEDS.stop:
        raise ValueError(f"seed must be from {SEEDS.start} to {SEEDS.stop - 1}, got {seed}")
    return number


def another_seed(seed: int) -> int:
    """The next one, for numbers that are to be independent of those that `seed` gives."""
    return seed + 1 if seed + 1 in SEEDS else SEEDS.start
