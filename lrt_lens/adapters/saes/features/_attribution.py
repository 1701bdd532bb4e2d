"""What a feature did for the next token, position by position, in either model.

    logits     f_i(t) · v_i[next token]      v_i the unembedded decoder row: Stitching, §5 ("attribution correlation"), figures 4 and 14
    gradient   f_i(t) · ⟨d_i, g(t)⟩          g(t) the gradient of the window's summed log-probability with respect to the stream at t

Either is activation times ⟨decoder row, u(t)⟩ with a vector u(t) that no feature has part in: a
column of the unembedding, or a gradient. The first is the paper's and sees the direct way to the
logits alone; the second sees what later layers make of it, to first order.
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


class Attributor:
    """u(t) of one model at the counted positions of a batch."""

    def __init__(
        self, model: HookedModel, hook: str, unembedding: Unembedding, kind: Attribution
    ) -> None:
        # One name for `resid_pre` and the `resid_post` before it: from there an engine can skip the
        # layers that ran.
        self.model, self.hook, self.unembedding, self.kind = model, place(hook), unembedding, kind

    def read(self, batch: TokenBatch) -> Residual:
        """The stream at the hook point, [window, position, d]."""
        return self.model.engine.capture(batch.tokens, [self.hook])[self.hook]

    def vectors(self, batch: TokenBatch, residual: Residual) -> Tensor:
        """[counted position, d], float32 on the CPU."""
        if self.kind == "logits":
            return self.unembedding.weight[:, batch.following].T
        gradient = log_probability_gradient(self.model, self.hook, batch, residual)
        return gradient[batch.counted.to(gradient.device)].float().cpu()


def log_probability_gradient(
    model: HookedModel, hook: str, batch: TokenBatch, residual: Residual
) -> Residual:
    """∂ Σ log p(next token) / ∂ residual over counted positions, [window, position, d]; only the
    residual takes a gradient.
    """
    with torch.inference_mode(mode=False), torch.enable_grad(), _weights_without_gradient(model):
        start = residual.clone().requires_grad_()
        with model.engine.resuming(hook, start):
            logits = model.engine.logits(batch.tokens)
        picked = logits[batch.counted.to(logits.device)].float().log_softmax(-1)
        total = picked.gather(1, batch.following.to(logits.device)[:, None]).sum()
        return torch.autograd.grad(total, start)[0].detach()


@contextmanager
def _weights_without_gradient(model: HookedModel) -> Iterator[None]:
    """Keep autograd from storing what only the weights' gradients need."""
    root = getattr(model.bridge, "original_model", model.bridge)
    wanted = [parameter for parameter in root.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()
