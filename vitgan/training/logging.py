"""What a run logs: losses, scores and samples, to the console and the run's directory."""

import json
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vitgan.config import Config, to_dict
from vitgan.data import ImageDataset
from vitgan.errors import TrainingError, first_line
from vitgan.files import atomic_write, grid, save_image, to_uint8
from vitgan.metrics.features import load_network
from vitgan.metrics.scores import Evaluator, Scorer
from vitgan.progress import TrainingProgress
from vitgan.training.state import GANState
from vitgan.training.stopwatch import Stopwatch
from vitgan.training.tracing import StepTracer

METRICS = "metrics.jsonl"
WANDB_ID = "wandb-id"


class Loggers:
    """Everything logged goes to RUN/metrics.jsonl and, as the configuration asks, to TensorBoard and Weights & Biases.

    Args:
        config: of the run.
        run: the run directory.
        images: images seen so far; what an interrupted run had logged beyond them is dropped.
    """

    def __init__(self, config: Config, run: Path, *, images: int) -> None:
        self.wandb: Any = _start_wandb(config, run) if config.wandb else None
        self.tensorboard: Any = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=images + 1 if images else 0)
        _drop_lines_after(run / METRICS, images)
        self.file = (run / METRICS).open("a")

    def scalars(self, values: dict[str, float], *, images: int) -> None:
        """Log numbers under the count of images seen."""
        self.file.write(json.dumps({"images": images, **values}) + "\n")
        self.file.flush()
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, images)
        if self.wandb:
            self.wandb.log({"images": images, **values})

    def log_image(self, image: Tensor, *, images: int) -> None:
        """Log a picture (C, H, W) in [-1, 1]; an alpha channel is left out, except on disk."""
        pixels = to_uint8(image)[: 1 if len(image) < 3 else 3]
        if self.tensorboard:
            self.tensorboard.add_image("samples", pixels, images)
        if self.wandb:
            import wandb

            self.wandb.log({"images": images, "samples": wandb.Image(pixels.permute(1, 2, 0).numpy())})

    def close(self) -> None:
        """Flush and close everything."""
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def import_wandb() -> Any:
    """The wandb package; TrainingError says what to do where it is missing, or has nobody to log for."""
    try:
        import wandb
    except ImportError:
        raise TrainingError("logging to Weights & Biases needs its package: pip install 'vitgan[wandb]'") from None
    try:
        wandb.login(verify=False)
    except wandb.errors.Error as error:
        raise TrainingError(
            f"logging to Weights & Biases cannot start ({first_line(error)}): run wandb login, set WANDB_API_KEY, or "
            f"WANDB_MODE=offline"
        ) from error
    return wandb


def _start_wandb(config: Config, run: Path) -> Any:
    wandb = import_wandb()
    # Kept with the run, so that a resumed run goes on in the same place and two runs of one name do not mix.
    id_file = run / WANDB_ID
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(8))
    identity: dict[str, Any] = {"id": id_file.read_text(), "name": run.name, "resume": "allow"}
    logger = wandb.init(project=config.wandb, dir=run, config=to_dict(config), **identity)
    logger.define_metric("*", step_metric="images")
    return logger


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics file; a last line that was cut short by a crash is left out."""
    lines = []
    for line in (run / METRICS).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _drop_lines_after(path: Path, images: int) -> None:
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if line["images"] <= images] if images else []
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


SAMPLES = "samples"
GRID_SIDE = 8


class Reporter:
    """Tells of a run, to the person who watches and in the run's directory. Only the first process says and writes.

    Args:
        config: the run.
        run: its directory; made if it does not exist.
        dataset: the images that samples are compared with.
        training: what is told about.
        stopwatch: how long it has trained.
        console: where to say it.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        *,
        dataset: ImageDataset,
        training: GANState,
        stopwatch: Stopwatch,
        console: Console,
    ) -> None:
        self.config = config
        self.run = run
        self.training = training
        self.stopwatch = stopwatch
        self.totals: dict[str, list[Tensor]] = {}
        self.loggers: Loggers | None = None
        self.progress = TrainingProgress(config.images, training.images, console)
        self.evaluator: Evaluator  # which decodes the images that it compares with
        self.scorer: Scorer | None = None
        self.tracer: StepTracer | None = None
        self._logged_at = stopwatch.seconds
        (run / SAMPLES).mkdir(parents=True, exist_ok=True)
        if not self._is_main:
            return
        self.evaluator = Evaluator(dataset, samples=config.evaluate_samples, seed=config.seed)
        if config.features != "none":
            network = load_network(config.features, weights=config.inception_weights, device=training.device)
            self.scorer = Scorer(dataset, network, samples=config.evaluate_samples, seed=config.seed)
        if config.profile:
            self.tracer = StepTracer(run, training.device)

    @contextmanager
    def open(self) -> Iterator[None]:
        """For as long as the run goes on."""
        with self.progress:
            self.loggers = Loggers(self.config, self.run, images=self.training.images) if self._is_main else None
            try:
                yield
            finally:
                if self.tracer and (words := self.tracer.end()):
                    self.print(words)
                if self.loggers:
                    self.loggers.close()

    def print(self, text: str) -> None:
        """Print a line."""
        self.progress.print(text)

    def due(self, every: int) -> bool:
        """Whether the last step went past a multiple of `every` images."""
        images = self.training.images
        return images // every > (images - self.config.batch_size) // every

    def log_start(self, dataset: ImageDataset) -> None:
        """Before the first step: what is trained on, and how far the untrained generator is from it."""
        ranks = self.training.ranks
        among = f" x {ranks.world_size}" if ranks.world_size > 1 else ""
        self.print(f"{dataset} on {self.training.device}{among} -> {self.run}")
        if self._is_main:
            self._print_real_vs_real(len(dataset))
            save_image(grid(self.evaluator.grid, columns=GRID_SIDE), self.run / "real.png")
        self.evaluate()
        self.sample()

    def catch_up(self) -> None:
        """Evaluate and sample where that was due when a signal came: the checkpoint went before."""
        if not self.loggers:
            return
        last = [line for line in read_metrics(self.run) if line["images"] == self.training.images]
        if self.due(self.config.evaluate_every) and not any("sliced_wasserstein" in line for line in last):
            self.evaluate()
        if self.due(self.config.sample_every) and not self.sample_path().exists():
            self.sample()

    def step(self, scalars: dict[str, Tensor]) -> None:
        """After every step: what it computed, still on the device."""
        for name, value in scalars.items():
            self.totals.setdefault(name, []).append(value)
        self.progress.advance(self.training.images)
        if self.tracer and (words := self.tracer.step()):
            self.print(words)

    def log(self) -> list[str]:
        """Log the means since the last time. Where some are not finite, log nothing and return their names.

        Every process must call it.
        """
        if not self.totals:
            return []
        self.stopwatch.wait(self.training.device)
        own = {name: float(torch.stack(values).mean()) for name, values in self.totals.items()}
        scalars = self.training.ranks.mean(own)
        steps = max(map(len, self.totals.values()))
        self.totals.clear()
        if bad := [name for name, value in scalars.items() if not math.isfinite(value)]:
            return bad
        images, now = self.training.images, self.stopwatch.seconds
        rate = steps * self.config.batch_size / max(now - self._logged_at, 1e-9)
        self._logged_at = now
        left = (self.config.images - images) / rate
        if self.config.max_minutes is not None:
            left = min(left, 60 * self.config.max_minutes - now)
        if self.loggers:
            self.loggers.scalars(scalars | {"images_per_second": rate, "elapsed": now}, images=images)
        self.progress.update(images, rate=rate, left=max(left, 0.0), scalars=scalars)
        return []

    def evaluate(self) -> None:
        """Score the averaged generator."""
        if not self.loggers:
            return
        self.stopwatch.wait(self.training.device)
        generator, images = self.training.averaged_generator, self.training.images
        scores = self.evaluator(generator)
        if self.scorer:
            scores |= self.scorer(generator)
        self.loggers.scalars(scores, images=images)
        text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.print(f"{images:,} images: {text}")

    def sample(self) -> None:
        """Save a grid of the averaged generator, always of the same latents; with classes, one for each row."""
        if not self.loggers:
            return
        self.stopwatch.wait(self.training.device)
        generator, count = self.training.averaged_generator, GRID_SIDE**2
        labels = torch.arange(count) // GRID_SIDE % generator.classes if generator.classes else None
        sheet = grid(generator.sample(count, seed=self.config.seed, labels=labels), columns=GRID_SIDE)
        save_image(sheet, self.sample_path())
        self.loggers.log_image(sheet, images=self.training.images)

    def sample_path(self) -> Path:
        """Where the grid of this moment lies."""
        return self.run / SAMPLES / f"{self.training.images:012d}.png"

    def _print_real_vs_real(self, images: int) -> None:
        floor = self.evaluator.real_vs_real()
        if floor is None:
            need = f"{images:,} images, {2 * self.evaluator.samples:,} are needed"
            self.print(f"no distance between two parts of the data to compare with: {need}")
        else:
            self.print(f"sliced Wasserstein distance between two parts of the data: {floor:.3f}")
        if self.scorer and (caution := self.scorer.warning()):
            self.print(f"caution: {caution}")

    @property
    def _is_main(self) -> bool:
        return self.training.ranks.is_main
