"""Comparison of kept states with the model that should have computed them.

Problem: a column taken for the one beside it, or a row for the one before it, gives maps and scores
that look right. Mechanism: the first sequences are run through the real model, and the states that
should be those of a hook point are compared with all of its hook points, with the final norm
applied, and at the positions before and after. Without a model, equal tokens must have equal
embeddings.

Limits: a few sequences of the first block are compared, not all.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models._hook_points import EMBED, place, residual_post
from lrt_lens.models._hooked_model import HookedModel

logger = logging.getLogger(__name__)

Text = tuple[Sequence[int], Mapping[str, Tensor]]
"""Token ids of a sequence, and its states ``{hook: [token, d]}``."""

TOLERANCES = {torch.bfloat16: 0.06, torch.float16: 0.02}
"""Largest relative difference of states that count as equal, by precision."""
_TOLERANCE = 2e-3
_FINAL_NORM = "the output of the last block behind the final norm"
_SHIFTS = (0, 1, -1)


def verify_states(texts: Sequence[Text], model: HookedModel, where: str) -> None:
    """Compare states with those of the real model.

    Args:
        texts: sequences and their states.
        model: model that should have computed them.
        where: name of the store, for messages.

    Raises:
        MismatchError: states are those of another hook point, position or model; the message names
            which, if they are found anywhere.
    """
    kept = {hook: place(hook) for hook in texts[0][1]}
    references = [_references(ids, model, list(kept.values())) for ids, _ in texts]
    for hook, own_name in kept.items():
        states = [rows[hook].float() for _, rows in texts]
        tolerance = max(_tolerance(rows[hook]) for _, rows in texts)
        expected = _difference(states, [one.get(own_name) for one in references])
        if expected <= tolerance:
            continue
        found = [
            (_difference(states, [one[name] for one in references], shift), name, shift)
            for name in references[0]
            for shift in _SHIFTS
        ]
        best, name, shift = min(found)
        # The embedding and the stream before block 0 may be equal: the expected name comes first.
        for difference, own, by in found:
            if own == own_name and difference <= max(best, tolerance):
                best, name, shift = difference, own, by
        if hook == EMBED and name == "blocks.0.hook_resid_pre" and not shift and best <= tolerance:
            # Engines count the embeddings of positions as part of the embedding.
            logger.warning(
                "%r of %s is the stream before block 0, which has the embeddings of positions in"
                " it; token identity is predicted from that",
                hook,
                where,
            )
            continue
        raise MismatchError(_complaint(hook, expected, (best, name, shift), tolerance, where))


def _complaint(
    hook: str, expected: float, found: tuple[float, str, int], tolerance: float, where: str
) -> str:
    best, name, shift = found
    begin = (
        f"the states of {hook!r} in {where!r} differ from those of the model by {expected:.2g}"
        " (relative)"
    )
    if best > tolerance:
        return (
            f"{begin}, and no other hook point or position is nearer than {best:.2g}; expected at"
            f" most {tolerance:g}: give the model, revision and tokens that the engine had"
        )
    what = name if name == _FINAL_NORM else repr(name)
    if name == _FINAL_NORM and not shift:
        return (
            f"{begin}: they are {_FINAL_NORM}, which is no state of the stream; leave the column"
            " out, or keep the state before the norm (the output of the last block)"
        )
    if shift:
        later = "before" if shift > 0 else "behind"
        position = f" at the position {later} the token that stands there"
        if name == hook:
            return (
                f"{begin}: they are those{position} (shifted by one); write the states so that row"
                " i is the state that has read token i"
            )
        what += position
    return (
        f"{begin}: they are those of {what} (difference {best:.2g}); mend layer_ids or hooks"
        " (layer ids count the embedding as 0, so that the output of block k is k + 1)"
    )


def _tolerance(states: Tensor) -> float:
    """Return the largest relative difference of states that count as equal.

    Numbers that a format of half precision holds exactly are of that precision, also if they were
    written as float32, because tables and numpy have no bfloat16.
    """
    for dtype, tolerance in TOLERANCES.items():
        if states.dtype == dtype or torch.equal(states.to(dtype).to(states.dtype), states):
            return tolerance
    return _TOLERANCE


def _references(ids: Sequence[int], model: HookedModel, kept: Sequence[str]) -> dict[str, Tensor]:
    """Return the states of a sequence, [token, d], at all hook points and behind the final norm.

    Those between attention and MLP are left out unless they are in ``kept``.
    """
    names = [
        name
        for name in model.hook_points
        if name in (EMBED, "blocks.0.hook_resid_pre", *kept) or name.endswith("hook_resid_post")
    ]
    tokens = model.pad([list(ids)])
    states = {
        name: rows[0].float().cpu() for name, rows in model.engine.capture(tokens, names).items()
    }
    normed = _behind_final_norm(model, tokens)
    if normed is not None and normed.shape == states[residual_post(model.n_layers - 1)].shape:
        states[_FINAL_NORM] = normed
    return states


def _behind_final_norm(model: HookedModel, tokens: Tensor) -> Tensor | None:
    """Return the last of the hidden states of transformers, [token, d]; None if it has none."""
    inner: Any = getattr(model.engine.model, "base_model", None)
    if inner is None:
        return None
    try:
        with torch.inference_mode():
            output = inner(input_ids=tokens.to(model.device), use_cache=False)
    except (TypeError, ValueError, RuntimeError):  # a model of another interface
        return None
    last = getattr(output, "last_hidden_state", None)
    return None if last is None else last[0].float().cpu()


def _difference(
    states: Sequence[Tensor], references: Sequence[Tensor | None], shift: int = 0
) -> float:
    """Return the median over tokens of |state − reference| / |reference|.

    With ``shift`` s, the state of row i is compared with the reference of row i − s.
    """
    ratios = []
    for ours, theirs in zip(states, references, strict=True):
        if theirs is None or ours.shape != theirs.shape:
            return float("inf")
        n = len(ours) - abs(shift)
        a, b = (ours[max(shift, 0) :][:n].cpu(), theirs[max(-shift, 0) :][:n])
        ratios.append((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-30))
    return float(torch.cat(ratios).median())


def refuse_shifted_embedding(texts: Sequence[tuple[Sequence[int], Tensor]], where: str) -> None:
    """Refuse embeddings that belong to the token before or behind; ``texts`` are (ids, [token, d]).

    Equal tokens have equal embeddings; where they have not, embeddings of positions may be in them,
    and nothing can be said.

    Raises:
        MismatchError: equal tokens have different embeddings, and their neighbours equal ones.
    """
    spreads = {shift: _spread(texts, shift) for shift in _SHIFTS}
    if not spreads[0] > 1e-6:
        return
    for shift in (1, -1):
        if spreads[shift] <= 1e-6:
            later = "before" if shift > 0 else "behind"
            raise MismatchError(
                f"the embeddings in {where!r} are those of the token {later} the one that stands"
                " there (shifted by one position): equal tokens have different embeddings, and"
                " their neighbours equal ones; write the states so that row i belongs to token i"
            )


def _spread(texts: Sequence[tuple[Sequence[int], Tensor]], shift: int) -> float:
    """Return the largest relative distance of the embeddings of equal tokens; NaN if none repeats.

    With ``shift`` s, row i is taken for that of token i − s.
    """
    first: dict[int, Tensor] = {}
    distances = []
    for ids, rows in texts:
        n = len(ids) - abs(shift)
        tokens = np.asarray(ids)[max(-shift, 0) :][:n].tolist()
        for token, row in zip(tokens, rows[max(shift, 0) :][:n].double().cpu(), strict=True):
            known = first.setdefault(token, row)
            if known is not row:
                distances.append(float((row - known).norm() / known.norm().clamp(min=1e-30)))
    return max(distances, default=float("nan"))
