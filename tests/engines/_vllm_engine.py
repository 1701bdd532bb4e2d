"""Helpers of the scripts for vLLM: the engine, and how a prompt is read."""
# pyright: reportMissingImports=false

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from _consumer import Case, Reading
from torch import Tensor

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The hook that `LLM.apply_model` sends is a Python function.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@cache
def engine(folder: str) -> Any:
    """Return vLLM with the model of a folder in float32.

    Prefixes are not cached, because a cached prefix would stay unsteered.
    """
    os.environ.update(SETTINGS)
    from vllm import LLM

    return LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=16,
        max_logprobs=-1,
        enable_prefix_caching=False,
    )


Extra = Callable[[], dict[str, Any] | None]
"""Returns the ``extra_args`` of a request; vllm-lens empties the dictionary that it is given."""


def prompts_of(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    """Return token ids as vLLM takes them."""
    return [{"prompt_token_ids": row} for row in rows]


def text_scores(llm: Any, rows: list[list[int]], extra: Extra) -> list[float]:
    """Return the log probability of each text behind its first token, in nats."""
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, extra_args=extra())
    outputs = llm.generate(prompts_of(rows), settings, use_tqdm=False)
    return [
        sum(
            found[token].logprob
            for token, found in zip(row[1:], output.prompt_logprobs[1:], strict=True)
        )
        for row, output in zip(rows, outputs, strict=True)
    ]


def decoded(llm: Any, case: Case, extra: Extra) -> tuple[list[Tensor], list[list[int]]]:
    """Return log probabilities [position, vocabulary] and decoded tokens of each row."""
    from vllm import SamplingParams

    n_decoded = len(case.rows[0]["continuation"])
    settings = SamplingParams(
        temperature=0,
        max_tokens=n_decoded,
        ignore_eos=True,
        prompt_logprobs=-1,
        logprobs=-1,
        extra_args=extra(),
    )
    rows = [row["prompt"] for row in case.rows]
    outputs = llm.generate(prompts_of(rows), settings, use_tqdm=False)
    logits = []
    for output in outputs:
        positions = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        values = torch.empty(len(positions), len(positions[0]))
        for position, found in enumerate(positions):
            for token, one in found.items():
                values[position, token] = one.logprob
        logits.append(values)
    return logits, [list(output.outputs[0].token_ids) for output in outputs]


def vllm_reading(llm: Any, case: Case, plain: list[float] | None, extra: Extra) -> Reading:
    """Return the reading of an engine that is already steered, or steered by ``extra``."""
    logits, continuations = decoded(llm, case, extra)
    return Reading(logits, text_scores(llm, case.neutral, extra), plain, continuations)
