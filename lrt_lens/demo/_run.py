"""The main workflow on the bundled pair: harvest, stitch, transfer, controls, report.

    lrt-lens demo --out demo-report

Problem: a first look must take minutes and no download. Mechanism: `run_demo` computes, and exports
a vector into ``vectors/``; `write_demo` writes ``results.json``, ``report.html`` and ``stitch/``.

Limits: the demo reads the bundled models and texts; for other models call the functions that
`run_demo` calls.
"""

import logging
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from lrt_lens._progress import tqdm
from lrt_lens.adapters.probes._evaluation import ProbeEvaluation, evaluate_probe
from lrt_lens.adapters.saes._evaluation import evaluate_sae
from lrt_lens.adapters.saes._evaluation_result import SAEEvaluation
from lrt_lens.adapters.saes.refit._settings import RefitSettings
from lrt_lens.adapters.vectors._evaluation import evaluate_steering
from lrt_lens.adapters.vectors._steering_result import SteeringEvaluation
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
from lrt_lens.demo._checks import checked_numbers
from lrt_lens.demo._export import export_checked
from lrt_lens.demo._result import DemoResult
from lrt_lens.demo._side_by_side import side_by_side
from lrt_lens.models._hook_points import same_place
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._harvesting import harvest
from lrt_lens.serving import ExportCheck
from lrt_lens.stitching._fit import fit_grid, token_identity_map
from lrt_lens.stitching._grid import StitchGrid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching._stitch_loss import StitchLoss, evaluate_stitch_loss

logger = logging.getLogger(__name__)

DEMO_SOURCE_LAYER = 2
"""Layer of the small model at which vectors are learnt: the middle, as in the papers."""
PROBE_TASKS = ("sentiment", "register")
"""Tasks of the probes: is a review positive; is a text a story or a review."""
SAE_MAPS = 8
"""Largest number of random maps of an SAE, few to keep the demo short."""
REFIT_TOKENS = 12_000
"""Number of tokens on which the SAE is refitted, few to keep the demo short."""
_EXPORT_TEXTS = 8
"""Number of neutral texts on which the exported vector is calibrated, few to keep the demo
short."""
_CONTINUATION_ARMS = ("none", "native", "transferred", "shuffled")
"""Arms whose continuations are shown side by side."""
_CONTINUATION_BOOST = 2.0
"""Multiple of the calibrated scale at which continuations are sampled.

At a damage of 0.1 nats per token the change of tone is real but easy to miss.
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
    vectors: Path | None = None,
) -> DemoResult:
    """Return a stitch of the bundled pair and the evaluations of all that it transfers.

    Args:
        concepts: concepts of the steering vectors.
        source_layer: layer of the small model from which vectors, probes and the SAE are
            transferred.
        n_tokens: tokens of the harvest.
        n_random: draws of each control: random directions, maps of shuffled pairs and permuted
            labels for the vectors, random maps for the SAE.
        loss_tokens: tokens on which the stitched loss and the SAEs are evaluated.
        damage: nats per token on neutral text at which vectors are compared.
        seed: seed of folds, draws and bootstraps.
        progress: show progress bars.
        vectors: folder of the exported vector of the first concept; a temporary one if None.

    Raises:
        OSError: the vector cannot be written.
        ValueError: a number is out of its range.
    """
    arguments = {
        "concepts": list(concepts),
        "source_layer": source_layer,
        "n_tokens": n_tokens,
        "n_random": n_random,
        "loss_tokens": loss_tokens,
        "damage": damage,
        "seed": seed,
    }
    checked_numbers(damage, n_tokens, n_random, loss_tokens, seed)
    started = time.perf_counter()
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    # Harvest, stitched loss, SAEs and export, and a step for each concept and probe.
    steps = _progress_bar(4 + len(concepts) + len(PROBE_TASKS), progress)
    pair = demo_pair()
    # `fit_stitches` does the same: the moments of this pair fit any memory.
    grid = fit_grid(harvest(pair, demo_documents(), n_tokens=n_tokens, **common), progress=progress)
    # The source layer is fixed; cross-validation chooses the target layer.
    stitch = grid.best(source=source_layer)
    steps.update()
    tasks = _stages(pair, grid, stitch, arguments)
    found = side_by_side(tasks, steps.update)
    evaluations = {concept: found[f"steer {concept}"][0] for concept in concepts}
    continuations = {concept: found[f"steer {concept}"][1] for concept in concepts}
    exports = _exported(pair, evaluations[concepts[0]], vectors)
    steps.update()
    steps.close()
    return DemoResult(
        pair=pair,
        grid=grid,
        stitch=stitch,
        evaluations=evaluations,
        continuations=continuations,
        loss=found["loss"],
        probes={task: found[f"probe {task}"] for task in PROBE_TASKS},
        sae=found["sae"],
        exports=exports,
        arguments=arguments,
        seconds=time.perf_counter() - started,
    )


def _stages(
    pair: ModelPair, grid: StitchGrid, stitch: Stitch, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the stages that do not depend on each other, longest first."""
    concepts, loss_tokens = arguments["concepts"], arguments["loss_tokens"]
    n_random = arguments["n_random"]
    # Bars of several threads would overwrite each other.
    quiet: dict[str, Any] = {"seed": arguments["seed"], "progress": False}
    steered = {"damage": arguments["damage"], "n_random": n_random, **quiet}
    of_saes = {"n_random": min(n_random, SAE_MAPS), "n_tokens": loss_tokens, **quiet}
    tasks: dict[str, Any] = {
        f"steer {concept}": partial(_steer_concept, pair, stitch, concept, **steered)
        for concept in concepts
    }
    tasks["sae"] = partial(evaluate_demo_saes, pair, stitch, **of_saes)
    tasks["loss"] = partial(_evaluate_loss, pair, grid, stitch, n_tokens=loss_tokens, **quiet)
    tasks |= {
        f"probe {task}": partial(_evaluate_task, pair, stitch, task, **quiet)
        for task in PROBE_TASKS
    }
    return tasks


def _progress_bar(total: int, progress: bool) -> Any:
    # Steps differ in length, so the bar shows their number and no time to go.
    bar_format = "{desc}: step {n_fmt}/{total_fmt} [{elapsed}]"
    return tqdm(total=total, desc="demo", disable=not progress, bar_format=bar_format)


def _evaluate_loss(pair: ModelPair, grid: StitchGrid, stitch: Stitch, **options: Any) -> StitchLoss:
    token = token_identity_map(grid.moments, stitch.target_hook)
    return evaluate_stitch_loss(pair, stitch, demo_documents(), token_maps=token, **options)


def _evaluate_task(pair: ModelPair, stitch: Stitch, task: Any, **options: Any) -> ProbeEvaluation:
    texts, labels = demo_texts(task)
    return evaluate_probe(
        pair, stitch, texts, labels, ks=(10, 30, 100), n_seeds=3, task=task, **options
    )


def _evaluate_concept(
    pair: ModelPair, stitch: Stitch, concept: Concept, *, n_random: int, **options: Any
) -> SteeringEvaluation:
    contrast, hook = demo_contrast(concept), stitch.source_hook
    vector = SteeringVector.mean_difference(pair.source, contrast, at=hook, read="last")
    # A part of the neutral texts keeps the demo short.
    items, neutral = demo_items(concept), demo_neutral()[:20]
    draws = dict.fromkeys(("n_random", "n_permuted", "n_shuffled"), n_random)
    return evaluate_steering(pair, stitch, vector, items, neutral=neutral, **draws, **options)


def _steer_concept(
    pair: ModelPair, stitch: Stitch, concept: Concept, *, seed: int, **options: Any
) -> tuple[SteeringEvaluation, Any]:
    """Return the evaluation of a concept's vector, and continuations under it."""
    evaluation = _evaluate_concept(pair, stitch, concept, seed=seed, **options)
    prompts = demo_prompts(concept)[:4]
    return evaluation, sample_continuations(pair, evaluation, prompts, seed=seed)


def _exported(
    pair: ModelPair, evaluation: SteeringEvaluation, folder: Path | None
) -> dict[str, ExportCheck]:
    """Return the certificates of the exported vector, by file."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return _exported(pair, evaluation, Path(temporary))
    vector, neutral = evaluation.vectors["transferred"], demo_neutral()[:_EXPORT_TEXTS]
    return export_checked(
        pair.target, vector, neutral, evaluation.budget, evaluation.concept, folder
    )


def evaluate_demo_saes(pair: ModelPair, stitch: Stitch, **options: Any) -> SAEEvaluation | None:
    """Return the evaluation of the small model's SAE transferred to the large model.

    It is also refitted there, and both are compared with the large model's own SAE. The result is
    None, with a warning, if sae-lens cannot be imported or the stitch connects other hook points
    than those of the SAEs.
    """
    try:
        small, large = demo_sae("small"), demo_sae("large")
    except ImportError as error:
        # sae-lens fails to import if TransformerLens 4 is installed.
        logger.warning("sae-lens cannot be imported (%s); no SAE is transferred", error)
        return None
    hooks = (str(small.cfg.metadata.hook_name), str(large.cfg.metadata.hook_name))
    if not (same_place(stitch.source_hook, hooks[0]) and same_place(stitch.target_hook, hooks[1])):
        logger.warning(
            "the stitch connects %s and %s, the bundled SAEs read %s and %s; none is transferred",
            stitch.source_hook,
            stitch.target_hook,
            *hooks,
        )
        return None
    refit = RefitSettings(n_tokens=REFIT_TOKENS)
    return evaluate_sae(pair, stitch, small, demo_documents(), native=large, refit=refit, **options)


def sample_continuations(
    pair: ModelPair, evaluation: SteeringEvaluation, prompts: list[str], *, seed: int = 0
) -> list[dict[str, str]]:
    """Return what the target generates after each prompt, per arm: rows of prompt, arm and text.

    Vectors are applied at twice their calibrated scale; an arm without one is left out.
    """
    summary = evaluation.summary
    # Scale at equal damage, by arm; NaN for an arm of several vectors.
    scales: dict[str, float] = dict(zip(summary["arm"], summary["scale"], strict=True))
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
