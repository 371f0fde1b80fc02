"""Which numbers are seeds."""

SEEDS = range(-(2**63), 2**63)
"""Those that PyTorch takes."""


def check_seed(seed: int) -> None:
    """Raise ValueError unless random numbers can start from it."""
    if seed not in SEEDS:
        raise ValueError(f"seed must be from {SEEDS.start} to {SEEDS.stop - 1}, got {seed}")


def another_seed(seed: int) -> int:
    """The next one, for numbers that are to be independent of those that `seed` gives."""
    return seed + 1 if seed + 1 in SEEDS else SEEDS.start
