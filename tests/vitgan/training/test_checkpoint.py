import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitgan
from tests.vitgan.helpers import assert_same, batch, everything, nano, training
from vitgan.errors import CheckpointError
from vitgan.training.checkpoint import (
    first_misfit,
    images_seen,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_config,
    load_generator,
    save_checkpoint,
    save_config,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_config(nano(), tmp_path)
    return tmp_path


def saved_run(run: Path, *, steps: int = 3) -> Path:
    state = training()
    for number in range(steps):
        state.step(batch(number))
    return save_checkpoint(state, run, trainer_state={"elapsed": 1.5}, keep=2)


def test_loading_brings_everything_back_bit_for_bit_and_so_do_the_next_steps(run: Path) -> None:
    original = training()
    for number in range(3):
        original.step(batch(number))
    path = save_checkpoint(original, run, trainer_state={"elapsed": 1.5}, keep=2)
    resumed = training(seed=77)
    assert load_checkpoint(resumed, path) == {"elapsed": 1.5}
    assert_same(everything(original), everything(resumed))
    for number in range(3, 6):
        original.step(batch(number))
        resumed.step(batch(number))
    assert_same(everything(original), everything(resumed))


def test_the_saved_state_holds_optimisers_average_power_iteration_and_random_numbers(run: Path) -> None:
    state = training()
    before = everything(state)
    state.step(batch(0))
    state.step(batch(1))
    after = everything(state)
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    for part in ("generator.", "discriminator.", "g_optimiser.", "d_optimiser.", "average.", "random"):
        assert any(name.startswith(part) for name in moved), part
    assert any(name.endswith("._u") for name in moved)


def test_checkpoints_hold_no_pickles(run: Path) -> None:
    path = saved_run(run)
    assert sorted(file.name for file in path.iterdir()) == [
        "generator_ema.safetensors",
        "state.json",
        "training.safetensors",
    ]
    json.loads((path / "state.json").read_text())


def test_only_the_newest_are_kept(run: Path) -> None:
    state = training()
    for number in range(4):
        state.step(batch(number))
        save_checkpoint(state, run, trainer_state={}, keep=2)
    assert [path.name for path in list_checkpoints(run)] == ["000000000012", "000000000016"]
    assert latest_checkpoint(run).name == "000000000016"
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_saving_again_at_the_same_step_keeps_the_checkpoint_that_is_there(run: Path) -> None:
    path = saved_run(run)
    written = (path / "training.safetensors").stat().st_mtime_ns
    state = training()
    load_checkpoint(state, path)
    assert save_checkpoint(state, run, trainer_state={}, keep=1) == path
    assert (path / "training.safetensors").stat().st_mtime_ns == written


def test_a_process_killed_at_any_moment_leaves_only_checkpoints_that_load(run: Path) -> None:
    seen = saved_run(run, steps=1)
    state = training()
    load_checkpoint(state, seen)
    chance = random.Random(0)
    kills = 0
    while kills < 40 or latest_checkpoint(run) == seen:  # a busy machine may kill many before one gets to save
        kills += 1
        assert kills < 400, "no child ever got as far as a checkpoint"
        child = os.fork()
        if child == 0:
            try:
                state.steps = int(latest_checkpoint(run).name) // state.config.batch_size
                while True:
                    state.steps += 1
                    save_checkpoint(state, run, trainer_state={}, keep=2)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        checkpoints = list_checkpoints(run)
        assert checkpoints
        for path in checkpoints:
            load_checkpoint(training(), path)
            load_generator(path)


@pytest.mark.parametrize("name", ["training.safetensors", "generator_ema.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_checkpoint_is_named(run: Path, name: str, damage: str) -> None:
    path = saved_run(run)
    if damage == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes((path / name).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(training(), path)


def test_a_checkpoint_of_another_model_is_refused(run: Path) -> None:
    path = saved_run(run)
    other = training(generator=nano().generator.__class__(patch_size=4, latent_dim=8, dim=16, depth=1, heads=2))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_checkpoint(other, path)


def test_the_random_state_of_another_kind_of_device_is_refused() -> None:
    state = training()
    tensors, values = state.state()
    with pytest.raises(ValueError, match="another kind of device than cpu"):
        state.load_state(tensors | {"random": torch.zeros(16, dtype=torch.uint8)}, values)


def test_a_checkpoint_of_another_format_is_refused(run: Path) -> None:
    path = saved_run(run)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(training(), path)


def test_generator_from_run_and_from_checkpoint(run: Path) -> None:
    path = saved_run(run)
    by_run, by_checkpoint = vitgan.load_generator(run), vitgan.load_generator(str(path))
    assert torch.equal(by_run.sample(5, seed=3), by_checkpoint.sample(5, seed=3))
    assert by_run.sample(5).shape == (5, 3, 8, 8)
    assert not by_run.training


def test_a_checkpoint_is_found_from_inside_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_run(run)
    monkeypatch.chdir(path.parent)
    assert torch.equal(load_generator(path.name).sample(2), load_generator(run).sample(2))


def test_sampling_uses_the_average_and_not_the_generator_in_training(run: Path) -> None:
    state = training()
    for number in range(5):
        state.step(batch(number))
    save_checkpoint(state, run, trainer_state={}, keep=1)
    loaded = load_generator(run)
    assert_same(dict(loaded.state_dict()), dict(state.averaged_generator.state_dict()))
    assert not torch.equal(loaded.sample(2), state.generator.sample(2))


def test_paths_that_are_no_runs_say_so(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_generator(run)
    path = saved_run(run)
    moved = tmp_path / "some" / "where" / "alone"
    shutil.copytree(path, moved)
    with pytest.raises(CheckpointError, match=r"alone lies outside of a run, whose config\.json is needed"):
        load_generator(moved)
    with pytest.raises(CheckpointError, match=r"config\.json is a file: give a run directory"):
        load_config(run / "config.json")
    (tmp_path / "classifier.json").touch()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds a classifier, and no generator"):
        load_generator(run)


@pytest.mark.parametrize("name", ["generator_ema", "training"])
def test_weights_that_are_no_numbers_are_refused_by_name(run: Path, name: str) -> None:
    path = saved_run(run)
    file = path / f"{name}.safetensors"
    tensors = load_file(file)
    bad = next(key for key in reversed(tensors) if tensors[key].is_floating_point())
    tensors[bad].view(-1)[-1] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"{name}.*damaged: .*\({re.escape(bad)} has values that are NaN"):
        load_generator(run) if name == "generator_ema" else load_checkpoint(training(), path)


def test_a_generator_that_is_damaged_or_of_another_run_is_one_line(run: Path) -> None:
    path = saved_run(run)
    save_config(nano(generator=replace(nano().generator, dim=16)), run)
    with pytest.raises(CheckpointError, match=r"is not of the run that .*: size mismatch .*\. And \d+ more\.$") as info:
        load_generator(run)
    assert "\n" not in str(info.value)
    (path / "generator_ema.safetensors").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="is damaged: take another checkpoint"):
        load_generator(run)


def test_a_checkpoint_of_another_name_knows_its_images(run: Path) -> None:
    path = saved_run(run, steps=3)
    assert images_seen(path.rename(path.with_name("best"))) == 3 * nano().batch_size


def test_a_configuration_with_unknown_keys_is_refused(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | {"learning_rate": 1}))
    with pytest.raises(CheckpointError, match="learning_rate"):
        load_config(run)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("steps"), "'steps'"),
        (ValueError("loaded state dict contains a parameter group\nof another size"), "loaded state dict contains"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("Error(s) in loading state_dict for Net:\n\tMissing: a\n\tMissing: b"), "Missing: a And 1 more."),
        (RuntimeError("Error(s) in loading state_dict for Net:\n\tMissing: a"), "Missing: a"),
    ],
)
def test_of_a_misfit_the_first_line_is_told(error: Exception, said: str) -> None:
    assert first_misfit(error).startswith(said)


def test_a_checkpoint_under_a_name_of_one_s_own_is_left_alone(run: Path) -> None:
    checkpoint = saved_run(run)
    for name in (f"{checkpoint.name}-best", "9-keep"):
        shutil.copytree(checkpoint, checkpoint.with_name(name))
    assert list_checkpoints(run) == [checkpoint]
    load_generator(checkpoint.with_name("9-keep"))
