"""Reconstruction of states by an SAE during a model's pass, and sums over its codes.

    codes = CodeTally(n_documents, sae.cfg.d_sae)
    splice = Reconstruction(sae, "B", mean, batch.by_model["B"], codes)
    Arm("transferred", "B", ("B",), splice)      # encodes once: splices and counts

Problem: reconstruction error, sparsity and loss need the same codes, and encoding is the costly
step. Mechanism: the function that replaces the states during the pass also adds its codes to the
sums per document.

Limits: the passes themselves are those of `lrt_lens.stitching._stitched_pass`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import NonFiniteError
from lrt_lens.stitching._stitched_pass import ModelWindows, Streams


class CodeTally:
    """Sums over the counted tokens of each document, and which features fired on any of them."""

    def __init__(self, n_documents: int, d_sae: int) -> None:
        self.sums: dict[str, np.ndarray] = {}
        """Sums per document, [document], by the names that `add` gives them; empty before the first
        batch.
        """
        self.counts = np.zeros(n_documents)
        """Counted tokens per document, [document]."""
        self.fired = torch.zeros(d_sae, dtype=torch.bool)
        """True for features that were active on any counted token, [feature]."""

    def add(self, windows: ModelWindows, codes: Tensor, error: Tensor, variance: Tensor) -> None:
        """Add a batch: codes [row, feature] of the counted rows, and squared distances [row]."""
        documents = windows.documents[windows.counted]
        on = codes != 0
        self.fired |= on.any(0).cpu()
        # Active features, ‖x − x̂‖² and ‖x − mean‖² of each row.
        for name, values in (("l0", on.sum(1)), ("error", error), ("variance", variance)):
            self.sums[name] = self.sums.get(name, 0.0) + np.bincount(
                documents, values.double().cpu().numpy(), minlength=len(self.counts)
            )
        self.counts += np.bincount(documents, minlength=len(self.counts))


@dataclass(frozen=True)
class Reconstruction:
    """Function from states to their reconstruction at one end; adds its codes to a tally."""

    sae: Any
    """SAE with ``encode`` and ``decode`` that reads at this end."""
    end: str
    """End at which the SAE reads: ``"A"`` for the source model, ``"B"`` for the target model."""
    mean: Tensor
    """Mean of the states, from which FVU counts the variance, [d]."""
    windows: ModelWindows
    """Tokens, documents and counted positions of the batch at this end."""
    codes: CodeTally
    """Sums to which the codes are added."""

    @torch.no_grad()
    def __call__(self, streams: Streams) -> Tensor:
        """States [batch, position, d], reconstructed at positions that predict a next token.

        Raises:
            NonFiniteError: a reconstruction holds NaN or infinity.
        """
        stream = streams[self.end]
        x = stream.float()[self.windows.predicts.to(stream.device)].to(self.sae.W_dec)
        codes = self.sae.encode(x)
        # SAELens can return sparse codes for TopK.
        codes = codes.to_dense() if codes.is_sparse else codes
        rebuilt = self.sae.decode(codes)
        counted = torch.from_numpy(self.windows.counted).to(x.device)
        # Squared distances in float64: float32 sums of thousands of tokens lose digits.
        error = (x - rebuilt)[counted].double().square().sum(1)
        if not bool(torch.isfinite(error).all()):
            raise NonFiniteError(
                f"{int((~torch.isfinite(error)).sum())} of {len(error)} reconstructions hold NaN "
                "or infinity; expected finite ones: check the SAE's weights, or load the model "
                "with dtype='float32'"
            )
        variance = (x[counted].double() - self.mean.to(x.device).double()).square().sum(1)
        self.codes.add(self.windows, codes[counted], error, variance)
        # Every position with a next token is replaced here; the pass puts back those that `keep` of
        # evaluate_sae protects.
        state = stream.clone()
        state[self.windows.predicts.to(stream.device)] = rebuilt.to(stream)
        return state
