"""A training step, and its two halves: the trainer's against the step of early ViTGAN implementations.

Both have the same weights and images, and compute the same losses: that is checked first, in float32. Images per second
are the batch divided by the time of a whole step.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.machine import pick_device
from benchmarks.measure import Measured, take_turns, untimed, with_times
from benchmarks.peers.original_step import OriginalStep, check, settings
from benchmarks.session import CLOCK, SECONDS, Session, show
from vitgan.adversarial import Adversarial

pytestmark = pytest.mark.benchmark(timer=CLOCK)

DEVICE = pick_device()
# (preset, batch)
SIZES = {
    "small": {"cpu": [("tiny", 16), ("cifar10", 4)], "cuda": [("tiny", 64), ("cifar10", 128)]},
    "paper": {"cpu": [("cifar10", 16)], "cuda": [("cifar10", 32), ("cifar10", 128), ("celeba64", 64)]},
}
PARTS = {"D step": "discriminator_step", "G step": "generator_step", "step": "step"}
TRAINER, COMPILED, ORIGINAL = "vitgan", "vitgan, --compile", "original recipe"


def measured(session: Session, preset: str, batch: int, part: str) -> list[Measured]:
    """Both, and on a GPU the trainer's compiled step too."""
    config = settings(preset, batch, DEVICE.type)
    training = Adversarial(config, DEVICE)
    original = OriginalStep(training)
    size = (batch, config.channels, config.image_size, config.image_size)
    real = torch.rand(size, device=DEVICE) * 2 - 1
    check(training, original, real)
    calls = {TRAINER: _part(training, part, real), ORIGINAL: _part(original, part, real)}
    base = untimed("training", f"{part}, {preset}, batch {batch}", {"batch": batch}, torch.float32, "step")
    rows = [base(TRAINER, ours=True), base(ORIGINAL)]
    if DEVICE.type == "cuda":
        compiled = Adversarial(settings(preset, batch, DEVICE.type, compiled=True), DEVICE)
        calls[COMPILED] = _part(compiled, part, real)
        rows.append(base(COMPILED, ours=True))
    for call in calls.values():
        call()
    first, second = (take_turns(calls, DEVICE, SECONDS[session.size]) for _ in range(2))
    return [with_times(row, calls[row.who], first[row.who], second[row.who], DEVICE) for row in rows]


def _part(of: Any, part: str, real: Tensor) -> Callable[[], object]:
    step = getattr(of, PARTS[part])
    return lambda: step(real)


@pytest.mark.parametrize("who", [TRAINER, ORIGINAL] + [COMPILED] * (DEVICE.type == "cuda"))
@pytest.mark.parametrize("part", PARTS)
def test_training(sizes: tuple[str, int], part: str, who: str, session: Session, benchmark: Any) -> None:
    rows = session.group(("training", part, *sizes), lambda: measured(session, *sizes, part))
    show(rows[who], benchmark)
