"""Self-attention on feature maps by L2 distance, with tied queries and keys and a null key, as GigaGAN's in PyTorch."""

from typing import Any

import torch
from torch import Tensor, nn

from vitgan_kernels.l2_attention import l2_attention
from vitgan_kernels.swap.recipe import ModuleRecipe, parameter_of


class GigaGanAttention(ModuleRecipe):
    """softmax(-scale * ||q_i - k_j||^2) @ v with k = [null key; q] and v = [null value; v], from 1x1 convolutions.

    The structure: `norm`, `to_q`, `to_v` and `to_out`, no `to_k`, `null_kv` (2, heads, d), `heads`, `scale`, and
    `dot_product` False (without it, or with True, the scores are products).
    """

    looks_for = "L2 self-attention on feature maps with a null key (GigaGAN)"
    runs = "l2_attention"

    def recognises(self, module: nn.Module) -> bool:
        parts = [getattr(module, name, None) for name in ("norm", "to_q", "to_v", "to_out")]
        null = parameter_of(module, "null_kv", 3)
        return (
            all(isinstance(part, nn.Module) for part in parts)
            and all(isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) for part in parts[1:])
            and null is not None
            and null.shape[:2] == (2, getattr(module, "heads", None))
            and isinstance(getattr(module, "scale", None), float)
            and hasattr(module, "dot_product")
        )

    def obstacle(self, module: Any) -> str:
        if module.dot_product or getattr(module, "to_k", None) is not None:
            return "its scores are products of queries and keys (dot_product=True), not distances"
        return ""

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(2, module.to_q.in_channels, 3, 4)]

    @staticmethod
    def forward(module: Any, fmap: Tensor) -> Tensor:
        fmap = module.norm(fmap)
        batch, _, height, width = fmap.shape
        q, v = (
            projected.reshape(batch, module.heads, -1, height * width).transpose(2, 3)
            for projected in (module.to_q(fmap), module.to_v(fmap))
        )
        null_k, null_v = (null.unsqueeze(1).expand(batch, -1, -1, -1) for null in module.null_kv.to(q.dtype))
        keys, values = torch.cat([null_k, q], dim=2), torch.cat([null_v, v], dim=2)
        out = l2_attention(q, keys, values, scale=module.scale)
        return module.to_out(out.transpose(2, 3).reshape(batch, -1, height, width))
