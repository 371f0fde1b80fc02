"""Multi-head self-attention by L2 distance."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from vitgan_kernels.backends import check_backend
from vitgan_kernels.checks import check_sizes
from vitgan_kernels.l2_attention.op import check_settings, l2_attention
from vitgan_kernels.l2_attention.reference import Metric


class L2SelfAttention(nn.Module):
    """Multi-head L2 self-attention with query and key projections tied (Wq = Wk), the Lipschitz form.

    Args:
        dim: features of a token; must be a multiple of heads.
        heads: number of heads; each attends in d = dim / heads features.
        scale, metric: as in `l2_attention`; scale=None means d ** -0.5.
        tied: share one projection between queries and keys, without a bias.
        linear: makes a projection from (in, out); spectral normalisation and the like are left to the caller.
        backend: see `use_backend`.

    Shape: (..., N, dim) -> (..., N, dim), or (..., queries, dim) where only the first tokens ask. Derivatives: those of
    `l2_attention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        *,
        scale: float | None = None,
        metric: Metric = "sqeuclidean",
        tied: bool = True,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes("L2SelfAttention", dim=dim)
        if not isinstance(heads, int) or heads < 1 or dim % heads:
            raise ValueError(f"L2SelfAttention: dim must be a multiple of heads, got dim={dim}, heads={heads}")
        check_settings("L2SelfAttention", scale, metric)
        check_backend(backend)
        self.dim = dim
        self.heads = heads
        self.scale = scale
        self.metric = metric
        self.backend = backend
        self.to_q = linear(dim, dim)
        self.to_k = None if tied else linear(dim, dim)
        self.to_v = linear(dim, dim)
        self.to_out = linear(dim, dim)
        if tied:
            # No distance depends on a bias that queries and keys share. Its gradient would be rounding, of which Adam
            # makes steps of full length.
            self.to_q.register_parameter("bias", None)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """The attention of every token to every token, or that of the first `queries` tokens alone: of the same values,
        for less work where the others are read no more, as in the last block before a class token's head.

        Raises:
            ValueError: the tokens are no (..., N, dim), or queries is no number from 1 to N.
        """
        if x.ndim < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"L2SelfAttention: tokens must be (..., N, {self.dim}), got {tuple(x.shape)}")
        if queries is not None and not 1 <= queries <= x.shape[-2]:
            raise ValueError(f"L2SelfAttention: queries must be 1 to {x.shape[-2]}, the tokens given, got {queries}")
        asking = x if queries is None else x[..., :queries, :]
        if self.to_k is not None:
            q, k = self._split(self.to_q(asking)), self._split(self.to_k(x))
        elif queries is None:
            q, k = self._split(self.to_q(x)), None
        else:
            k = self._split(self.to_q(x))
            q = k[..., :queries, :]
        v = self._split(self.to_v(x))
        out = l2_attention(q, k, v, scale=self.scale, metric=self.metric, backend=self.backend)
        return self.to_out(rearrange(out, "... heads tokens d -> ... tokens (heads d)"))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "... tokens (heads d) -> ... heads tokens d", heads=self.heads)
