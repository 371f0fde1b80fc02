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

    Shape: (..., N, dim) -> (..., N, dim), or (..., queries, dim) of the first tokens alone. Derivatives: those of
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
        """The attention of all tokens to all tokens, or of the first `queries` alone to all tokens: the same values for
        less work, where the others are not needed, as in the last block before a class token's head.

        Raises:
            ValueError: x is not (..., N, dim), or queries is not a whole number from 1 to N.
        """
        if x.ndim < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"L2SelfAttention: tokens must be (..., N, {self.dim}), got {tuple(x.shape)}")
        tokens = x.shape[-2]
        if queries is not None and (type(queries) is not int or not 1 <= queries <= tokens):
            raise ValueError(
                f"L2SelfAttention: queries must be a whole number from 1 to {tokens} (the tokens), got {queries!r}"
            )
        if self.to_k is None:
            k = self._split(self.to_q(x))
            q = k if queries in (None, tokens) else k[..., :queries, :]  # where q is k, the tied kernels run
        else:
            q, k = self._split(self.to_q(x[..., :queries, :])), self._split(self.to_k(x))
        v = self._split(self.to_v(x))
        out = l2_attention(q, k, v, scale=self.scale, metric=self.metric, backend=self.backend)
        return self.to_out(rearrange(out, "... heads tokens d -> ... tokens (heads d)"))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "... tokens (heads d) -> ... heads tokens d", heads=self.heads)
