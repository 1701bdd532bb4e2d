"""Steps of a refit on rows that are in memory: encoder, firing rates, decoder, alternations.

    refit = refit_weights(folded, sae, rows, source_codes, settings)
    refit.sae, refit.record

Problem: an SAE, its controls and a user's own call must be refitted by exactly the same steps.
Mechanism: every refit goes through `refit_weights`, which takes rows and returns a SAELens SAE with
a record of what was done and what it cost.

Limits: a step that needs the source's codes is refused without them.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lrt_lens.adapters.saes._folding import FoldedSae
from lrt_lens.adapters.saes.codes._moments import encoded, sparse_rows
from lrt_lens.adapters.saes.refit._alternation import N_STEPS, improve_encoder
from lrt_lens.adapters.saes.refit._decoder import DecoderFit, refit_decoder
from lrt_lens.adapters.saes.refit._encoder import match_rates, read_out, with_read_out
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.adapters.saes.refit._states import RefitRows


@dataclass(frozen=True)
class RefitRecord:
    """Steps of a refit with what they chose, as the metadata of the SAE stores them."""

    steps: tuple[str, ...]
    """Names of the steps, in order: ``encoder``, ``rates``, ``decoder``, ``alternation``."""
    n_rows: int
    """Number of rows of the fitting folds."""
    n_live: int
    """Number of features whose decoder row was fitted; 0 without that step."""
    alpha: float | None
    """Penalty of the decoder, relative to the mean variance of a live feature."""
    encoder_r2: float | None
    """Median over features of the cross-validated R² of the read-out of the source's codes."""
    solver: str | None
    """Solver of the decoder's equations."""
    flops: float
    """FLOPs of the steps, from numbers of rows, dimensions, features and active codes."""


@dataclass(frozen=True)
class WeightsRefit:
    """A refitted SAE and the record of its refit."""

    sae: Any
    """SAELens SAE of the class that was given."""
    record: RefitRecord
    """Steps of the refit."""


def codes_of(sae: Any, states: Tensor) -> Any:
    """Codes of an SAE on states [row, d], as a CSR matrix [row, feature]."""
    from scipy.sparse import vstack

    return vstack([sparse_rows(codes) for _, codes in encoded(sae, states)], format="csr")


def resolve_steps(settings: RefitSettings, *, has_source: bool) -> tuple[bool, bool]:
    """Return whether the encoder is read out, and whether rates are matched.

    Raises:
        ValueError: a step that needs a source is asked for without one, or no step is.
    """
    asked = {"encoder": settings.encoder, "rates": settings.rates}
    for name, value in asked.items():
        if value and not has_source:
            raise ValueError(
                f"{name}=True needs the codes of the source on the same tokens, and there is no "
                "source; expected a model in which the features were learnt: give source=model "
                f"(and source_sae= for a transferred SAE), or leave {name} out"
            )
    encoder, rates = (has_source if value is None else value for value in asked.values())
    if not (encoder or rates or settings.decoder or settings.n_alternations):
        raise ValueError(
            "encoder, rates and decoder are all False; expected at least one step of the refit: "
            "leave one of them out"
        )
    return encoder, rates


def refit_weights(
    folded: FoldedSae, sae: Any, rows: RefitRows, codes: Any, settings: RefitSettings
) -> WeightsRefit:
    """SAE of ``sae``'s class with weights refitted to the target's rows.

    Args:
        folded: weights on the target from which the refit starts.
        sae: SAELens SAE whose class and settings the result has.
        rows: states of the fitting folds.
        codes: CSR matrix [row, feature] of the source's codes of these rows; None without a source.
        settings: steps and penalties.

    Raises:
        ValueError: see `resolve_steps` and `refit_decoder`; alternations of a gated SAE.
    """
    architecture, k = sae.cfg.architecture(), getattr(sae.cfg, "k", None)
    encoder, rates = resolve_steps(settings, has_source=codes is not None)
    if settings.n_alternations and "b_gate" in folded.biases:
        raise ValueError(
            f"n_alternations is {settings.n_alternations} for a gated SAE, whose gate and magnitude"
            " are two functions; expected 0: leave n_alternations out"
        )
    # Rows are on the CPU; the SAE encodes where its weights are.
    folded = _on_cpu(folded)
    bill = _Bill(len(rows.target), *folded.W_enc.shape)
    done, quality, fit = [], None, None
    if encoder:
        alphas = tuple(sorted(settings.encoder_alphas, reverse=True))
        fitted = read_out(rows.target, rows.folds, codes, alphas)
        folded, quality = with_read_out(folded, fitted), float(fitted.r2_cv.nanmedian())
        bill.read_out(codes.nnz, len(alphas))
        done.append("encoder")
    if rates:
        folded = match_rates(folded, architecture, k, rows.target, codes)
        bill.encode()
        done.append("rates")
    own = None
    for turn in range(settings.n_alternations + 1):
        if turn:
            if own is None:
                own = codes_of(folded.build(sae), rows.target)
                bill.encode()
            folded = improve_encoder(folded, own, rows.target)
            bill.alternate(own.nnz)
            if rates:
                folded = match_rates(folded, architecture, k, rows.target, codes)
                bill.encode()
            done.append("alternation")
        if settings.decoder or turn:
            own = codes_of(folded.build(sae), rows.target)
            bill.encode()
            fit = refit_decoder(
                folded, own, rows.target, rows.folds, settings, alpha=fit.alpha if fit else None
            )
            folded = fit.folded
            bill.decode(fit)
            done.append("decoder")
    record = RefitRecord(
        tuple(done),
        len(rows.target),
        fit.n_live if fit else 0,
        fit.alpha if fit else None,
        quality,
        fit.solver if fit else None,
        bill.flops,
    )
    return WeightsRefit(folded.build(sae, refit_metadata(sae, record)), record)


def _on_cpu(folded: FoldedSae) -> FoldedSae:
    """Weights moved to the CPU."""
    return FoldedSae(
        folded.W_enc.cpu(),
        folded.W_dec.cpu(),
        folded.b_dec.cpu(),
        {name: bias.cpu() for name, bias in folded.biases.items()},
        {name: weight.cpu() for name, weight in folded.other_weights.items()},
    )


def refit_metadata(sae: Any, record: RefitRecord) -> dict[str, Any]:
    """Metadata of an SAE with the record of its refit under the key ``refit``."""
    fields = asdict(record) | {"method": "closed-form refit (lrt_lens)", "steps": [*record.steps]}
    return sae.cfg.metadata.to_dict() | {"refit": fields}


class _Bill:
    """FLOPs of the steps, counted as multiply-adds of two."""

    def __init__(self, n: int, d: int, n_features: int) -> None:
        self.n, self.d, self.n_features = n, d, n_features
        self.flops = 0.0

    def encode(self) -> None:
        """Add one pass of the encoder over all rows: 2 n d F."""
        self.flops += 2.0 * self.n * self.d * self.n_features

    def read_out(self, n_codes: int, n_alphas: int) -> None:
        """Add moments of states and codes, six eigendecompositions, and scores of all penalties."""
        d, moments = self.d, 2.0 * self.n * self.d**2 + 2.0 * n_codes * self.d
        # 9 d³ per eigendecomposition; per fold two rotations, and per penalty one product, d² F.
        scores = 2.0 * 5 * (2 + n_alphas) * d**2 * self.n_features
        self.flops += moments + 6 * 9.0 * d**3 + scores

    def decode(self, fit: DecoderFit) -> None:
        """Add products of the codes, and one factor per system of equations."""
        per_row = fit.n_active / max(1, self.n)
        self.flops += 2.0 * fit.n_active * (per_row + self.d)
        # Cholesky F³/3 and two triangular solutions 2 F² d.
        one = fit.n_live**3 / 3 + 2.0 * fit.n_live**2 * self.d
        self.flops += fit.n_factors * one

    def alternate(self, n_codes: int) -> None:
        """Add the steps on the encoder: four products with the active codes each."""
        self.flops += (N_STEPS + 1) * 4 * 2.0 * n_codes * self.d
