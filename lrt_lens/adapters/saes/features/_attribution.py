"""Attribution of the next token to each feature, position by position, in either model.

Problem: two models share a feature only if it changes their predictions in the same way. Mechanism:
the contribution of each feature to the next token, at every position t:

    kind        attribution of feature i at t   meaning of the vector
    logits      f_i(t) · ⟨d_i, W_U[:, next]⟩    column of the unembedding for the next token
    gradient    f_i(t) · ⟨d_i, g(t)⟩            gradient of the window's summed log-probability
                                                with respect to the residual stream at t

Both are the activation times ⟨decoder row, u(t)⟩, with a vector u(t) that is the same for all
features. ``logits`` is the paper's definition (Stitching, arXiv 2506.06609, §5, "attribution
correlation", figures 4 and 14) and covers the direct path to the logits only. ``gradient`` adds, to
first order, what later layers compute from the feature.

Limits: ``gradient`` is linear in the feature, which need not be small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.adapters.saes.features._text import TokenBatch
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.models._hook_points import place
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.typing import Residual

Attribution = Literal["logits", "gradient"]
"""Kind of attribution: direct path to the logits, or first order over all paths."""


class Attributor:
    """Computes the vectors u(t) of one model at the counted positions of a batch."""

    def __init__(
        self, model: HookedModel, hook: str, unembedding: Unembedding, kind: Attribution
    ) -> None:
        # `place` names `resid_pre` of block l as `resid_post` of block l − 1: from there the engine
        # can skip the layers that have run.
        self.model, self.hook, self.unembedding, self.kind = model, place(hook), unembedding, kind

    def read(self, batch: TokenBatch) -> Residual:
        """Residual stream at the hook point, [window, position, d]."""
        return self.model.engine.capture(batch.tokens, [self.hook])[self.hook]

    def vectors(self, batch: TokenBatch, residual: Residual) -> Tensor:
        """Vectors u(t), [counted position, d], float32 on the CPU."""
        if self.kind == "logits":
            # Columns of W_U for the tokens that follow, one per counted position.
            return self.unembedding.weight[:, batch.following].T
        gradient = log_probability_gradient(self.model, self.hook, batch, residual)
        return gradient[batch.counted.to(gradient.device)].float().cpu()


def log_probability_gradient(
    model: HookedModel, hook: str, batch: TokenBatch, residual: Residual
) -> Residual:
    """Gradient ∂ Σ log p(next token) / ∂ residual, [window, position, d].

    The sum is over counted positions. No gradient of a weight is computed.
    """
    with torch.inference_mode(mode=False), torch.enable_grad(), _weights_without_gradient(model):
        # A tensor of inference mode takes no gradient; a clone made outside of it does.
        start = residual.clone().requires_grad_()
        with model.engine.resuming(hook, start):
            logits = model.engine.logits(batch.tokens)
        # Only counted positions: a float32 log-softmax of all of them would need twice the memory.
        log_p = logits[batch.counted.to(logits.device)].float().log_softmax(-1)
        total = log_p.gather(1, batch.following.to(logits.device)[:, None]).sum()
        return torch.autograd.grad(total, start)[0].detach()


@contextmanager
def _weights_without_gradient(model: HookedModel) -> Iterator[None]:
    """Set ``requires_grad`` of all weights to False while this is open.

    Autograd then stores no activations that only gradients of weights need.
    """
    root = model.engine.model
    trainable = [parameter for parameter in root.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
