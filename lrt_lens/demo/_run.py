"""The whole main job on the bundled pair: harvest, stitch, transfer, controls, report.

    lrt-lens demo --out demo-report

`run_demo` computes, `write_demo` writes ``results.json``, ``report.html`` and ``stitch/``; both
work on any `ModelPair` with texts of one's own.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from lrt_lens.adapters.probes._evaluation import evaluate_probe
from lrt_lens.adapters.saes._evaluation import SAEEvaluation, evaluate_sae
from lrt_lens.adapters.vectors._evaluation import SteeringEvaluation, evaluate_steering
from lrt_lens.adapters.vectors._steering_vector import SteeringVector
from lrt_lens.bundled._models import demo_pair
from lrt_lens.bundled._saes import demo_sae
from lrt_lens.bundled._texts import (
    CONCEPTS,
    Concept,
    demo_contrast,
    demo_documents,
    demo_items,
    demo_neutral,
    demo_prompts,
    demo_texts,
)
from lrt_lens.demo._result import DemoResult
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.report._results import write_results
from lrt_lens.stitching._fit import fit_stitches
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import StitchLoss, evaluate_stitch_loss, token_identity_map

logger = logging.getLogger(__name__)

DEMO_SOURCE_LAYER = 2
"""Where the demo's vectors are learnt in the small model: the middle of its stack, as the papers
choose it.
"""
PROBE_TASKS = ("sentiment", "register")
"""What probes are asked: is a review positive, is a text a story or a review."""
_CONTINUATION_ARMS = ("none", "native", "transferred", "shuffled")
_CONTINUATION_BOOST = 2.0
"""Continuations are sampled at this multiple of the calibrated scale: at 0.1 nats a change of tone
is real but easy to miss.
"""


def run_demo(
    *,
    concepts: tuple[Concept, ...] = CONCEPTS,
    source_layer: int = DEMO_SOURCE_LAYER,
    n_tokens: int = 120_000,
    n_random: int = 20,
    loss_tokens: int = 6_000,
    damage: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Fit the bundled pair's grid, and evaluate the stitched model and what is carried across."""
    started = time.perf_counter()
    steps = tqdm(
        total=3 + len(concepts) + len(PROBE_TASKS),
        desc="demo",
        disable=not progress,
        bar_format="{desc}: step {n_fmt}/{total_fmt} [{elapsed}]",
    )
    pair = demo_pair()
    steps.update()
    grid = fit_stitches(pair, demo_documents(), n_tokens=n_tokens, seed=seed, progress=progress)
    stitch = grid.best(source=source_layer)
    steps.update()
    evaluations, continuations = {}, {}
    for concept in concepts:
        vector = SteeringVector.mean_difference(
            pair.source, demo_contrast(concept), at=stitch.source_hook, read="last"
        )
        evaluations[concept] = evaluate_steering(
            pair,
            stitch,
            vector,
            demo_items(concept),
            neutral=demo_neutral()[:20],
            damage=damage,
            n_random=n_random,
            seed=seed,
            progress=progress,
        )
        continuations[concept] = sample_continuations(
            pair, evaluations[concept], demo_prompts(concept)[:4], seed=seed
        )
        steps.update()
    token = token_identity_map(grid.moments, stitch.target_hook)
    loss = evaluate_stitch_loss(
        pair,
        stitch,
        demo_documents(),
        n_tokens=loss_tokens,
        token_maps=token,
        seed=seed,
        progress=progress,
    )
    probes = {}
    for task in PROBE_TASKS:
        probes[task] = evaluate_probe(
            pair,
            stitch,
            *demo_texts(task),
            ks=(10, 30, 100),
            n_seeds=3,
            task=task,
            seed=seed,
            progress=progress,
        )
        steps.update()
    sae = evaluate_demo_saes(pair, stitch, n_tokens=loss_tokens, seed=seed, progress=progress)
    steps.update()
    steps.close()
    arguments = {
        "concepts": list(concepts),
        "source_layer": source_layer,
        "n_tokens": n_tokens,
        "n_random": n_random,
        "loss_tokens": loss_tokens,
        "damage": damage,
        "seed": seed,
    }
    return DemoResult(
        pair,
        grid,
        stitch,
        evaluations,
        continuations,
        loss,
        probes,
        sae,
        arguments,
        time.perf_counter() - started,
    )


def evaluate_demo_saes(pair: ModelPair, stitch: Stitch, **options: Any) -> SAEEvaluation | None:
    """The small model's SAE carried to the large one, beside the large one's own; None where the
    stitch joins other hook points than theirs.
    """
    try:
        small, large = demo_sae("small"), demo_sae("large")
    except ImportError as error:
        logger.warning(
            "sae-lens does not import (%s), as beside TransformerLens 4; no SAE is carried", error
        )
        return None
    theirs = (str(small.cfg.metadata.hook_name), str(large.cfg.metadata.hook_name))
    if not (
        same_place(stitch.source_hook, theirs[0]) and same_place(stitch.target_hook, theirs[1])
    ):
        logger.warning(
            "the stitch joins %s and %s, the bundled SAEs read %s and %s; none is carried",
            stitch.source_hook,
            stitch.target_hook,
            *theirs,
        )
        return None
    return evaluate_sae(pair, stitch, small, demo_documents(), native=large, **options)


def sample_continuations(
    pair: ModelPair, evaluation: SteeringEvaluation, prompts: list[str], *, seed: int = 0
) -> list[dict[str, str]]:
    """What the target writes after each prompt under the arms that read well side by side."""
    scales: dict[str, float] = dict(
        zip(evaluation.summary["arm"], evaluation.summary["scale"], strict=True)
    )
    rows = []
    for arm in _CONTINUATION_ARMS:
        vector = evaluation.vectors.get(arm)
        if arm == "none":
            texts = pair.target.generate(prompts, seed=seed)
        elif vector is None or math.isnan(scales[arm]):
            continue
        else:
            with vector.apply(pair.target, scale=_CONTINUATION_BOOST * scales[arm]):
                texts = pair.target.generate(prompts, seed=seed)
        rows += [
            {"prompt": prompt, "arm": arm, "text": text}
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    return rows


def write_demo(result: DemoResult, out: Path) -> Path:
    """Write ``results.json``, ``report.html`` and ``stitch/`` into ``out``; returns the report's
    path.
    """
    from lrt_lens.demo._report import demo_report
    from lrt_lens.report._html import write_html

    write_results(out / "results.json", result.arguments, demo_tables(result))
    result.stitch.save_pretrained(out / "stitch")
    return write_html(out / "report.html", demo_report(result))


def demo_tables(result: DemoResult) -> dict[str, Any]:
    """What ``results.json`` holds besides versions and arguments."""
    keys = ("source_hook", "target_hook", "r2", "r2_uniform", "r2_null", "r2_token")
    return {
        "pair": {"source": result.pair.source.name, "target": result.pair.target.name},
        "grid": result.grid.scores,
        "stitch": {key: result.stitch.scores[key] for key in keys},
        "alignment": result.grid.moments.provenance.alignment,
        "steering": pd.concat(
            [evaluation.table for evaluation in result.evaluations.values()], ignore_index=True
        ),
        "steering_summary": pd.concat(
            [evaluation.summary for evaluation in result.evaluations.values()], ignore_index=True
        ),
        "contrast_scores": {
            concept: vars(e.contrast_score)
            for concept, e in result.evaluations.items()
            if e.contrast_score is not None
        },
        "stitched_loss": stitched_loss_table(result.loss),
        "stitched_loss_arms": result.loss.table,
        "probes": pd.concat(
            [evaluation.table for evaluation in result.probes.values()], ignore_index=True
        ),
        "probes_summary": pd.concat(
            [evaluation.summary for evaluation in result.probes.values()], ignore_index=True
        ),
        "sae": [] if result.sae is None else result.sae.table,
        "continuations": [
            {"concept": concept, **row}
            for concept, rows in result.continuations.items()
            for row in rows
        ],
        "seconds": result.seconds,
    }


def stitched_loss_table(loss: StitchLoss) -> pd.DataFrame:
    """A row per untouched model (A, B) and path, Stitching's table 1: path, cross_entropy (nats per
    token) with its interval, and what it is worth.
    """
    names = {"route": "path", "ce": "cross_entropy", "ce_low": "low", "ce_high": "high"}
    columns = [*names.values(), "finishes_in", "increase_percent", "recovered", "kl"]
    return loss.summary.rename(columns=names).loc[:, columns]


def refuse_unwritable(out: Path) -> None:
    """Raise before any work is done where ``out`` cannot be written."""
    from lrt_lens._files import write_atomically

    probe = write_atomically(
        out / ".lrt_lens_probe", lambda temporary: temporary.write_text(json.dumps({}))
    )
    probe.unlink()
