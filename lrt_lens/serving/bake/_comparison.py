"""Logits of a baked folder, compared with those of our hooks on the model.

    measured = compare_logits(model, hooks, baked_logits)
    measured.largest_difference, measured.largest_effect

Problem: a wrong place for a bias gives a model that runs and is wrong. Mechanism: the written files
are loaded by transformers (and PEFT), without this package's hooks, and their logits of some rows
are compared with those of the model under our hooks, at all positions. The folder appears only if
they agree.

Limits: rows of random tokens, at most 16 positions; in half precision two orders of arithmetic
differ by more than a small vector changes.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models._comparing import tolerance, without_cache
from lrt_lens.models._hook_points import EMBED
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._loading import thread_count_unchanged
from lrt_lens.serving.bake._adapter import require_peft, twin_of

_N_ROWS, _N_TOKENS = 4, 16
"""Number and length of the rows that are compared."""
_SHARE = {torch.float32: 2e-3, torch.float64: 2e-3}
"""Largest difference as a share of the vector's effect; 5 % in other dtypes."""
_HALF_STEPS = 2.0
"""Steps of half precision by which logits differ when the same sum is rounded in another order."""


@dataclass(frozen=True)
class BakeMeasure:
    """Logits of a baked model and of the model under hooks, over all positions of some rows."""

    largest_difference: float
    """max |Δ logits| between the baked model and the hooks."""
    largest_effect: float
    """max |Δ logits| between the hooks and the model without them."""
    largest_logit: float
    n_rows: int
    n_tokens: int
    dtype: str

    def refuse_other_function(self, name: str) -> None:
        """Raise an error if the baked model computes something else than the hooks.

        Raises:
            MismatchError: the difference is more than rounding.
        """
        dtype = getattr(torch, self.dtype)
        # Rounding of the steered stream, and of the logits themselves.
        limit = _SHARE.get(dtype, 0.05) * self.largest_effect
        is_half = dtype not in _SHARE
        steps = _HALF_STEPS * torch.finfo(dtype).eps if is_half else 1e-2 * tolerance(dtype)
        limit += steps * self.largest_logit
        if not self.largest_difference <= limit:
            raise MismatchError(
                f"baked into {name!r}, the vector changes logits by other amounts than as a hook:"
                f" max |Δ| {self.largest_difference:.3g}, of an effect of {self.largest_effect:.3g}"
                f" ({self.dtype}); expected at most {limit:.3g}. Nothing was written; export the"
                " vector for an engine that adds it itself (vector.export(path, to=...))"
            )

    @property
    def fields(self) -> dict[str, Any]:
        """Fields as JSON stores them."""
        return asdict(self)


def probe_rows(model: HookedModel) -> Tensor:
    """Return rows of random tokens [row, position]."""
    generator = torch.Generator().manual_seed(0)
    length = min(_N_TOKENS, model.context_length)
    return torch.randint(0, model.d_vocab, (_N_ROWS, length), generator=generator)


def compare_logits(
    model: HookedModel, hooks: Mapping[int | str, Any], baked: Any, *, dtype: torch.dtype
) -> BakeMeasure:
    """Return how far the logits of a baked model are from those of the hooks."""
    rows = probe_rows(model)
    with torch.inference_mode():
        plain = model.engine.logits(rows).cpu().double()
        with model.intervene(dict(hooks)):
            hooked = model.engine.logits(rows).cpu().double()
        got = _logits(baked, rows)
    # Masked tokens have −inf in all three.
    finite = hooked.isfinite() & plain.isfinite()
    differences = [(a - b)[finite].abs().max() for a, b in ((got, hooked), (hooked, plain))]
    n_rows, n_tokens = rows.shape
    return BakeMeasure(
        largest_difference=float(differences[0]),
        largest_effect=float(differences[1]),
        largest_logit=float(hooked[finite].abs().max()),
        n_rows=n_rows,
        n_tokens=n_tokens,
        dtype=str(dtype).removeprefix("torch."),
    )


def largest_component(model: HookedModel, baked: Any, direction: Tensor, tokenizer: Any) -> float:
    """Return max |⟨h, v̂⟩| / ‖h‖ of a baked model over all hook points behind the embedding."""
    other = HookedModel(baked, tokenizer=tokenizer, name=model.name)
    names = [name for name in other.hook_points if name != EMBED]
    states = other.engine.capture(probe_rows(model), names)
    along = direction.double() / direction.double().norm()
    return max(
        float(((h.double().cpu() @ along.cpu()).abs() / h.double().cpu().norm(dim=-1)).max())
        for h in states.values()
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Return a context in which transformers shows no progress bars and no warnings."""
    from transformers.utils import logging as of_transformers

    verbosity, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(verbosity)
        if bars:
            of_transformers.enable_progress_bar()


def load_baked(folder: Path, hf_model: Any, form: str) -> Any:
    """Return the model in a baked folder, as transformers or PEFT load it."""
    from transformers import AutoModelForCausalLM

    if form == "lora":
        return require_peft().PeftModel.from_pretrained(twin_of(hf_model), str(folder)).eval()
    options: dict[str, Any] = {"dtype": hf_model.dtype}
    attention = getattr(hf_model.config, "_attn_implementation", None)
    if attention:
        options["attn_implementation"] = attention
    with thread_count_unchanged():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model.eval().to(next(hf_model.parameters()).device)


def _logits(baked: Any, rows: Tensor) -> Float[Tensor, "row position vocabulary"]:
    call: Callable[..., Any] = baked
    device = next(baked.parameters()).device
    inner = baked.get_base_model() if hasattr(baked, "get_base_model") else baked
    return call(input_ids=rows.to(device), **without_cache(inner)).logits.cpu().double()
