"""Checkpoints: directories of safetensors and JSON that appear whole or not at all.

RUN/config.json                        the resolved configuration
RUN/checkpoints/000001200000/          named by the images seen
    generator_ema.safetensors          the averaged generator: all that sampling needs
    training.safetensors               both networks, both optimisers, random state
    state.json                         counts of steps and seconds
"""

import fcntl
import json
import shutil
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vitgan.config import Config, from_dict, to_dict
from vitgan.devices import pick_device
from vitgan.errors import CheckpointError, InputError, TrainingError, first_line
from vitgan.files import atomic_write, read_json, regular, sync_folder, synced_write
from vitgan.models import ImageGenerator
from vitgan.models.build import build_generator
from vitgan.training.state import GANState

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
GENERATOR = "generator_ema.safetensors"
TRAINING = "training.safetensors"
STATE = "state.json"
CLASSIFIER = "classifier.json"
LOCK = ".lock"
FORMAT = 1


def save_config(config: Config, run: Path) -> None:
    """Write RUN/config.json."""
    with atomic_write(run / CONFIG) as file:
        file.write(json.dumps(to_dict(config), indent=2).encode())


def load_config(run: Path) -> Config:
    """The configuration of a run. Raises CheckpointError where there is none or it does not fit this version."""
    path = run / CONFIG
    if not run.is_dir():
        raise CheckpointError(_no_folder(run, "a run directory"))
    try:
        config: Config = from_dict(Config, read_json(path))
    except FileNotFoundError:
        raise CheckpointError(f"{run} is not a run directory: it has no {CONFIG}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return config


def save_checkpoint(training: GANState, run: Path, *, trainer_state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of the present state, whole or not at all, then remove all but the newest `keep`.

    Of several processes, all must call it; the first one writes. Everything is written and flushed under a hidden
    name, which is then renamed: at no moment does a checkpoint with something missing bear a name that loading looks
    for.

    Raises:
        CheckpointError: it cannot be written; what had been saved before is still there.
    """
    folder = run / CHECKPOINTS
    final = folder / f"{training.images:012d}"
    tensors, values = training.state()
    if not training.ranks.is_main or final.exists():
        return final
    if not folder.exists():
        folder.mkdir(parents=True)
        sync_folder(run)
    _remove_leftovers(folder)
    state = {"format": FORMAT, "training": values, "trainer": trainer_state}
    draft = folder / f".draft-{final.name}"
    contents = {
        GENERATOR: save(_contiguous(training.averaged_generator.state_dict())),
        TRAINING: save(_contiguous(tensors)),
        STATE: json.dumps(state, indent=2).encode(),
    }
    try:
        draft.mkdir()
        for name, content in contents.items():
            with synced_write(draft / name) as file:
                file.write(content)
        sync_folder(draft)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)  # what is there of it takes room that may be what is missing
        raise CheckpointError(f"{final} cannot be written ({error.strerror or error}): is the disk full?") from error
    draft.rename(final)
    sync_folder(folder)
    for old in list_checkpoints(run)[:-keep]:
        _remove(old)
    return final


def load_checkpoint(training: GANState, path: Path) -> dict[str, Any]:
    """Put the state of a checkpoint into `training`; returns the trainer's own state."""
    try:
        state = read_json(path / STATE)
        if not isinstance(state, dict) or not isinstance(state.get("trainer", {}), dict):
            raise InputError(f"{STATE} is not what was written")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged and cannot be read ({error}): remove it, to go on from the one before"
        ) from error
    tensors, average = read_tensors(path / TRAINING), read_tensors(path / GENERATOR)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, this version reads {FORMAT}")
    try:
        training.averaged_generator.load_state_dict(average)
        training.load_state(tensors, state["training"])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not fit this model or device; resume with the run's own configuration: {first_misfit(error)}"
        ) from error
    trainer: dict[str, Any] = state.get("trainer", {})
    return trainer


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file. CheckpointError where it cannot be read, or a value is NaN or infinite."""
    try:
        regular(path)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
    else:
        bad = next((name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()), None)
        if bad is None:
            return tensors
        reason = f"{bad} has values that are NaN or infinite"
    raise CheckpointError(f"{path} is damaged: take another checkpoint, or remove this one ({reason})")


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. A folder under a name of another form is somebody's own."""
    return sorted(path for path in (run / CHECKPOINTS).glob("[0-9]" * 12) if path.is_dir())


def latest_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run directory, or the path itself where it is a checkpoint."""
    if not path.is_dir():
        raise CheckpointError(_no_folder(path, "a run directory or one of its checkpoints"))
    if (path / STATE).exists():
        return path
    checkpoints = list_checkpoints(path)
    if not checkpoints:
        what = "holds a classifier, and no generator" if (path / CLASSIFIER).exists() else "has no checkpoint"
        raise CheckpointError(f"{path} {what}: give a run directory or one of its checkpoints")
    return checkpoints[-1]


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint is in. CheckpointError where it has been taken out of it."""
    run = checkpoint.resolve().parent.parent
    if not (run / CONFIG).exists():
        raise CheckpointError(
            f"{checkpoint} lies outside of a run, whose {CONFIG} is needed: put it back into RUN/{CHECKPOINTS}/"
        )
    return run


def first_misfit(error: Exception) -> str:
    """Of an error of load_state_dict, which has a line for each tensor, the first one and how many follow."""
    heading, *lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    if not lines or not heading.startswith("Error(s) in loading state_dict"):
        return textwrap.shorten(heading, 300, placeholder=" ...")
    said = textwrap.shorten(lines[0], 300, placeholder=" ...")
    return said if len(lines) == 1 else f"{said} And {len(lines) - 1} more."


def _no_folder(path: Path, needed: str) -> str:
    return f"{path} {'is a file' if path.exists() else 'does not exist'}: give {needed}"


def images_seen(checkpoint: Path) -> int:
    """Real images that training had shown until a checkpoint, whatever its folder is called now."""
    try:
        steps = int(read_json(checkpoint / STATE)["training"]["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE} is damaged: take another checkpoint ({error})") from error
    return steps * load_config(run_of(checkpoint)).batch_size


def load_generator(path: str | Path, *, device: str | torch.device = "cpu") -> ImageGenerator:
    """The averaged generator of a run directory or checkpoint, in evaluation mode."""
    checkpoint = latest_checkpoint(Path(path).resolve())
    run = run_of(checkpoint)
    generator = build_generator(load_config(run))
    try:
        generator.load_state_dict(read_tensors(checkpoint / GENERATOR))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint / GENERATOR} is not of the run that {run / CONFIG} describes: {first_misfit(error)}"
        ) from error
    return generator.to(pick_device(str(device))).eval().requires_grad_(False)


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


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _remove(checkpoint: Path) -> None:
    # Renamed first: a removal that is cut short leaves no half checkpoint under a name that counts.
    trash = checkpoint.with_name(f".trash-{checkpoint.name}")
    checkpoint.rename(trash)
    shutil.rmtree(trash)


def _remove_leftovers(folder: Path) -> None:
    for path in [*folder.glob(".draft-*"), *folder.glob(".trash-*")]:
        shutil.rmtree(path)
