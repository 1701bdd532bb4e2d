"""Settings of a refit.

    refit_sae(sae, model, documents, n_tokens=50_000, n_alternations=2)
    stitch.transfer(sae, refit=SAERefit(pair, documents, RefitSettings(encoder=False)))

Problem: a refit is asked for in three places (alone, with a transfer, in an evaluation), which must
take the same settings. Mechanism: one settings object.

Limits: penalties are relative to the mean variance of what they multiply, as everywhere in this
package.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lrt_lens._settings import Settings
from lrt_lens.adapters.saes.codes._ridge import SOLVERS

DECODER_ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3)
"""Penalties of the decoder to choose from; largest first."""
ENCODER_ALPHAS = (0.1, 0.01, 1e-3, 1e-4)
"""Penalties of the encoder's regression to choose from; largest first."""


@dataclass(frozen=True)
class RefitSettings(Settings):
    """Settings of `refit_sae`, which also takes each of them as a keyword."""

    encoder: bool | None = None
    """True regresses the source's codes on the states, which needs a source; None does so if there
    is a source."""
    rates: bool | None = None
    """True matches the firing rates of the source, which needs a source; None does so if there is
    a source."""
    decoder: bool = True
    """True fits the decoder and its bias to the states by ridge regression on the codes."""
    n_alternations: int = 0
    """Number of times that encoder and decoder are improved in turn after the other steps."""
    n_tokens: int = 30_000
    """Unmasked tokens after which no further document is read, tokens of the test fold
    included."""
    alphas: Sequence[float] = DECODER_ALPHAS
    """Penalties of the decoder to choose from, relative to the mean variance of a live feature; 0
    is no penalty."""
    n_held_out: int = 2
    """Number of fitting folds that are held out in turn to choose the penalty of the decoder."""
    encoder_alphas: Sequence[float] = ENCODER_ALPHAS
    """Penalties of the encoder to choose from for each feature, relative to the mean variance of
    a dimension."""
    min_firings: int = 5
    """Features that are active on fewer fitted rows keep their decoder row."""
    solver: str = "auto"
    """``"cholesky"`` holds the second moments of the codes, ``"cg"`` the sparse codes; ``"auto"``
    uses Cholesky if its matrices fit into memory."""
    memory: int | None = None
    """Bytes that the decoder's fit may take, checked before the allocation; None is the free
    memory."""
    context_length: int = 256
    """Tokens per window, at most what the models read."""
    seed: int = 0
    """Seed of the folds: documents of its test fold are not read. A transfer takes that of its
    stitch."""
    progress: bool = True
    """True shows bars."""

    def __post_init__(self) -> None:
        ranges = {"n_alternations": 0, "n_tokens": 1, "min_firings": 1, "n_held_out": 1}
        for name, least in ranges.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a whole number from {least} on"
                )
        for name in ("alphas", "encoder_alphas"):
            values = list(getattr(self, name))
            if not values or not all(0 <= value < float("inf") for value in values):
                raise ValueError(
                    f"{name} is {values}; expected numbers from 0 on, such as [0.1, 0.01]"
                )
        if self.solver not in ("auto", *SOLVERS):
            raise ValueError(f"solver is {self.solver!r}; expected 'auto', 'cholesky' or 'cg'")
