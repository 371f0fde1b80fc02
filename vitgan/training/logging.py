"""Where a run's numbers and pictures go: a JSON-lines file, TensorBoard, Weights & Biases."""

import json
import secrets
from pathlib import Path
from typing import Any

from torch import Tensor

from vitgan.config import Config, to_dict
from vitgan.errors import TrainingError
from vitgan.files import atomic_write
from vitgan.images import to_uint8

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

    def picture(self, image: Tensor, *, images: int) -> None:
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
    """The wandb package; TrainingError says how to get it where it is missing."""
    try:
        import wandb
    except ImportError:
        raise TrainingError("logging to Weights & Biases needs its package: pip install 'vitgan[wandb]'") from None
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
