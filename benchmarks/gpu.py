"""Throughput and overhead of a harvest on an accelerator, and the rounding of its sums.

    python -m benchmarks.gpu --out benchmarks/gpu.json        # one accelerator with 80 GB
    python -m benchmarks.gpu --device cpu --quick             # tiny shapes: shows that it runs

The models have random weights and real shapes: Pythia-70m → 160m and GPT-2 small → medium in
float32, 1.3B → 7B in bfloat16. For each pair, the benchmark measures tokens per second of three
calls and of the two bare decoders on the same batches, and gives their ratios: `harvest` of all
proportional pairs with the shuffled null, `harvest` of one pair, and `survey` of all pairs on
20,000 tokens, scores included. It then measures the error of moments with float32 and float64
products on the device, relative to float64 on the CPU.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
)

from benchmarks.models import random_documents, write_tokenizer
from benchmarks.products import relative_error, streams
from lrt_lens.data import N_PARTS, BlockPlan, iterate_blocks
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.moments import CrossMoments, harvest
from lrt_lens.stitching import survey

_CONTEXT, _BATCH_TOKENS, _WARM_UP_TOKENS = 512, 16_384, 20_000
_SURVEY_TOKENS = 20_000
"""Tokens of a survey, the default."""


@dataclass(frozen=True)
class Case:
    """Two model configurations, their dtype, and the tokens of the harvest."""

    name: str
    source: PretrainedConfig
    target: PretrainedConfig
    dtype: str
    n_tokens: int


def main(
    out: Path | None = None,
    device: str = "cuda",
    quick: bool = False,
    only: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Measure every case and the rounding of sums.

    Args:
        out: JSON file of the results; by default none is written.
        device: device on which to run.
        quick: use tiny shapes.
        only: names of cases; by default all.
        seed: seed of weights and documents.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "error: no CUDA device here; --device cpu --quick shows that the script runs"
        )
    selected = [case for case in cases(quick) if not only or case.name in only]
    results = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "quick": quick,
        "cases": [measure(case, device, seed) for case in selected],
        "accumulation": accumulation_error(device, 20_000 if quick else 1_000_000, seed),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def cases(quick: bool) -> list[Case]:
    """The pairs of models to measure."""
    if quick:
        return [Case("tiny", _neox(32, 3, 2, 300), _neox(48, 4, 2, 300), "float32", 4_000)]
    pythia = _neox(512, 6, 8, 50_304), _neox(768, 12, 12, 50_304)
    gpt2 = _gpt2(768, 12, 12), _gpt2(1024, 24, 16)
    llama = _llama(2048, 24, 16, 5504), _llama(4096, 32, 32, 11_008)
    return [
        Case("pythia-70m_160m", *pythia, "float32", 2_000_000),
        Case("gpt2_small_medium", *gpt2, "float32", 1_000_000),
        Case("1.3b_7b", *llama, "bfloat16", 200_000),
    ]


@dataclass(frozen=True)
class Work:
    """One call that is compared with the bare decoders on the same batches."""

    name: str
    n_tokens: int
    run: Callable[[ModelPair, list[str], int | None], int]
    """Function from (pair, documents, number of tokens) to the number of rows."""


def works(case: Case) -> list[Work]:
    """The calls that are measured for each pair of models."""
    options: dict[str, Any] = {
        "context_length": _CONTEXT,
        "batch_tokens": _BATCH_TOKENS,
        "progress": False,
    }
    middle = (case.source.num_hidden_layers // 2, case.target.num_hidden_layers // 2)
    few = min(case.n_tokens, _SURVEY_TOKENS)
    return [
        Work(
            "proportional",
            case.n_tokens,
            lambda pair, texts, n: (
                harvest(pair, texts, target_layers="proportional", n_tokens=n, **options).n_tokens
            ),
        ),
        Work(
            "one_pair",
            case.n_tokens,
            lambda pair, texts, n: (
                harvest(pair, texts, pairs=[middle], n_tokens=n, **options).n_tokens
            ),
        ),
        Work(
            "survey",
            few,
            lambda pair, texts, n: survey(pair, texts, n_tokens=n, **options).moments.n_tokens,
        ),
    ]


def measure(case: Case, device: str, seed: int) -> dict[str, Any]:
    """Tokens per second of each call and of the bare decoders, timed after a warm-up of both."""
    pair, folder = _pair(case, device, seed)
    lengths = (_CONTEXT, 2 * _CONTEXT) if case.n_tokens > _WARM_UP_TOKENS else (30, 60)
    documents = list(random_documents(folder, case.n_tokens + case.n_tokens // 4, lengths, seed))
    warm_up = list(
        random_documents(folder, min(_WARM_UP_TOKENS, case.n_tokens), (20, 60), seed + 1)
    )
    decoders = [model.bridge.original_model.base_model for model in (pair.source, pair.target)]
    results = {}
    for work in works(case):
        plan = BlockPlan(
            context_length=_CONTEXT, n_tokens=work.n_tokens, max_document_tokens="auto"
        )
        batches = [
            pair.source.pad([window.ids for window in batch])
            for block in iterate_blocks(documents, pair.source, plan)
            for batch in block.batches(_BATCH_TOKENS)
        ]
        work.run(pair, warm_up, None)
        _bare(decoders, batches[:2], device)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        rows: list[int] = []
        ours = _seconds(partial(_append, rows, work, pair, documents), device)
        result: dict[str, Any] = {"tokens": rows[0], "seconds": ours}
        if device.startswith("cuda"):
            result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        bare = _seconds(partial(_bare, decoders, batches, device), device)
        results[work.name] = result | {
            "bare_seconds": bare,
            "tokens_per_second": rows[0] / ours,
            "bare_tokens_per_second": rows[0] / bare,
            "overhead": ours / bare,
        }
    return {"name": case.name, "dtype": case.dtype, "works": results}


def _append(rows: list[int], work: Work, pair: ModelPair, documents: list[str]) -> None:
    """Run a call and append its number of rows."""
    rows.append(work.run(pair, documents, work.n_tokens))


def accumulation_error(device: str, n_rows: int, seed: int) -> dict[str, float]:
    """Relative errors of scatters and of a ridge map, per precision of the products.

    The reference is float64 on the CPU.
    """
    x, y = streams(n_rows, seed)
    documents = torch.arange(n_rows) // 100
    exact = CrossMoments.from_activations(x, y, documents=documents, moment_dtype=torch.float64)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        moments = CrossMoments.from_activations(
            x.to(device), y.to(device), documents=documents, moment_dtype=dtype
        )
        name = str(dtype).removeprefix("torch.")
        hook_pair = exact.pairs[0]
        parts = range(N_PARTS)
        scatter, reference = moments.scatter(hook_pair, parts), exact.scatter(hook_pair, parts)
        errors[f"scatter_{name}"] = relative_error(scatter.xx, reference.xx)
        errors[f"cross_{name}"] = relative_error(scatter.xy, reference.xy)
        errors[f"map_{name}"] = relative_error(
            moments.fit().best(by="r2_cv").up.weight, exact.fit().best(by="r2_cv").up.weight
        )
    return errors


def _pair(case: Case, device: str, seed: int) -> tuple[ModelPair, Path]:
    """A pair of random models, built on the device, and the folder of its tokenizer.

    The models are not written to disk, because 7B parameters would take long to write and read.
    """
    torch.manual_seed(seed)
    folder, tokenizer = write_tokenizer(case.source.vocab_size)
    models = []
    for config in (case.source, case.target):
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
            ).eval()
        models.append(HookedModel.load(model, tokenizer=tokenizer))
    return ModelPair(*models), folder


def _neox(d: int, layers: int, heads: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * d,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )


def _gpt2(d: int, layers: int, heads: int) -> GPT2Config:
    return GPT2Config(n_embd=d, n_layer=layers, n_head=heads)


def _llama(d: int, layers: int, heads: int, mlp: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        vocab_size=32_000,
        max_position_embeddings=2048,
    )


def _bare(decoders: list[nn.Module], batches: list[Tensor], device: str) -> None:
    """Run the bare decoders on all batches."""
    with torch.inference_mode():
        for batch in batches:
            for decoder in decoders:
                decoder(input_ids=batch.to(device), use_cache=False)


def _seconds(run: Callable[[], Any], device: str) -> float:
    """Wall-clock seconds of a call, including the work that it leaves on the device."""
    # CUDA calls return before their work is done: wait for the device before each reading.
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    synchronise()
    started = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
