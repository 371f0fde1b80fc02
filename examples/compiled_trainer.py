"""The trainer of `trainer.py`, its steps compiled as whole graphs, R1 inside, in any number of processes.

python examples/compiled_trainer.py
torchrun --nproc-per-node 2 examples/compiled_trainer.py
"""

import os

import torch
from torch import Tensor, distributed
from torch.nn.functional import softplus
from trainer import Discriminator, Generator, d_loss, distance, dots

torch._dynamo.config.trace_autograd_ops = True  # lets torch.autograd.grad of R1 be part of the graph
DISTRIBUTED = "WORLD_SIZE" in os.environ


def average(parameters: list[Tensor]) -> None:
    """Average the gradients over the processes, in one message."""
    if DISTRIBUTED:
        flat = torch.cat([p.grad.flatten() for p in parameters])
        distributed.all_reduce(flat)
        parts = (flat / distributed.get_world_size()).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad.copy_(part.view_as(parameter))


def main(steps: int = 40, batch: int = 32) -> None:
    """Train for a moment; check the compiled loss against the plain one, and that all processes hold one model."""
    if DISTRIBUTED:
        distributed.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights everywhere
    generator, discriminator = Generator(), Discriminator()
    g_optimiser = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.0, 0.99))
    d_optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.99))
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # other images in each process

    @torch.compile(fullgraph=True)
    def d_step(real: Tensor, fake: Tensor) -> Tensor:  # real comes in as a leaf that requires a gradient
        return d_loss(discriminator, real, fake)

    @torch.compile(fullgraph=True)
    def g_step(z: Tensor) -> Tensor:
        return softplus(-discriminator(generator(z))).mean()

    real, fake = dots(batch), generator(torch.randn(batch, 8)).detach()
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    compiled = d_step(real.clone().requires_grad_(), fake)
    discriminator.load_state_dict(before)  # a forward in training mode moves the vectors of spectral normalisation
    torch.testing.assert_close(compiled, d_loss(discriminator, real.clone().requires_grad_(), fake))

    for step in range(steps):
        d_optimiser.zero_grad()
        fake = generator(torch.randn(batch, 8)).detach()
        loss = d_step(dots(batch).requires_grad_(), fake)
        loss.backward()
        average(list(discriminator.parameters()))
        d_optimiser.step()
        g_optimiser.zero_grad()
        g_step(torch.randn(batch, 8)).backward()
        average(list(generator.parameters()))
        g_optimiser.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss of D {loss.item():.3f}, distance {distance(generator):.3f}", flush=True)
    if DISTRIBUTED:
        for tensor in [*generator.state_dict().values(), *discriminator.state_dict().values()]:
            first = tensor.clone()
            distributed.broadcast(first, src=0)
            assert torch.equal(tensor, first), "the processes have drifted apart"
        print(f"process {distributed.get_rank()} of {distributed.get_world_size()} holds the same model", flush=True)
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are too small to share out
    main()
