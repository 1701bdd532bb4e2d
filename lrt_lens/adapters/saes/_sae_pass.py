"""Reconstruction and codes of an SAE inside a forward pass.

    codes = CodeTally(n_documents, sae.cfg.d_sae)
    Arm("transferred", "B", ("B",), Reconstruction(sae, "B", mean, batch.sides["B"], codes))      # encodes once: spliced in and counted

The passes themselves are those of `lrt_lens.stitching._stitched_pass`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.stitching._stitched_pass import Side, Streams


class CodeTally:
    """Sums over the counted tokens of each document, and which features fired at all."""

    def __init__(self, n_documents: int, d_sae: int) -> None:
        self.sums = {name: np.zeros(n_documents) for name in ("l0", "error", "variance")}
        """[document]: active features, ‖x − x̂‖², ‖x − mean‖²."""
        self.counts = np.zeros(n_documents)
        """[document], tokens."""
        self.fired = torch.zeros(d_sae, dtype=torch.bool)

    def add(self, side: Side, codes: Tensor, error: Tensor, variance: Tensor) -> None:
        """One batch: codes [row, feature] of the counted rows, squared distances [row]."""
        documents = side.documents[side.counted]
        on = codes != 0
        self.fired |= on.any(0).cpu()
        for name, values in (("l0", on.sum(1)), ("error", error), ("variance", variance)):
            self.sums[name] += np.bincount(
                documents, values.double().cpu().numpy(), minlength=len(self.counts)
            )
        self.counts += np.bincount(documents, minlength=len(self.counts))


@dataclass(frozen=True)
class Reconstruction:
    """``x̂(streams)`` at one end, [batch, position, d]; counts what it saw on the way."""

    sae: Any
    end: str
    """``"A"`` or ``"B"``."""
    mean: Tensor
    """[d], of the stream: variance is about it."""
    side: Side
    codes: CodeTally

    @torch.no_grad()
    def __call__(self, streams: Streams) -> Tensor:
        """The stream rebuilt from its codes wherever a next token is predicted."""
        stream = streams[self.end]
        x = stream.float()[self.side.predicts.to(stream.device)].to(self.sae.W_dec)
        codes = self.sae.encode(x)
        codes = codes.to_dense() if codes.is_sparse else codes
        rebuilt = self.sae.decode(codes)
        counted = torch.from_numpy(self.side.counted).to(x.device)
        error = (x - rebuilt)[counted].double().square().sum(1)
        if not bool(torch.isfinite(error).all()):
            raise NonFiniteError(
                f"{int((~torch.isfinite(error)).sum())} of {len(error)} reconstructions hold NaN or infinity; check the SAE's weights and the model's "
                "dtype (float32 is safe)"
            )
        variance = (x[counted].double() - self.mean.to(x.device).double()).square().sum(1)
        self.codes.add(self.side, codes[counted], error, variance)
        state = stream.clone()
        state[self.side.predicts.to(stream.device)] = rebuilt.to(stream)
        return state
