import errno
import io
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.vitgan.helpers import assert_same, dataset, everything, nano, trainer
from vitgan.cli import main
from vitgan.commands.train import new_run_directory, newest_run
from vitgan.data import TensorDataset
from vitgan.errors import CheckpointError, TrainingError
from vitgan.training.checkpoint import list_checkpoints, only_process_in
from vitgan.training.distributed import Ranks
from vitgan.training.logging import read_metrics
from vitgan.training.loop import StopReason
from vitgan.training.state import GANState


def test_a_run_leaves_configuration_numbers_pictures_and_checkpoints(tmp_path: Path) -> None:
    job, out = trainer(tmp_path)
    assert job.train()
    assert job.training.images == 40
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 4
    assert [int(path.stem) for path in sorted((tmp_path / "samples").iterdir())] == [0, 16, 32, 40]
    with Image.open(tmp_path / "samples" / "000000000040.png") as sheet:
        assert sheet.size == (82, 82)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [36, 40]
    metrics = read_metrics(tmp_path)
    assert [line["images"] for line in metrics if "d_loss" in line] == [8, 12, 16, 24, 32, 36, 40]
    evaluations = [line for line in metrics if "sliced_wasserstein" in line]
    assert [line["images"] for line in evaluations] == [0, 16, 32, 40]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    said = out.getvalue()
    assert "images/s" in said
    assert "left" in said
    assert "d_loss" in said
    assert f"{tmp_path}/samples/000000000040.png" in said


@pytest.mark.parametrize("stop_after", [1, 5, 8], ids=["early", "between", "when an evaluation is due"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    whole, _ = trainer(tmp_path / "whole")
    assert whole.train()

    first, said = trainer(tmp_path / "parts")
    stop_after_steps(first.training, stop_after, lambda: first.stop("SIGINT"))
    assert not first.train()
    assert f"vitgan train --resume {tmp_path / 'parts'}" in said.getvalue()

    second, said = trainer(tmp_path / "parts")
    assert second.training.steps == stop_after
    second.changes = ("log_every: 8 -> 4",)
    assert second.train()
    assert "resuming" in said.getvalue()
    assert "changed from here on: log_every: 8 -> 4" in said.getvalue()
    assert_same(everything(whole.training), everything(second.training))
    for number in (16, 32, 40):
        name = f"samples/{number:012d}.png"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "parts")


def evaluations(run: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(run) if "sliced_wasserstein" in line]


def test_an_evaluation_is_made_up_for_once(tmp_path: Path) -> None:
    first, _ = trainer(tmp_path)
    stop_after_steps(first.training, 4, lambda: first.stop("SIGTERM"))
    first.train()
    assert [line["images"] for line in evaluations(tmp_path)] == [0]
    for steps in (5, 10):
        job, _ = trainer(tmp_path)
        stop_after_steps(job.training, steps, lambda job=job: job.stop("SIGTERM"))
        job.train()
    assert [line["images"] for line in evaluations(tmp_path)] == [0, 16, 32, 40]


def test_a_signal_at_the_last_step_leaves_a_finished_run(tmp_path: Path) -> None:
    job, said = trainer(tmp_path)
    stop_after_steps(job.training, 10, lambda: job.stop("SIGTERM"))
    assert job.train()
    assert "done: 40 images" in said.getvalue()
    assert evaluations(tmp_path)[-1]["images"] == 40


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    one, _ = trainer(tmp_path / "one", images=8)
    two, _ = trainer(tmp_path / "two", images=8, seed=1)
    one.train()
    two.train()
    name = "generator.positions.linear.bias"
    assert not torch.equal(everything(one.training)[name], everything(two.training)[name])


def test_metrics_beyond_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path)
    stop_after_steps(job.training, 3, lambda: job.stop("SIGINT"))
    job.train()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 16, "d_loss": 5.0}\n{"images": 20, "d_l')
    again, _ = trainer(tmp_path)
    assert again.train()
    metrics = read_metrics(tmp_path)
    assert 5.0 not in [line.get("d_loss") for line in metrics]
    assert [line["images"] for line in metrics] == sorted(line["images"] for line in metrics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = trainer(tmp_path)
    real_step = job.training.step

    def step(real: torch.Tensor, labels: None) -> dict[str, Any]:
        scalars = real_step(real)
        return scalars | {"d_loss": torch.tensor(value)} if job.training.steps == 7 else scalars

    monkeypatch.setattr(job.training, "step", step)
    with pytest.raises(TrainingError, match=r"d_loss.*checkpoints/000000000024"):
        job.train()
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [12, 24]


def test_weights_that_the_last_step_broke_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = trainer(tmp_path)
    real_step = job.training.step

    def step(real: torch.Tensor, labels: None) -> dict[str, Any]:
        scalars = real_step(real)
        if job.training.steps == 6:
            with torch.no_grad():
                next(job.training.discriminator.parameters())[0] = float("nan")
        return scalars

    monkeypatch.setattr(job.training, "step", step)
    with pytest.raises(TrainingError, match=r"weights became NaN.*checkpoints/000000000012"):
        job.train()
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [12]


def test_a_time_limit_ends_the_run_in_order(tmp_path: Path) -> None:
    job, said = trainer(tmp_path, max_minutes=1e-6)
    assert job.train()
    assert job.training.steps == 1
    assert "done" in said.getvalue()


def test_the_time_limit_is_told_and_can_be_moved(tmp_path: Path) -> None:
    first, said = trainer(tmp_path, max_minutes=1e-6)
    first.train()
    assert f"vitgan train --resume {tmp_path} and a greater --max-minutes" in said.getvalue()
    second, _ = trainer(tmp_path, max_minutes=60.0)
    assert second.train()
    assert second.training.images == 40


def test_processes_go_by_the_first_one_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's own limit comes before or after: it leaves with the first one, and for the same reason."""
    told: list[int] = []

    class Second(Ranks):
        is_main = False

        def shard(self, batch: torch.Tensor) -> torch.Tensor:
            return batch

        def max(self, number: int) -> int:
            told.append(number)
            return StopReason.TIME if len(told) == 3 else StopReason.NONE

    for index, minutes in enumerate((1e-6, 60.0)):
        told.clear()
        job, _ = trainer(tmp_path / str(index), max_minutes=minutes)
        monkeypatch.setattr(job, "ranks", Second())
        assert job.train()
        assert told == [StopReason.NONE] * 3


def test_the_device_s_time_is_the_steps_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step only gives the device work; it is waited for before anything else is timed."""
    job, _ = trainer(tmp_path, images=8, max_minutes=60.0)
    clock = 1000.0

    def wait(device: torch.device) -> None:
        nonlocal clock
        clock += 5

    monkeypatch.setattr("vitgan.training.stopwatch.wait_for", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    assert job.train()
    assert job.stopwatch.seconds == clock - 1000 > 0
    [last] = [line for line in read_metrics(tmp_path) if "images_per_second" in line]
    assert last["images_per_second"] == 8 / last["elapsed"]
    assert last["elapsed"] % 5 == 0


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    trainer(tmp_path)[0].train()
    before = (tmp_path / "metrics.jsonl").read_text()
    again, said = trainer(tmp_path)
    assert again.train()
    assert "is finished, with 40 images. Go on" in said.getvalue()
    again.changes = ("loss.kind: logistic -> hinge", "images: 80 -> 40")
    assert again.train()
    assert "40 images (not used: loss.kind: logistic -> hinge). Go on" in said.getvalue()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_second_process_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, images=8)[0].train()
    settings = (tmp_path / "config.json").read_bytes()
    job, _ = trainer(tmp_path, images=16)
    with only_process_in(tmp_path), pytest.raises(TrainingError, match="another process is training"):
        job.train()
    assert (tmp_path / "config.json").read_bytes() == settings
    assert job.train()
    assert (tmp_path / "config.json").read_bytes() != settings


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    job, _ = trainer(tmp_path, images=8)
    with pytest.warns(UserWarning, match="cannot be locked .No locks available.: see to it"):
        assert job.train()


def test_a_run_that_breaks_before_its_first_step_can_be_resumed(tmp_path: Path) -> None:
    trainer(tmp_path)  # and the process is killed
    assert newest_run(replace(nano(), out=tmp_path)) == tmp_path


def test_training_works_in_another_thread(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job.train).result()
    assert list_checkpoints(tmp_path)


def test_names_in_brackets_are_said_as_they_are(tmp_path: Path) -> None:
    job, said = trainer(tmp_path / "a[b]" / "c[-d]", images=4)
    assert job.train()
    assert "a[b]/c[-d]" in said.getvalue().replace("\n", "")


def test_a_state_that_lacks_something_is_damaged(tmp_path: Path) -> None:
    trainer(tmp_path, images=8)[0].train()
    state = list_checkpoints(tmp_path)[-1] / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "trainer"}))
    with pytest.raises(CheckpointError, match="lacks 'elapsed': remove it"):
        trainer(tmp_path)
    state.write_text("3")
    with pytest.raises(CheckpointError, match="damaged and cannot be read"):
        trainer(tmp_path)


def test_data_that_lost_an_image_is_noticed_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path, images=8)[0].train()
    fewer = TensorDataset(dataset().images[:-1], name="nano")
    monkeypatch.setattr("tests.vitgan.helpers.dataset", lambda: fewer)
    with pytest.raises(TrainingError, match=r"now has 9 images, but .* was trained on 10"):
        trainer(tmp_path)


def test_a_run_with_gradient_accumulation_comes_to_its_end(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path, accumulate=2)
    assert job.train()


@pytest.mark.parametrize(("samples", "words"), [(5, "two parts of the data: 0."), (6, "10 images, 12 are needed")])
def test_the_distance_of_real_images_is_a_number_or_said_to_be_missing(
    samples: int, words: str, tmp_path: Path
) -> None:
    job, said = trainer(tmp_path, evaluate_samples=samples, images=4)
    assert job.train()
    assert words in said.getvalue()
    assert " nan" not in said.getvalue()


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    job, _ = trainer(tmp_path, tensorboard=True, images=16)
    job.train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"d_loss", "g_loss", "sliced_wasserstein"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["samples"]


def test_wandb_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    job, _ = trainer(tmp_path, wandb="project")
    with pytest.raises(TrainingError, match=r"pip install 'vitgan\[wandb\]'"):
        job.train()


def test_wandb_without_a_key_is_one_line_before_a_run_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["train", "--wandb", "x", "--images", "8"]) == 1
    assert "run wandb login, set WANDB_API_KEY" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_run_directories_are_numbered_and_never_reused(tmp_path: Path) -> None:
    first = new_run_directory(nano(), tmp_path / "runs")
    second = new_run_directory(nano(), tmp_path / "runs")
    assert [first.name, second.name] == ["00000-tiny-nano", "00001-tiny-nano"]
    (first / "config.json").touch()
    with pytest.raises(TrainingError, match="not empty"):
        new_run_directory(nano(out=first))


def stop_after_steps(training: GANState, steps: int, stop: Any) -> None:
    original = training.step

    def step(real: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        scalars = original(real, labels)
        if training.steps == steps:
            stop()
        return scalars

    training.step = step  # type: ignore[method-assign]
