"""Numbers of hidden states in engines, and the hook points that they are.

Problem: engines number the states of the stream from the embedding on, and this package names them
by blocks, so that a number taken for the other is wrong by one block. Mechanism: one table.

    state                              transformers, vLLM    hook point
    embedding, before block 0          0                     hook_embed
    output of block k                  k + 1                 blocks.{k}.hook_resid_post

    hooks_of_layer_ids([0, 3])                             # hook_embed, blocks.2.hook_resid_post
    layer_ids_of_hooks(["blocks.2.hook_resid_post"])       # [3]

Limits: the last of the ``hidden_states`` of transformers has passed the final norm of the model,
while the last id of vLLM (the number of blocks) has not. Models that add embeddings of positions
have these in state 0, which ``hook_embed`` of a model that runs here does not.
"""

from collections.abc import Sequence

from lrt_lens.errors import HookPointError
from lrt_lens.models._hook_points import EMBED, RESIDUAL, place, residual_post


def hooks_of_layer_ids(layer_ids: Sequence[int]) -> tuple[str, ...]:
    """Return the hook point of each number of a hidden state: 0 is the embedding.

    Raises:
        HookPointError: a number is negative or no whole number, or one occurs twice.
    """
    for number in layer_ids:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise HookPointError(
                f"layer id {number!r} is no number of a hidden state; expected 0 for the embedding,"
                " k + 1 for the output of block k"
            )
    if len(set(layer_ids)) < len(layer_ids):
        raise HookPointError(f"layer ids {list(layer_ids)} name a state twice; give each once")
    return tuple(EMBED if number == 0 else residual_post(number - 1) for number in layer_ids)


def layer_ids_of_hooks(hooks: Sequence[str]) -> list[int]:
    """Return the number of the hidden state at each hook point.

    Raises:
        HookPointError: an engine has no state there (``hook_resid_mid``).
    """
    numbers = []
    for hook in hooks:
        canonical = place(hook)
        match = RESIDUAL.fullmatch(canonical)
        if canonical in (EMBED, "blocks.0.hook_resid_pre"):
            numbers.append(0)
        elif match is not None and match[2] == "post":
            numbers.append(int(match[1]) + 1)
        else:
            raise HookPointError(
                f"engines keep no hidden state at {hook!r}; choose '{EMBED}', or"
                " hook_resid_pre or hook_resid_post of a block"
            )
    return numbers
