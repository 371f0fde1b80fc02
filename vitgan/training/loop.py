"""The training loop: data in, steps, checkpoints out, and every way in which a run can end."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from pathlib import Path
from types import FrameType

from rich.console import Console
from torch import Tensor
from torch.autograd.profiler import record_function

from vitgan.config import Config
from vitgan.data import BatchStream, DataError, ImageDataset, keep_on_device
from vitgan.devices import copy_to
from vitgan.errors import CheckpointError, TrainingError, ran_out_of_memory
from vitgan.files import from_uint8
from vitgan.process import STOP_SIGNALS
from vitgan.training.checkpoint import (
    CONFIG,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    only_process_in,
    save_checkpoint,
    save_config,
)
from vitgan.training.distributed import ProcessLostError
from vitgan.training.logging import Reporter
from vitgan.training.state import GANState
from vitgan.training.stopwatch import Stopwatch


class StopReason(IntEnum):
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
        changes: what of the configuration differs from that of the run so far, to tell.
        console: where to say how it goes.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        *,
        dataset: ImageDataset,
        training: GANState,
        changes: Sequence[str] = (),
        console: Console | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.ranks = training.ranks
        self.console = console or Console(quiet=not self.ranks.is_main)
        self.dataset = dataset
        self.training = training
        self.changes = changes
        self.device = training.device
        self.stopwatch = Stopwatch()
        self._stop_signal: str | None = None
        run.mkdir(parents=True, exist_ok=True)
        if list_checkpoints(run):
            self._resume(latest_checkpoint(run))
        self.report = Reporter(
            config, run, dataset=dataset, training=training, stopwatch=self.stopwatch, console=self.console
        )
        self._stop_reason = StopReason.TIME if self._out_of_time() else StopReason.NONE
        if self.ranks.is_main and not (run / CONFIG).exists():
            save_config(config, run)

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(self.training, checkpoint)
        try:
            elapsed, images = state["elapsed"], state["dataset_images"]
        except KeyError as error:
            raise CheckpointError(f"{checkpoint} lacks {error}: remove it, to go on from the one before") from error
        self.stopwatch = Stopwatch(elapsed)
        self._check_dataset(images)

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
        return f"{error}; {self._last_good()}" if isinstance(error, ProcessLostError | OSError) else None

    def _train(self) -> bool:
        training, config = self.training, self.config
        start = training.images
        if start and self._finished():
            settings = [change for change in self.changes if not change.startswith(("images:", "max_minutes:"))]
            unused = f" (not used: {', '.join(settings)})" if settings else ""
            text = f"{self.run} is finished, with {start:,} images{unused}. {self._how_to_go_on()}"
            self.console.print(text, soft_wrap=True, markup=False)
            return True
        with (
            only_process_in(self.run) if self.ranks.is_main else nullcontext(),
            BatchStream(
                keep_on_device(self.dataset, self.device),
                config.batch_size,
                seed=config.seed,
                start=training.steps,
                part=(self.ranks.rank, self.ranks.world_size),
                workers=config.workers,
            ) as stream,
            _stop_on_signal(self),
            self.report.open(),
        ):
            self._begin()
            while not self._finished():
                self._advance(stream)
            return self._conclude()

    def _begin(self) -> None:
        if self.ranks.is_main:
            save_config(self.config, self.run)  # only now: another process may have held the run
        if self.training.steps == 0:
            self.report.log_start(self.dataset)
            if self.ranks.world_size > 1:
                self._save()  # a process may be lost at any time, and then no other state can be had
        else:
            self.report.print(f"resuming {self.run} at {self.training.images:,} images on {self.device}")
            self.report.catch_up()
        if self.changes:
            self.report.print(f"changed from here on: {', '.join(self.changes)}")
        if self.config.compile:
            self.report.print("compiling: the first step of each kind may take minutes")

    def _advance(self, stream: BatchStream) -> None:
        """One step, and what falls due after it."""
        with self.stopwatch.running():
            with record_function("vitgan: data"):
                real, labels = self._next_batch(stream)
            scalars = self.training.step(real, labels)
        self.report.step(scalars)
        self._stop_reason = self._agree_on_stop()
        config, due = self.config, self.report.due
        if due(config.log_every) or self._finished():
            self._log()
        if self._finished():
            return
        if due(config.evaluate_every):
            self.report.evaluate()
        if due(config.sample_every):
            self.report.sample()
        if due(config.checkpoint_every):
            self._save()

    def _next_batch(self, stream: BatchStream) -> tuple[Tensor, Tensor | None]:
        try:
            images = next(stream)
        except DataError as error:
            if self.ranks.world_size > 1:  # a checkpoint needs them all, and the others do not know
                raise DataError(f"{error}\nUntil then: {self._last_good()}") from error
            raise DataError(
                f"{error}\nNothing is lost: {self._save()} was saved, go on with --resume {self.run}"
            ) from error
        labels = stream.labels if self.config.conditional else None
        if images.device.type == "cpu":
            images = copy_to(self.device, images)
        return from_uint8(images), None if labels is None else copy_to(self.device, labels)

    def _agree_on_stop(self) -> StopReason:
        # One clock: each process has its own, and they must not leave at different steps.
        out_of_time = self.ranks.is_main and self._out_of_time()
        own = StopReason.SIGNAL if self._stop_signal else StopReason.TIME if out_of_time else StopReason.NONE
        return StopReason(self.ranks.max(own))

    def _finished(self) -> bool:
        return self.training.images >= self.config.images or self._stop_reason is not StopReason.NONE

    def _out_of_time(self) -> bool:
        return self.config.max_minutes is not None and self.stopwatch.seconds > 60 * self.config.max_minutes

    def _how_to_go_on(self) -> str:
        limit = "a greater --max-minutes" if self._out_of_time() else "more --images"
        return f"Go on with: vitgan train --resume {self.run} and {limit}"

    def _log(self) -> None:
        """Log the means since the last time, and stop where one is not a number."""
        if bad := self.report.log():
            self._fail(bad)

    def _save(self) -> Path:
        self._log()
        # The last step may have broken the weights while its own losses, computed before, were still finite.
        if not self.training.is_finite():
            self._fail(["weights"])
        state = {"elapsed": self.stopwatch.seconds, "dataset_images": len(self.dataset)}
        try:
            return save_checkpoint(self.training, self.run, trainer_state=state, keep=self.config.keep_checkpoints)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {self._last_good()}") from error

    def _conclude(self) -> bool:
        path = self._save()
        if self._stop_reason is StopReason.SIGNAL and self.training.images < self.config.images:
            self.report.print(
                f"{self._stop_signal or 'signal'}: stopped at {self.training.images:,} images, saved {path}\n"
                f"go on with: vitgan train --resume {self.run}"
            )
            return False
        self.report.evaluate()
        self.report.sample()
        if self.training.images < self.config.images:
            self.report.print(
                f"the time limit of {self.config.max_minutes:g} minutes came before {self.config.images:,} images. "
                f"{self._how_to_go_on()}"
            )
        self.report.print(
            f"done: {self.training.images:,} images in {self.stopwatch.seconds / 60:.1f} minutes\n"
            f"samples: {self.report.sample_path()}\nmodel: {path}"
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

    def stop(self, reason: str) -> None:
        """End the run after the present step, with a checkpoint."""
        self._stop_signal = reason


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Let the first signal that asks to stop end the run in order; a Ctrl-C after it ends it at once.

    One that is ignored, as SIGHUP under nohup, stays so. In another thread than the main one, which alone may set
    handlers, signals do what they did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        trainer.stop(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
