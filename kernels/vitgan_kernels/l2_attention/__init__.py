"""Attention by L2 distance: the function and the module."""

from vitgan_kernels.l2_attention.module import L2SelfAttention
from vitgan_kernels.l2_attention.op import l2_attention

__all__ = ["L2SelfAttention", "l2_attention"]
