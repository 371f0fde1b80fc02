"""What goes wrong in the middle of a run: each time a clear message, and nothing that was saved is lost."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.vitgan.helpers import assert_same, dataset, everything, nano, trainer
from vitgan.cli import main
from vitgan.data import DataError, ImageDataset, TensorDataset
from vitgan.errors import CheckpointError, TrainingError
from vitgan.training.checkpoint import list_checkpoints, load_checkpoint, load_generator, save_config
from vitgan.training.loop import Trainer

# SIGTERM, Ctrl-C and NaN: test_cli.py and test_loop.py; a process that dies: test_distributed.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Failing(ImageDataset):
    """Good images, of which one can no longer be read while `broken`. (Workers read it when they are started.)"""

    in_memory = False

    def __init__(self, whole: TensorDataset) -> None:
        self.whole = whole
        self.name, self.image_size, self.channels = whole.name, whole.image_size, whole.channels
        self.broken = False

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, indices: Any) -> torch.Tensor:
        if self.broken and 3 in list(indices):
            raise DataError("a/photo.png cannot be read")
        return self.whole.fetch(indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    whole, _ = trainer(tmp_path / "whole")
    whole.train()
    job, _ = trainer(tmp_path / "run", workers=workers)
    data = Failing(dataset())
    job.dataset = data
    real_step = job.training.step

    data.broken = workers > 0

    def step(real: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        data.broken = True
        return real_step(real, labels)

    job.training.step = step  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"a/photo.png cannot be read\n.*Nothing is lost: .*/checkpoints/\d+ was saved"):
        job.train()
    saved = list_checkpoints(tmp_path / "run")[-1]
    assert int(saved.name) == job.training.images < 40
    again, _ = trainer(tmp_path / "run")
    assert again.train()
    assert_same(everything(whole.training), everything(again.training))


def test_a_file_that_breaks_while_training_is_named_in_one_line_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images too many for memory are decoded as they are needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vitgan.data.decode.IN_MEMORY_LIMIT", 0)
    (tmp_path / "data").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(tmp_path / "data" / f"{number}.png")
    real_step = Trainer._advance

    def advance(self: Trainer, stream: Any) -> None:
        real_step(self, stream)
        if self.training.steps == 2:
            for file in (tmp_path / "data").iterdir():
                file.write_bytes(b"broken")

    monkeypatch.setattr(Trainer, "_advance", advance)
    settings = nano(data=str(tmp_path / "data"), workers=0, checkpoint_every=1000, images=400)
    save_config(settings, tmp_path)
    assert main(["train", "--config", "config.json", "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert "images cannot be read" in error
    assert ".png: not an image" in error
    assert "go on with --resume run" in error
    assert "Traceback" not in error
    assert [int(path.name) for path in list_checkpoints(tmp_path / "run")] == [8]


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = trainer(tmp_path)
    real_save = job._save

    def save() -> Path:
        if job.training.images >= 24:
            monkeypatch.setattr("vitgan.training.checkpoint.synced_write", full_disk)
        return real_save()

    job._save = save  # type: ignore[method-assign]
    with pytest.raises(
        CheckpointError, match=r"000000000024 cannot be written \(No space left.*last good.*000000000012"
    ):
        job.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000000012"], (
        "no half checkpoint is left"
    )
    load_generator(tmp_path)
    monkeypatch.undo()
    again, _ = trainer(tmp_path)
    assert again.training.images == 12
    assert again.train()


def test_a_checkpoint_of_another_configuration(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path / "a", images=8)
    job.train()
    before = {path: path.read_bytes() for path in (tmp_path / "a" / "checkpoints").rglob("*.*") if path.is_file()}
    for changes in (
        {"discriminator_kind": "cnn"},
        {"generator": nano().generator.__class__(patch_size=4, latent_dim=8, dim=16, depth=1, heads=2)},
    ):
        with pytest.raises(CheckpointError, match="does not fit this model or device; resume with the run's own"):
            trainer(tmp_path / "a", **changes)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(job.training, tmp_path)
    assert before == {path: path.read_bytes() for path in before}


def test_memory_that_runs_out(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path)
    real_step = job.training.step

    def step(real: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        if job.training.steps == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore details.")
        return real_step(real, labels)

    job.training.step = step  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"memory of cpu ran out \(CUDA out of memory.*000000000012.*--accumulate"):
        job.train()
    again, _ = trainer(tmp_path)
    assert again.training.images == 12
    assert again.train()


def test_the_cpu_s_memory_runs_out_too(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path)
    job.training.step = lambda real, labels=None: torch.empty(2**60)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(TrainingError, match=r"memory of cpu ran out .*no checkpoint had been saved.*--accumulate"):
        job.train()


def test_memory_that_runs_out_elsewhere_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitgan.commands.sample.main", lambda arguments: torch.empty(2**60))
    assert main(["sample", "run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("vitgan sample: the memory ran out (")
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_while_logging(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = trainer(tmp_path, images=12)
    first.train()
    job, _ = trainer(tmp_path)
    real_step = job.training.step

    def step(real: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        assert job.report.loggers
        if job.training.steps == 6:
            job.report.loggers.file.close()
            job.report.loggers.file = Path("/dev/full").open("a")  # noqa: SIM115
        return real_step(real, labels)

    job.training.step = step  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"No space left on device; the last good checkpoint is .*/000000000024"):
        job.train()
    again, _ = trainer(tmp_path)
    assert again.train()
