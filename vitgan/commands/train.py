"""vitgan train: from flags and files to a run."""

import argparse
import difflib
import glob
import json
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from vitgan.config import Config, differences, from_dict, is_name
from vitgan.data import ImageDataset, open_dataset
from vitgan.devices import pick_device, use_threads
from vitgan.errors import InputError, TrainingError
from vitgan.presets import PRESETS
from vitgan.training.checkpoint import CONFIG, load_config
from vitgan.training.distributed import torchrun_ranks
from vitgan.training.logging import import_wandb
from vitgan.training.loop import Trainer
from vitgan.training.state import GANState


def main(arguments: list[str]) -> int:
    """vitgan train: values come from the preset, a file and the flags, or from the run that is resumed."""
    settings = read_settings(arguments)
    config = settings.config
    use_threads(config.threads)
    with torchrun_ranks(config.device) as ranks:
        with ranks.main_process_first():  # the others find what it decoded in the cache
            dataset = open_dataset(config.data, image_size=config.image_size, channels=config.channels)
        if len(dataset) < 2:
            raise InputError(f"{config.data} has one image: training needs at least two")
        settings = with_data(settings, dataset)
        config = settings.config
        if config.wandb:
            import_wandb()
        training = GANState(config, pick_device(config.device), ranks)
        # Made last, so that nothing is left behind where a run cannot even start.
        run = settings.resume or ranks.broadcast(new_run_directory(config) if ranks.is_main else None)
        trainer = Trainer(config, run, dataset=dataset, training=training, changes=settings.changes)
        finished = trainer.train()
    return 0 if finished else 130


AUTO = "auto"
RENAMED = {"seed-cifar10": "vitgan-pytorch-cifar10"}
"""Presets under the names that configurations of earlier releases may have."""
DESCRIPTION = f"""\
Train a ViTGAN. --preset NAME chooses where all values start from: {", ".join(PRESETS)} (default tiny: coloured
shapes, five minutes on a laptop). --config FILE, a .toml or .json with the same names as the flags, changes some of
them; flags come last. --resume RUN goes on with an interrupted run, with its own configuration; --resume auto goes on
with the run at --out, or the newest of the same preset and data under runs/, and starts one where there is none. For
several GPUs or machines: torchrun --nproc-per-node N -m vitgan train ... (--batch-size is of all processes together).
""".replace("\n", " ")


@dataclass(frozen=True)
class Settings:
    """What a command line asks for: the configuration, and the run to go on with, if any."""

    config: Config
    resume: Path | None
    changes: tuple[str, ...] = ()
    """Settings that differ from those the run had."""
    auto: bool = False
    """Whether the run to go on with was found by --resume auto."""


def read_settings(arguments: list[str]) -> Settings:
    """The configuration of a `vitgan train` command line.

    Raises:
        ValueError: something does not fit together; a key of the file is unknown.
        CheckpointError, TrainingError: the run to go on with cannot be used, or not with these settings.
        SystemExit: a flag is unknown or has no good value (after a message), or help was asked for.
    """
    usage = "vitgan train ... (--help says more)"
    first = argparse.ArgumentParser("vitgan train", usage, add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    chosen, flags = first.parse_known_args(arguments)
    auto = chosen.resume == Path(AUTO)
    if chosen.resume and not auto:
        if chosen.preset or chosen.config:
            raise InputError(
                "a run is resumed with its own configuration: leave out --preset and --config, or --resume for "
                "a new run"
            )
        before = load_config(chosen.resume)
        config = _parse(flags, before)
        if config.out != before.out and config.out and config.out.resolve() != chosen.resume.resolve():
            raise TrainingError("out cannot change when a run is resumed: leave it out, or start a new run")
        return _resumed(config, chosen.resume, before)
    config = _parse(flags, _from_file(chosen.config, chosen.preset))
    run = newest_run(config) if auto else None
    if run is None:
        return Settings(config, None)
    before = load_config(run)
    config = replace(config, class_names=before.class_names, data_identity=before.data_identity)
    return _resumed(config, run, before, auto=True)


def _resumed(config: Config, run: Path, before: Config, *, auto: bool = False) -> Settings:
    config = replace(config, out=before.out)  # where the run was made: it may have moved, or be given by another path
    check_resumable(before=before, now=config)
    return Settings(config, run, tuple(differences(before, config)), auto)


def with_data(settings: Settings, dataset: ImageDataset) -> Settings:
    """The settings with what they take from the data: its classes, and what tells it from other data.

    Raises:
        TrainingError: the run to go on with was trained on other data.
        ValueError: the data has no classes, or others than the run that is resumed.
    """
    config = settings.config
    identity = f"{len(dataset):,} images, {dataset.identity or dataset.name}"
    moved = any(change.startswith("data: ") for change in settings.changes)
    differs = config.data_identity != identity if config.data_identity else settings.auto and moved
    if settings.resume and differs:
        if settings.auto and config.out is None:
            return with_data(Settings(replace(config, class_names=(), data_identity=""), None), dataset)
        raise TrainingError(
            f"the data now is {identity}, but {settings.resume} was trained on {config.data_identity or 'other data'}: "
            f"bring the data back (--data names its place), or start a new run"
        )
    return replace(settings, config=replace(with_classes(config, dataset), data_identity=identity))


def with_classes(config: Config, dataset: ImageDataset) -> Config:
    """The configuration with the names of the data's classes, if it is conditional.

    Raises:
        ValueError: the data has no classes, or others than the run that is resumed.
    """
    if not config.conditional:
        return config
    if dataset.labels is None:
        raise InputError(
            f"--conditional needs classes, and {config.data} has none: put each class into a folder of its own, or "
            f"add a dataset.json with their numbers"
        )
    count = int(dataset.labels.max()) + 1
    names = tuple(dataset.class_names or map(str, range(count)))
    if config.class_names not in ((), names):
        raise InputError(
            f"the data has the classes {', '.join(names)}, but the run was trained on {', '.join(config.class_names)}: "
            f"bring its data back, or start a new run"
        )
    return replace(config, class_names=names)


def _preset(name: str) -> Config:
    name = RENAMED.get(name, name)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"no preset {name!r}: {hint}There are {', '.join(PRESETS)}")
    return PRESETS[name]


def _from_file(path: Path | None, preset: str | None) -> Config:
    """The preset, its own or the file's, with the file's values."""
    if path is None:
        return _preset(preset or "tiny")
    if path.suffix not in (".toml", ".json"):
        raise InputError(f"--config {path}: settings come from a .toml or a .json file")
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        named = values.get("preset") if isinstance(values, dict) else None
        if preset is not None and named not in (None, preset):
            raise InputError(
                f"it is made for the preset {named!r}, and --preset says {preset!r}: leave one of them out"
            )
        config: Config = from_dict(Config, values, default=_preset(preset or named or "tiny"))
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    return config


def _parse(flags: list[str], default: Config) -> Config:
    config = tyro.cli(Config, default=default, args=flags, prog="vitgan train", description=DESCRIPTION)
    path = os.path.expanduser(config.data)  # noqa: PTH111 (which leaves ~nobody as it is)
    if path and not is_name(path) and Path(path).exists():  # kept whole: a run can be resumed from any folder
        config = replace(config, data=str(Path(path).resolve()))
    return config


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
