"""Two processes that train one model, over gloo on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.vitgan.helpers import batch
from vitgan.training.checkpoint import list_checkpoints, load_generator
from vitgan.training.distributed import Ranks, torchrun_ranks

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CONFIG = """
images = 32
image_size = 8
batch_size = 8
log_every = 8
evaluate_every = 100
sample_every = 100
checkpoint_every = 16
evaluate_samples = 4
tensorboard = false
device = "cpu"
threads = 1
conditional = true
generator_kind = "vit"
discriminator_kind = "stylegan2"
generator = {patch_size = 4, latent_dim = 8, dim = 8, depth = 1, heads = 2, mapping_depth = 1}
stylegan2_discriminator = {width = 8}
optimiser = {g_lr = 1e-3, d_lr = 1e-3}
[loss]
kind = "relativistic"
bcr_real = 1
bcr_fake = 1
r1 = 0.1
r2 = 0.1
penalty_every = 2
history = 0.5
diversity = 0.5
"""

NEW = ("--config", "config.toml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def start(rank: int, count: int, port: int, *flags: str) -> subprocess.Popen[str]:
    """What torchrun starts, without its supervisor."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "vitgan", "train", *flags]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def pair(here: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of a run that is too long to end."""
    port = free_port()
    processes = [start(rank, 2, port, *NEW, "--out", "run", "--images", "1000000") for rank in (0, 1)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_training(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if "images/s" in process.stdout.readline():
            return
    raise AssertionError("it never began to train")


def test_one_batch_gives_the_same_weights_on_one_process_and_on_two(here: Path) -> None:
    port = free_port()
    processes = [start(0, 1, 0, *NEW, "--out", "one"), *(start(rank, 2, port, *NEW, "--out", "two") for rank in (0, 1))]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert "images/s" in said[1]
    assert said[2] == "", "only the first process speaks"
    one, two = load_generator("one").state_dict(), load_generator("two").state_dict()
    for name in one.keys() - {"blocks.0.attention.to_qkv.bias"}:  # that of the keys has rounding for a gradient
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)
    assert sorted(p.name for p in Path("one").iterdir()) == sorted(p.name for p in Path("two").iterdir())
    lines = [
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()] for run in ("one", "two")
    ]
    losses = [[line["d_loss"] for line in run if "d_loss" in line] for run in lines]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    alone = start(0, 1, 0, "--resume", "two", "--images", "40")
    said_alone, _ = alone.communicate(timeout=60)
    assert alone.returncode == 0, said_alone
    assert [path.name for path in list_checkpoints(here / "two")][-1] == "000000000040"


def test_a_process_that_dies_ends_the_run_with_a_message_and_a_checkpoint(
    pair: list[subprocess.Popen[str]], here: Path
) -> None:
    wait_for_training(pair[0])
    pair[1].kill()
    said, _ = pair[0].communicate(timeout=60)
    assert pair[0].returncode == 1
    assert "another process of this run ended or cannot be reached" in said
    assert "the last good checkpoint is run/checkpoints/" in said
    assert "Traceback" not in said
    checkpoint = list_checkpoints(here / "run")[-1]
    assert str(checkpoint.name) in said
    load_generator(checkpoint)


def test_a_signal_to_one_process_ends_both_in_order(pair: list[subprocess.Popen[str]], here: Path) -> None:
    wait_for_training(pair[0])
    pair[1].send_signal(signal.SIGTERM)
    said, _ = pair[0].communicate(timeout=60)
    pair[1].communicate(timeout=60)
    assert [process.returncode for process in pair] == [130, 130]
    assert "go on with: vitgan train --resume run" in said


def test_parts_of_a_batch_are_shared_out_whole_and_without_overlap() -> None:
    whole = batch(0)
    parts = [Ranks(rank, 2).shard(whole) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torchrun_ranks() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.is_main
        assert ranks.max(2) == 2
        assert ranks.broadcast("x") == "x"
        assert ranks.mean({"a": 1.0}) == {"a": 1.0}
