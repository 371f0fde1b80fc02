"""Times of a whole training step, the trainer's and the early recipe's: pytest benchmarks/test_original_step.py

Both are timed after a check that they compute the same losses. See benchmarks/peers/original_step.py.
"""

from typing import Any

import pytest
import torch

from benchmarks.peers.original_step import OriginalStep, check, settings
from vitgan.adversarial import Adversarial


@pytest.mark.parametrize("who", ["trainer", "original"])
@pytest.mark.parametrize(("preset", "batch"), [("tiny", 16), ("cifar10", 4)])
def test_step(preset: str, batch: int, who: str, benchmark: Any) -> None:
    config = settings(preset, batch)
    training = Adversarial(config, torch.device("cpu"))
    original = OriginalStep(training)
    real = torch.rand(batch, config.channels, config.image_size, config.image_size) * 2 - 1
    check(training, original, real)
    step = training.step if who == "trainer" else original.step
    benchmark.group = f"{preset}, batch {batch}"
    benchmark.pedantic(step, args=(real,), rounds=5, warmup_rounds=1)
