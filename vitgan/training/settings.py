"""From a command line to the configuration of a run: the preset, then a file, then the flags."""

import argparse
import difflib
import json
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from vitgan.config import Config, differences, from_dict, is_name
from vitgan.data import ImageDataset
from vitgan.errors import TrainingError
from vitgan.presets import PRESETS
from vitgan.training.checkpoint import load_config
from vitgan.training.runs import check_resumable, newest_run

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
            raise ValueError(
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
        raise ValueError(
            f"--conditional needs classes, and {config.data} has none: put each class into a folder of its own, or "
            f"add a dataset.json with their numbers"
        )
    count = int(dataset.labels.max()) + 1
    names = tuple(dataset.class_names or map(str, range(count)))
    if config.class_names not in ((), names):
        raise ValueError(
            f"the data has the classes {', '.join(names)}, but the run was trained on {', '.join(config.class_names)}: "
            f"bring its data back, or start a new run"
        )
    return replace(config, class_names=names)


def _preset(name: str) -> Config:
    name = RENAMED.get(name, name)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no preset {name!r}: {hint}There are {', '.join(PRESETS)}")
    return PRESETS[name]


def _from_file(path: Path | None, preset: str | None) -> Config:
    """The preset, its own or the file's, with the file's values."""
    if path is None:
        return _preset(preset or "tiny")
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"--config {path}: settings come from a .toml or a .json file")
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        named = values.get("preset") if isinstance(values, dict) else None
        if preset is not None and named not in (None, preset):
            raise ValueError(
                f"it is made for the preset {named!r}, and --preset says {preset!r}: leave one of them out"
            )
        config: Config = from_dict(Config, values, default=_preset(preset or named or "tiny"))
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _parse(flags: list[str], default: Config) -> Config:
    config = tyro.cli(Config, default=default, args=flags, prog="vitgan train", description=DESCRIPTION)
    path = os.path.expanduser(config.data)  # noqa: PTH111 (which leaves ~nobody as it is)
    if path and not is_name(path) and Path(path).exists():  # kept whole: a run can be resumed from any folder
        config = replace(config, data=str(Path(path).resolve()))
    return config
