"""The training loop: data in, checkpoints, pictures and numbers out."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor
from torch.autograd.profiler import record_function

from vitgan.adversarial import Adversarial
from vitgan.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, save_config
from vitgan.config import Config
from vitgan.data import BatchStream, DataError, ImageDataset, copy_to, keep_on_device
from vitgan.distributed import LostContactError
from vitgan.errors import CheckpointError, TrainingError, ran_out_of_memory
from vitgan.evaluate import Evaluator
from vitgan.images import from_uint8, grid, save_image
from vitgan.loggers import Loggers, read_metrics
from vitgan.metrics.features import load_network
from vitgan.metrics.scores import Scorer
from vitgan.models import ImageGenerator
from vitgan.progress import TrainingProgress
from vitgan.runs import only_process_in
from vitgan.tracing import StepTracer

SAMPLES = "samples"
GRID_SIDE = 8


class Ending(IntEnum):
    """Why a run ends before its last image; of the reasons of several processes, the greatest counts."""

    NONE = 0
    TIME = 1
    SIGNAL = 2


class Trainer:
    """Trains one run, from its start or from its newest checkpoint.

    Args:
        config: the run.
        run: its directory; made if it does not exist.
        dataset: the images.
        training: the networks and their optimisers.
        console: where to say how it goes.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        *,
        dataset: ImageDataset,
        training: Adversarial,
        console: Console | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.ranks = training.ranks
        self.console = console or Console(quiet=not self.ranks.is_first)
        self.dataset = dataset
        self.training = training
        self.device = training.device
        self.evaluator = Evaluator(dataset, samples=config.evaluate_samples, seed=config.seed)
        self.scorer = self._make_scorer() if config.features != "none" and self.ranks.is_first else None
        self.tracer = StepTracer(run) if config.profile and self.ranks.is_first else None
        self.elapsed = 0.0
        self.totals: dict[str, list[Tensor]] = {}
        self._stop_signal: str | None = None
        (run / SAMPLES).mkdir(parents=True, exist_ok=True)
        if list_checkpoints(run):
            state = load_checkpoint(self.training, latest_checkpoint(run))
            self.elapsed = state["elapsed"]
            self._check_dataset(state["dataset_images"])
        self._logged_at = self.elapsed
        self._ending = Ending.TIME if self._out_of_time() else Ending.NONE
        if self.ranks.is_first:
            save_config(config, run)

    def _make_scorer(self) -> Scorer:
        config = self.config
        assert config.features != "none"
        network = load_network(config.features, weights=config.inception_weights, device=self.device)
        return Scorer(self.dataset, network, samples=config.evaluate_samples, seed=config.seed)

    def _check_dataset(self, images: int) -> None:
        if len(self.dataset) != images:
            raise TrainingError(
                f"the data now has {len(self.dataset):,} images, but {self.run} was trained on {images:,}: "
                f"bring the data back (--data names its place), or start a new run"
            )

    def train(self) -> bool:
        """Train to the end of the run; False where a signal ended it early, with all saved to resume.

        Raises:
            TrainingError: a loss became NaN or infinite, memory ran out, the disk is full, or another process was
                lost; the message names the last good checkpoint.
            DataError: an image can no longer be read; the state before it was needed has been saved.
        """
        try:
            return self._train()
        except (RuntimeError, MemoryError, OSError) as error:
            message = self._explain(error)
            if message is None:
                raise
            raise TrainingError(message) from error

    def _explain(self, error: BaseException) -> str | None:
        if ran_out_of_memory(error):
            return (
                f"the memory of {self.device} ran out ({str(error).partition(chr(10))[0]}); {self._last_good()}. "
                f"A greater --accumulate needs less at a time and trains the same; or lower --batch-size"
            )
        return f"{error}; {self._last_good()}" if isinstance(error, LostContactError | OSError) else None

    def _train(self) -> bool:
        training, config = self.training, self.config
        start = training.images
        if start and self._finished():
            self.console.print(f"{self.run} is finished, with {start:,} images. {self._how_to_go_on()}", soft_wrap=True)
            return True
        with (
            only_process_in(self.run) if self.ranks.is_first else nullcontext(),
            BatchStream(
                keep_on_device(self.dataset, self.device),
                config.batch_size,
                seed=config.seed,
                start=training.steps,
                part=(self.ranks.rank, self.ranks.count),
                workers=config.workers,
            ) as stream,
            _stop_on_signal(self),
            TrainingProgress(config.images, start, self.console) as self.progress,
        ):
            self.loggers = Loggers(config, self.run, images=start) if self.ranks.is_first else None
            try:
                self._introduce()
                while not self._finished():
                    self._advance(stream)
                return self._conclude()
            finally:
                if self.loggers:
                    self.loggers.close()

    def _advance(self, stream: BatchStream) -> None:
        """One step, and what falls due after it."""
        began = time.perf_counter()
        with record_function("vitgan: data"):
            real, labels = self._next_batch(stream)
        for name, value in self.training.step(real, labels).items():
            self.totals.setdefault(name, []).append(value)
        self.elapsed += time.perf_counter() - began
        self.progress.advance(self.training.images)
        self._ending = self._agree_on_ending()
        if self.tracer and (report := self.tracer.step()):
            self.progress.say(report)
        config = self.config
        if self._due(config.log_every) or self._finished():
            self._log()
        if self._due(config.evaluate_every) and not self._finished():
            self._evaluate()
        if self._due(config.sample_every) and not self._finished():
            self._sample()
        if self._due(config.checkpoint_every) and not self._finished():
            self._save()

    def _next_batch(self, stream: BatchStream) -> tuple[Tensor, Tensor | None]:
        try:
            images = next(stream)
        except DataError as error:
            if self.ranks.count > 1:  # a checkpoint needs them all, and the others do not know
                raise DataError(f"{error}\nUntil then: {self._last_good()}") from error
            raise DataError(
                f"{error}\nNothing is lost: {self._save()} was saved, go on with --resume {self.run}"
            ) from error
        labels = stream.labels if self.config.conditional else None
        if images.device.type == "cpu":
            images = copy_to(self.device, images)
        return from_uint8(images), None if labels is None else copy_to(self.device, labels)

    def _due(self, every: int) -> bool:
        """Whether the last step went past a multiple of `every` images."""
        return self.training.images // every > (self.training.images - self.config.batch_size) // every

    def _agree_on_ending(self) -> Ending:
        # One clock: each process has its own, and they must not leave at different steps.
        out_of_time = self.ranks.is_first and self._out_of_time()
        own = Ending.SIGNAL if self._stop_signal else Ending.TIME if out_of_time else Ending.NONE
        return Ending(self.ranks.greatest(own))

    def _finished(self) -> bool:
        return self.training.images >= self.config.images or self._ending is not Ending.NONE

    def _wait_for_device(self) -> None:
        """Let the device finish its steps, as a part of their time: it may be behind by many."""
        began = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.elapsed += time.perf_counter() - began

    def _out_of_time(self) -> bool:
        return self.config.max_minutes is not None and self.elapsed > 60 * self.config.max_minutes

    def _how_to_go_on(self) -> str:
        limit = "a greater --max-minutes" if self._out_of_time() else "more --images"
        return f"Go on with: vitgan train --resume {self.run} and {limit}"

    def _introduce(self) -> None:
        if self.training.steps == 0:
            among = f" x {self.ranks.count}" if self.ranks.count > 1 else ""
            self.progress.say(f"{self.dataset} on {self.device}{among} -> {self.run}")
            if self.ranks.is_first:
                floor = self.evaluator.floor()
                self.progress.say(f"sliced Wasserstein distance between two parts of the data: {floor:.3f}")
                save_image(grid(self.evaluator.grid, columns=GRID_SIDE), self.run / "real.png")
            self._evaluate()
            self._sample()
            if self.ranks.count > 1:
                self._save()  # a process may be lost at any time, and then no other state can be had
        else:
            self.progress.say(f"resuming {self.run} at {self.training.images:,} images on {self.device}")
            self._make_up()

    def _make_up(self) -> None:
        """Evaluate and sample where that was due when a signal came: the checkpoint went before."""
        if not self.loggers:
            return
        last = [line for line in read_metrics(self.run) if line["images"] == self.training.images]
        if self._due(self.config.evaluate_every) and not any("sliced_wasserstein" in line for line in last):
            self._evaluate()
        if self._due(self.config.sample_every) and not self._sheet().exists():
            self._sample()

    def _log(self) -> None:
        """Log the means since the last time, and stop where one is not a number."""
        if not self.totals:
            return
        self._wait_for_device()
        scalars = self.ranks.mean({name: float(torch.stack(values).mean()) for name, values in self.totals.items()})
        steps = max(map(len, self.totals.values()))
        self.totals.clear()
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            self._fail(bad)
        images = self.training.images
        now = self.elapsed
        rate = steps * self.config.batch_size / max(now - self._logged_at, 1e-9)
        self._logged_at = now
        left = (self.config.images - images) / rate
        if self.config.max_minutes is not None:
            left = min(left, 60 * self.config.max_minutes - now)
        if self.loggers:
            self.loggers.scalars(scalars | {"images_per_second": rate, "elapsed": now}, images=images)
        self.progress.update(images, rate=rate, left=max(left, 0.0), scalars=scalars)

    def _evaluate(self) -> None:
        if not self.loggers:
            return
        self._wait_for_device()
        scores = self.evaluator(self.average)
        if self.scorer:
            scores |= self.scorer(self.average)
        self.loggers.scalars(scores, images=self.training.images)
        text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.progress.say(f"{self.training.images:,} images: {text}")

    def _sample(self) -> None:
        if not self.loggers:
            return
        self._wait_for_device()
        labels = None
        if self.average.classes:  # each row is a class
            labels = torch.arange(GRID_SIDE**2) // GRID_SIDE % self.average.classes
        sheet = grid(self.average.sample(GRID_SIDE**2, seed=self.config.seed, labels=labels), columns=GRID_SIDE)
        save_image(sheet, self._sheet())
        self.loggers.picture(sheet, images=self.training.images)

    def _sheet(self) -> Path:
        return self.run / SAMPLES / f"{self.training.images:012d}.png"

    def _save(self) -> Path:
        self._log()
        # The last step may have broken the weights while its own losses, computed before, were still finite.
        if not self.training.is_finite():
            self._fail(["weights"])
        state = {"elapsed": self.elapsed, "dataset_images": len(self.dataset)}
        try:
            return save_checkpoint(self.training, self.run, trainer_state=state, keep=self.config.keep_checkpoints)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._last_good()}") from error

    def _conclude(self) -> bool:
        path = self._save()
        if self._ending is Ending.SIGNAL and self.training.images < self.config.images:
            self.progress.say(
                f"{self._stop_signal or 'signal'}: stopped at {self.training.images:,} images, saved {path}\n"
                f"go on with: vitgan train --resume {self.run}"
            )
            return False
        self._evaluate()
        self._sample()
        if self.training.images < self.config.images:
            self.progress.say(
                f"the time limit of {self.config.max_minutes:g} minutes came before {self.config.images:,} images. "
                f"{self._how_to_go_on()}"
            )
        self.progress.say(
            f"done: {self.training.images:,} images in {self.elapsed / 60:.1f} minutes\n"
            f"samples: {self._sheet()}\nmodel: {path}"
        )
        return True

    def _last_good(self) -> str:
        checkpoints = list_checkpoints(self.run)
        if not checkpoints:
            return "no checkpoint had been saved yet, so start again"
        return f"the last good checkpoint is {checkpoints[-1]}, where --resume {self.run} goes on"

    def _fail(self, names: list[str]) -> None:
        raise TrainingError(
            f"{', '.join(names)} became NaN or infinite before {self.training.images:,} images; {self._last_good()}. "
            f"Lower learning rates may help (--optimiser.g-lr, --optimiser.d-lr)."
        )

    @property
    def average(self) -> ImageGenerator:
        """The averaged generator."""
        return self.training.averaged_generator

    def stop(self, reason: str) -> None:
        """End the run after the present step, with a checkpoint."""
        self._stop_signal = reason


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or CUDA where there is one. Raises TrainingError where it cannot be had."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(f"device {name!r} cannot be used here ({error}): choose another --device") from error
    return device


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run in order; a second Ctrl-C ends it at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        trainer.stop(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
