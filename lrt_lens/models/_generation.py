"""Lengths of generated text: how many new tokens a generation config asks for, and have room.

Problem: a config may limit the new tokens (``max_new_tokens``) or the whole text (``max_length``),
and a model without a table of positions writes beyond its context without an error. Mechanism:
either limit becomes a number of new tokens for each length of a prompt, and is cut to the context.

    n_new_tokens(config, 12)                            # tokens behind a prompt of 12
    within_context(config, 12, 64, "gpt2")              # the config with at most 52 new tokens

Limits: what stops a text earlier (end-of-text tokens, stop strings) is left to transformers.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

_DEFAULT_NEW_TOKENS = 20
"""Number of new tokens that transformers writes where a config has no limit."""


def n_new_tokens(config: Any, length: int) -> int:
    """Return the number of new tokens that a config asks for behind a prompt of ``length`` tokens.

    Raises:
        ValueError: ``max_length`` leaves no new token.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        return _DEFAULT_NEW_TOKENS
    if config.max_length <= length:
        raise ValueError(
            f"max_length={config.max_length} of the generation_config leaves no new token behind a"
            f" prompt of {length} tokens, which it counts; give max_new_tokens, or a larger"
            " max_length"
        )
    return config.max_length - length


def n_free(config: Any, context_length: int) -> int:
    """Return the number of tokens of the context that a prompt which is cut leaves free.

    At least half of the context stays for the prompt.
    """
    wanted = 1 if config.max_new_tokens is None and config.max_length else n_new_tokens(config, 0)
    return max(1, min(wanted, context_length // 2))


def within_context(config: Any, length: int, context_length: int, name: str) -> Any:
    """Return a config whose continuations of prompts of ``length`` tokens fit the context.

    Raises:
        ValueError: there is no room for a token.
    """
    room = context_length - length
    if room < 1:
        raise ValueError(
            f"a prompt has {length} tokens, and {name!r} reads {context_length}, so there is no"
            " room for a new one; give shorter prompts, or truncation='left'"
        )
    fitting = copy.deepcopy(config)
    fitting.max_new_tokens, fitting.max_length = min(n_new_tokens(config, length), room), None
    return fitting


def equally_long(rows: Sequence[Sequence[int]], n_together: int) -> Iterator[list[int]]:
    """Yield the numbers of rows of equal length, at most ``n_together`` at once.

    Only prompts of equal length share a batch. Nothing is padded, so position p is the same
    distance from the start in every row.
    """
    for length in sorted({len(row) for row in rows}):
        batch = [index for index, row in enumerate(rows) if len(row) == length]
        for start in range(0, len(batch), n_together):
            yield batch[start : start + n_together]
