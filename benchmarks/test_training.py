"""A training step, its two halves, and sampling: the trainer's against the step of early ViTGAN implementations.

All have the same weights and images. First they show that they compute the same: the generator's images, both losses
and their gradients, held against the early recipe in float64, with that recipe's own error in the dtype of training as
the measure. Images per second are the batch divided by the time, of a whole step or of sampling.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.machine import pick_device
from benchmarks.measure import Measured, judged, largest_error, reason, untimed, with_times
from benchmarks.peers.original_step import OriginalStep, draws, results, settings, settled
from benchmarks.records import Row
from benchmarks.session import CLOCK, SECONDS, Session, show
from benchmarks.timing import Call, take_turns
from vitgan.training.state import Adversarial
from vitgan_kernels import use_backend

pytestmark = pytest.mark.benchmark(timer=CLOCK)

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
# (preset, batch)
SIZES = {
    "small": {"cpu": [("tiny", 16), ("cifar10", 4)], "cuda": [("tiny", 64), ("cifar10", 128)]},
    "paper": {"cpu": [("tiny", 16), ("cifar10", 16)], "cuda": [("cifar10", 32), ("cifar10", 128), ("celeba64", 64)]},
}
PARTS = ("D step", "G step", "step", "sampling")


@dataclass(frozen=True)
class Contender:
    """One way to train. operators: the backend that it asks `vitgan_kernels` for."""

    who: str
    ours: bool = False
    operators: Any = "auto"
    compiled: bool = False
    cuda_graphs: bool = False
    original: bool = False

    def why_not(self, preset: str, part: str, size: str) -> str | None:
        """Why it does not take part, or None."""
        if not self.compiled:
            return None
        if ON_CPU and self.cuda_graphs:
            return "CUDA graphs need CUDA"
        if ON_CPU and not self.ours:
            return "on a CPU most operators are the plain ones anyway"
        if ON_CPU and size == "small":
            return "compiling a step on the CPU takes minutes: --size paper does"
        compiled_for = "tiny" if ON_CPU else "cifar10"
        if preset != compiled_for:
            return f"it is compiled for {compiled_for} alone"
        return "what is compiled is the steps" if part == "sampling" else None


CONTENDERS = (
    Contender("vitgan", ours=True),
    Contender("vitgan, --compile", ours=True, compiled=True),
    Contender("vitgan, --compile --cuda-graphs", ours=True, compiled=True, cuda_graphs=True),
    # on a CPU no peer: there all operators but one are the plain ones anyway
    Contender("vitgan, plain operators", ours=ON_CPU, operators="reference"),
    Contender("vitgan, plain operators, --compile", operators="reference", compiled=True),
    Contender("original recipe", original=True),
)


def named(part: str, preset: str, batch: int) -> str:
    return f"{part}, {preset}, batch {batch}"


def measured(session: Session, preset: str, batch: int) -> Iterator[Measured]:
    """Every contender in every part, those of a part in turns."""
    torch._dynamo.reset()
    training = settled(Adversarial(settings(preset, batch, DEVICE.type), DEVICE))
    config = training.config
    real = torch.rand(batch, config.channels, config.image_size, config.image_size, device=DEVICE) * 2 - 1
    numbers = draws(training)
    exact = results(OriginalStep(training).double(), real.double(), {name: x.double() for name, x in numbers.items()})
    allowed = 2 * largest_error(results(OriginalStep(training), real, numbers), exact)
    allowed += torch.finfo(torch.float32).eps
    made: dict[str, Any] = {}
    for contender in CONTENDERS:
        if contender.why_not(preset, "step", session.size) is None:
            made[contender.who] = _made(contender, training)
    errors: dict[str, float | str] = {}
    for contender in CONTENDERS:
        if contender.who in made:
            with use_backend(contender.operators):
                try:
                    errors[contender.who] = largest_error(results(made[contender.who], real, numbers), exact)
                except Exception as failure:
                    errors[contender.who] = reason(failure)
    for part in PARTS:
        yield from _part(session, part, preset, real, made, lambda row: _judged(row, errors[row.who], allowed))


def _made(contender: Contender, training: Adversarial) -> Adversarial | OriginalStep:
    if contender.original:
        return OriginalStep(training)
    config = settings(training.config.preset, training.config.batch_size, DEVICE.type, contender.compiled)
    twin = Adversarial(replace(config, cuda_graphs=contender.cuda_graphs), DEVICE)
    twin.load_state(*training.state())
    return twin


def _judged(row: Row, error: float | str, allowed: float) -> Row:
    return replace(row, why=error) if isinstance(error, str) else judged(row, error, allowed)


def _part(
    session: Session, part: str, preset: str, real: Tensor, made: dict[str, Any], judge: Callable[[Row], Row]
) -> Iterator[Measured]:
    measures = "forward" if part == "sampling" else "step"
    dtype = torch.float32 if ON_CPU or part == "sampling" else torch.bfloat16
    shape = {"batch": len(real)}
    base = untimed("training", named(part, preset, len(real)), shape, dtype, measures, matched=False)
    rows, calls = [], {}
    for contender in CONTENDERS:
        row = base(contender.who, ours=contender.ours)
        why = contender.why_not(preset, part, session.size)
        row = replace(row, why=why) if why else judge(row)
        rows.append(Measured(row, [], tried=why is None))
        if row.matched:
            calls[row.who] = _call(made[row.who], part, real, contender.operators)
    for call in calls.values():
        call()
    first, second = (take_turns(calls, DEVICE, SECONDS[session.size]) for _ in range(2))
    for one in rows:
        who = one.row.who
        yield with_times(one.row, calls[who], first[who], second[who], DEVICE) if one.row.matched else one


def _call(of: Any, part: str, real: Tensor, operators: Any) -> Call:
    z = torch.randn(len(real), of.generator.latent_dim, device=DEVICE)
    parts: dict[str, Call] = {
        "D step": lambda: of.discriminator_step(real),
        "G step": lambda: of.generator_step(real),
        "step": lambda: of.step(real),
        "sampling": torch.no_grad()(lambda: of.generator(z)),
    }

    def run() -> object:
        with use_backend(operators):
            return parts[part]()

    return run


@pytest.mark.parametrize("who", [contender.who for contender in CONTENDERS])
@pytest.mark.parametrize("part", PARTS)
def test_training(sizes: tuple[str, int], part: str, who: str, session: Session, benchmark: Any) -> None:
    rows = session.group(("training", *sizes), lambda: list(measured(session, *sizes)))
    show(rows[named(part, *sizes), who], benchmark)
