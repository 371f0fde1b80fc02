"""Training on a GPU: the same batches from its memory; the same steps eagerly, compiled, replayed as CUDA graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.vitgan.helpers import batch, dataset, everything, nano
from vitgan.config import LossConfig
from vitgan.data import BatchStream, DeviceDataset, keep_on_device
from vitgan.training.augment import AugmentConfig
from vitgan.training.state import GANState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

LOSS = LossConfig("logistic", bcr_real=1, bcr_fake=1, r1=0.5, r2=0.5, penalty_every=2, history=0.5)
STEPS = 8  # of each kind, with penalties and without: one to warm up, one to record, two to replay


def trained(steps: int = STEPS, **options: Any) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """What is logged, read only in the end, and every tensor of the training."""
    augment = AugmentConfig(scaling=0)  # its gradient does not repeat bit for bit on CUDA
    config = nano(loss=LOSS, augment=augment, device="cuda", bf16=False, **options)
    state = GANState(config, torch.device("cuda"))
    logged = [state.step(batch(number).cuda()) for number in range(steps)]
    return logged, everything(state)


def test_compiled_steps_are_the_eager_ones() -> None:
    torch._dynamo.reset()
    expected, _ = trained(2)
    actual, _ = trained(2, compile=True)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replayed_steps_are_the_compiled_ones(accumulate: int) -> None:
    from torch._inductor.cudagraph_trees import get_manager

    torch._dynamo.reset()
    expected, compiled = trained(accumulate=accumulate, compile=True)
    torch._dynamo.reset()
    counters.clear()
    actual, replayed = trained(accumulate=accumulate, compile=True, cuda_graphs=True)
    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    assert manager is not None
    assert list(manager.get_roots()), "nothing was recorded"
    assert counters["inductor"]["cudagraph_skips"] == 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(replayed, compiled, rtol=1e-5, atol=1e-6)


def test_batches_from_the_gpu_are_those_from_the_host() -> None:
    kept = keep_on_device(dataset(), torch.device("cuda"))
    assert isinstance(kept, DeviceDataset)
    here, there = BatchStream(dataset(), 4, seed=1), BatchStream(kept, 4, seed=1)
    for _ in range(10):
        batch_there = next(there)
        assert batch_there.is_cuda
        assert torch.equal(batch_there.cpu(), next(here))
