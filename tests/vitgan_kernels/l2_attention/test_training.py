"""The fused attention inside what training does: autocast, torch.compile, R1, activation checkpointing, DDP."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitgan_kernels import L2SelfAttention, l2_attention

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Critic(nn.Module):
    """A discriminator that attends twice, the second time for its first tokens alone."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.attention = L2SelfAttention(8, 2, backend=backend)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.attention(x) + x)
        return self.head(h[:, :2] + self.attention(h, queries=2)).mean(1)


def critics() -> tuple[Critic, Critic]:
    """With the fused attention and with the reference; the same weights."""
    critic, reference = Critic("triton").to(DEVICE), Critic("reference").to(DEVICE)
    reference.load_state_dict(critic.state_dict())
    return critic, reference


def with_r1(critic: Critic, x: Tensor) -> Tensor:
    score = critic(x)
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return nn.functional.softplus(-score).mean() + gradient.square().sum()


def without_r1(critic: Critic, x: Tensor) -> Tensor:
    return nn.functional.softplus(-critic(x)).mean()


@pytest.mark.parametrize("loss", [without_r1, with_r1])
def test_a_training_step_in_one_graph(loss: Any) -> None:
    """Its gradients are those of eager PyTorch, and the reference's."""
    critic, reference = critics()
    x = torch.randn(3, 5, 8, device=DEVICE, requires_grad=True)
    compiled: Any = torch.compile(loss, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        expected, eager, in_one_graph = (
            torch.autograd.grad(step(model, x), list(model.parameters()))
            for step, model in ((loss, reference), (loss, critic), (compiled, critic))
        )
    torch.testing.assert_close(in_one_graph, eager)
    torch.testing.assert_close(eager, expected, rtol=1e-4, atol=1e-5)


def test_inference_in_one_graph_of_any_batch() -> None:
    critic, _ = critics()
    compiled: Any = torch.compile(critic, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (2, 5):
            x = torch.randn(batch, 6, 8, device=DEVICE)
            torch.testing.assert_close(compiled(x), critic(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_autocast_rounds_the_inputs_and_nothing_else(tied: bool, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 5, 8, device=DEVICE, requires_grad=True) for _ in range(3))
    keys = None if tied else k
    expected = l2_attention(q.to(dtype), None if keys is None else keys.to(dtype), v.to(dtype), backend="triton")
    with torch.autocast(DEVICE, dtype):
        out = l2_attention(q, keys, v, backend="triton")
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    inputs = (q, v) if tied else (q, k, v)
    gradients = []
    for result in (out, expected):
        first = torch.autograd.grad(result.float().square().sum(), inputs, create_graph=True)
        gradients.append([*first, *torch.autograd.grad(first[0].square().sum(), inputs)])
    assert {x.dtype for x in gradients[0]} == {torch.float32}
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    critic, _ = critics()
    x = torch.randn(2, 5, 8, device=DEVICE, requires_grad=True)
    results = []
    for run in (critic, lambda x: checkpoint(critic, x, use_reentrant=reentrant)):
        critic.zero_grad()
        run(x).sum().backward()
        results.append([parameter.grad.clone() for parameter in critic.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*results)


def test_r1_through_checkpointing() -> None:
    critic, _ = critics()
    x = torch.randn(2, 5, 8, device=DEVICE, requires_grad=True)

    def saved(x: Tensor) -> Tensor:
        return checkpoint(critic, x, use_reentrant=False)

    expected, again = (torch.autograd.grad(with_r1(model, x), list(critic.parameters())) for model in (critic, saved))  # type: ignore[arg-type]
    torch.testing.assert_close(again, expected)


RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from vitgan_kernels import L2SelfAttention

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(L2SelfAttention(8, 2, backend="triton"), nn.Linear(8, 1))
parallel = nn.parallel.DistributedDataParallel(model)
x = torch.randn(4, 5, 8)
parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
apart = [parameter.grad.clone() for parameter in model.parameters()]
model.zero_grad()
model(x).square().mean().backward()
torch.testing.assert_close(apart, [parameter.grad for parameter in model.parameters()])
dist.destroy_process_group()
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter serves CPU tensors")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_gradients_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
