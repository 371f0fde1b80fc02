"""SpectralNormGroup under DistributedDataParallel."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from vitgan_kernels import SpectralNormGroup

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1 + rank)  # which must change nothing
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 300, 3), nn.Flatten(), nn.Linear(2700, 70), nn.Tanh(), nn.Linear(70, 1))
SpectralNormGroup(model)
parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
torch.manual_seed(rank)
optimiser = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    optimiser.zero_grad()
    parallel(torch.randn(2, 2, 5, 5)).square().mean().backward()
    optimiser.step()
torch.save(model.state_dict(), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_every_rank_has_the_same_bits_on_data_of_its_own(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert any(name.endswith("0._u") for name in first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
