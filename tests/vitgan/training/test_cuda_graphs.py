"""Steps that are replayed as CUDA graphs, on the CPU: a backend that treats memory as CUDA graphs do."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch.fx.experimental.proxy_tensor import make_fx

from tests.vitgan.helpers import assert_same, batch, everything, nano, training
from vitgan.config import LossConfig
from vitgan.models import StyleGan2DiscriminatorConfig
from vitgan.models.build import build_discriminator, build_generator
from vitgan.training import losses
from vitgan.training.augment import DiffAugment
from vitgan.training.state import GANState

Graph = Callable[[list[Any]], Sequence[Any]]


class Slot:
    """The memory of one output of one graph."""

    def __init__(self, like: Tensor) -> None:
        self.layout = (like.storage_offset(), like.shape, like.stride())
        self.bytes = like.untyped_storage().clone()
        self.dtype = like.dtype
        self.handed_out = self.alias()

    def alias(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype).set_(self.bytes, *self.layout)

    def poison(self) -> None:
        self.bytes.fill_(0xFF)  # NaN in every floating-point dtype


class ReusedMemory:
    """A compile backend whose graphs return the same memory at every step, filled with NaN when the next one begins.

    Within a step each call has memory of its own, as CUDA graphs give it while the earlier outputs live. What a graph
    without gradients returns is the very same tensor each time, as with CUDA graphs.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.calls: list[list[int]] = []
        self.mutated = 0
        self.backend = aot_autograd(
            fw_compiler=lambda graph, inputs: self._wrap(graph, same_tensor=False),
            bw_compiler=lambda graph, inputs: self._wrap(graph, same_tensor=False),
            inference_compiler=lambda graph, inputs: self._wrap(graph, same_tensor=True),
            keep_inference_input_mutations=True,
        )

    def begin_step(self) -> None:
        for slot in self.slots:
            slot.poison()
        for count in self.calls:
            count[0] = 0

    def _wrap(self, graph: torch.fx.GraphModule, *, same_tensor: bool) -> Graph:
        self._check_mutations()
        of_calls: list[dict[int, Slot]] = []
        count = [0]
        self.calls.append(count)

        def run(inputs: list[Any]) -> Sequence[Any]:
            given = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
            outputs = list(graph(*inputs))
            inputs.clear()
            if count[0] == len(of_calls):
                of_calls.append({})
            slots = of_calls[count[0]]
            count[0] += 1
            for index, output in enumerate(outputs):
                if not isinstance(output, Tensor) or output.untyped_storage().data_ptr() in given:
                    continue
                if index not in slots:
                    slots[index] = Slot(output)
                    self.slots.append(slots[index])
                slot = slots[index]
                slot.bytes.copy_(output.untyped_storage())
                outputs[index] = slot.handed_out if same_tensor else slot.alias()
                if same_tensor:
                    assert not slot.handed_out.requires_grad
                    assert slot.handed_out.grad is None, "it is that of an earlier step"
            return outputs

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def _check_mutations(self) -> None:
        """CUDA graphs move what lies at a fixed address; a graph that changes another input is not replayed."""
        context = TracingContext.get()
        assert context.fw_metadata is not None
        mutated = {i for i, info in enumerate(context.fw_metadata.input_info) if info.mutates_data}
        self.mutated += len(mutated)
        assert mutated <= set(context.fw_metadata.static_input_indices)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ReusedMemory:
    """Compiled functions are made by it, and every step tells it that it begins."""
    memory = ReusedMemory()
    torch._dynamo.reset()
    monkeypatch.setattr(losses, "COMPILE_BACKEND", memory.backend)
    monkeypatch.setattr(losses.Objectives, "begin_step", lambda _: memory.begin_step())
    return memory


def steps(state: GANState, count: int) -> list[dict[str, Tensor]]:
    """What is logged: read only in the end, as the trainer does."""
    return [state.step(batch(number)) for number in range(count)]


def test_what_a_graph_returned_is_gone_at_the_next_step(memory: ReusedMemory) -> None:
    double = torch.compile(lambda x: 2 * x, fullgraph=True, backend=memory.backend)
    first = double(torch.ones(3))
    assert first.tolist() == [2, 2, 2]
    second = double(torch.zeros(3))
    assert first.tolist() == [2, 2, 2]
    memory.begin_step()
    assert first.isnan().all()
    assert double(torch.zeros(3) + 5) is first
    assert first.tolist() == [10, 10, 10]
    assert second.isnan().all()


ALL = LossConfig("relativistic", bcr_real=1, bcr_fake=1, r1=0.5, r2=0.5, penalty_every=2, history=0.5)


def test_steps_that_write_over_their_memory_are_the_same_steps(
    memory: ReusedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight, the history and the logged numbers, in parts, with penalties at every second step, to the bit."""
    replayed = training(loss=ALL, compile=True, accumulate=2)
    monkeypatch.setattr(losses, "COMPILE_BACKEND", "aot_eager")  # the same graphs, each with memory of its own
    plain = training(loss=ALL, compile=True, accumulate=2)
    actual, expected = steps(replayed, 4), steps(plain, 4)
    assert memory.mutated > 0, "the vectors of the power iteration move in the graph"
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)
    assert_same(everything(replayed), everything(plain))


@pytest.mark.parametrize("kind", ["vit", "stylegan2"])
def test_nothing_in_a_step_is_computed_on_the_host(kind: Literal["vit", "stylegan2"]) -> None:
    """Which would be neither recorded nor replayed. The meta device stands for the GPU."""
    small = StyleGan2DiscriminatorConfig(width=8)
    config = nano(loss=ALL, discriminator_kind=kind, stylegan2_discriminator=small)
    d, g = build_discriminator(config).to("meta"), build_generator(config).to("meta")
    augment = DiffAugment(config.augment)
    steps = losses.Objectives(g, d, augment, ALL, autocast=nullcontext)
    real = torch.empty(4, 3, 8, 8, device="meta")
    draws = {name: torch.empty(4, augment.width, device="meta") for name in ("real", "fake", "history")}
    draws["z"] = torch.empty(4, g.latent_dim, device="meta")

    def step(real: Tensor, draws: dict[str, Tensor]) -> list[Any]:
        views, _ = steps.views(real, None, draws, None)
        d_loss, _ = steps.of_discriminator(views.requires_grad_(), None, 4, True)
        g_loss, _ = steps.of_generator(real, None, draws)
        losses = ((d_loss, d), (g_loss, g))
        return [torch.autograd.grad(loss, list(of.parameters()), allow_unused=True) for loss, of in losses]

    traced = make_fx(step)(real, draws)
    values = [*traced.buffers(), *(node.meta.get("val") for node in traced.graph.nodes)]
    devices = {value.device.type for value in values if isinstance(value, Tensor)}
    assert devices == {"meta"}


def test_cuda_graphs_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(ValueError, match="set compile too"):
        training(cuda_graphs=True)
    with pytest.raises(ValueError, match="needs a CUDA device, and this run is on cpu"):
        training(compile=True, cuda_graphs=True)
