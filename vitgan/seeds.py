"""Which numbers are seeds."""

SEEDS = range(-(2**63), 2**63 - 1)
"""Those that PyTorch takes, where one more is a seed too: samples are drawn with the next one."""


def check_seed(seed: int) -> None:
    """Raise ValueError unless random numbers can start from it."""
    if seed not in SEEDS:
        raise ValueError(f"seed must be from {SEEDS.start} to {SEEDS.stop - 1}, got {seed}")
