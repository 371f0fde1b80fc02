"""Run directories: a new one, one to go on with, and one process in each."""

import fcntl
import glob
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitgan.config import Config
from vitgan.errors import TrainingError
from vitgan.training.checkpoint import CONFIG, load_config

FIXED = (
    "image_size",
    "channels",
    "conditional",
    "generator_kind",
    "generator",
    "cnn_generator",
    "discriminator_kind",
    "discriminator",
    "cnn_discriminator",
    "stylegan2_discriminator",
    "batch_size",
    "seed",
)
LOCK = ".lock"


def new_run_directory(config: Config, root: Path = Path("runs")) -> Path:
    """A directory for a new run: the one asked for, if it is free, or the next number under runs/."""
    if config.out is not None:
        if config.out.exists() and any(config.out.iterdir()):
            raise TrainingError(f"{config.out} is not empty: choose another --out, or go on with --resume {config.out}")
        config.out.mkdir(parents=True, exist_ok=True)
        return config.out
    root.mkdir(exist_ok=True)
    numbers = [int(path.name[:5]) for path in root.iterdir() if path.name[:5].isdigit()]
    run = root / f"{max(numbers, default=-1) + 1:05d}-{run_name(config)}"
    run.mkdir()
    return run


def newest_run(config: Config, root: Path = Path("runs")) -> Path | None:
    """The run that `--resume auto` goes on with: the one at --out, or the newest of its preset and data under runs/."""
    if config.out is not None:
        return config.out if (config.out / CONFIG).exists() else None
    runs = sorted(root.glob("[0-9]" * 5 + f"-{glob.escape(run_name(config))}"), reverse=True)
    return next((run for run in runs if (run / CONFIG).exists() and load_config(run).data == config.data), None)


def run_name(config: Config) -> str:
    """What a run under runs/ is called, after its number."""
    return f"{config.preset}-{Path(config.data).stem}"


def check_resumable(*, before: Config, now: Config) -> None:
    """Raise TrainingError where a run is to go on with something changed that its saved state depends on."""
    changed = [name for name in FIXED if getattr(before, name) != getattr(now, name)]
    if changed:
        raise TrainingError(
            f"{', '.join(changed)} cannot change when a run is resumed: leave it out, or start a new run"
        )


@contextmanager
def only_process_in(run: Path) -> Iterator[None]:
    """Hold a run directory, until this process ends at the latest; TrainingError where another one holds it."""
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training in {run}: wait for it, or choose another --out") from None
        except OSError as error:  # a file system without locks
            warnings.warn(
                f"{run} cannot be locked ({error.strerror}): see to it that no other process trains there", stacklevel=3
            )
        yield
