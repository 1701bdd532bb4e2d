"""How another program reads what an artefact reads: hook points in words and in hidden states.

    stream_rule("blocks.3.hook_resid_post", model).hidden_state     # 4
    stream_rule("blocks.3.hook_resid_post", model).words            # 'output of decoder block 3'

Problem: other programs count the states of a model in other ways, and an index that is off by one
gives wrong numbers without an error. Mechanism: a hook point is described in words, and by its
index in ``hidden_states`` of Hugging Face's ``output_hidden_states=True`` where that holds the same
state. There is no such index for the output of the last block, which the library stores behind the
final norm only, and for the state between attention and MLP.

Limits: ``hidden_states`` are those of plain transformers. Other engines number their layers in
their own way.
"""

from dataclasses import dataclass

from lrt_lens.models._hook_points import EMBED, RESIDUAL, joint_parts
from lrt_lens.models._identity import ModelIdentity


@dataclass(frozen=True)
class StreamRule:
    """Place of a hook point in a model that another program runs."""

    words: str
    """Place in words, with blocks counted from 0."""
    hidden_state: int | None
    """Index in ``hidden_states`` of Hugging Face; None if these do not hold the state."""
    note: str = ""
    """Reason why there is no index, or what has to be done to the state; empty if nothing."""
    subtracts_mean: bool = False
    """True if the mean over the dimensions has to be subtracted from each state first."""


def stream_rule(hook: str, model: ModelIdentity | None) -> StreamRule:
    """Return where a program without this library finds the state at a hook point."""
    index, words, note = _place(hook, None if model is None else model.n_layers)
    centred = model is not None and model.basis == "centred"
    if centred:
        extra = "subtract from each state its mean over the dimensions (centred residual basis)"
        note = f"{note}; {extra}" if note else extra
    return StreamRule(words, index, note, centred)


def _place(hook: str, n_layers: int | None) -> tuple[int | None, str, str]:
    """Return index, words and note of a hook point."""
    if len(parts := joint_parts(hook)) > 1:
        return (
            None,
            " and ".join(_place(part, n_layers)[1] for part in parts),
            ("several hook points, whose states are concatenated in this order"),
        )
    if hook == EMBED:
        return None, "embedding of the token", "before position embeddings, if the model adds any"
    match = RESIDUAL.fullmatch(hook)
    if match is None:
        return None, f"hook point {hook!r}", "this name is not one of the residual stream's"
    block, part = int(match[1]), match[2]
    if part == "pre":
        return block, f"input of decoder block {block}", ""
    if part == "mid":
        return (
            None,
            f"between attention and MLP of decoder block {block}",
            ("hidden_states do not hold it: hook the input of the norm before the MLP"),
        )
    words = f"output of decoder block {block}"
    if n_layers is None:
        return block + 1, words, "unless it is the last block, whose output has no index"
    if block == n_layers - 1:
        return (
            None,
            words,
            (
                "the last block: hidden_states[-1] is behind the final norm, so hook the output of "
                "the block"
            ),
        )
    return block + 1, words, ""
