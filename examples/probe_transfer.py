"""Stitching, figures 3a, 9 and 10: does a probe of the small model classify on the large model?

    python examples/probe_transfer.py                              # bundled pair and texts
    python examples/probe_transfer.py --task-file reviews.jsonl    # rows {"text": …, "label": …}
    # a data set of the sae-probes package, by file name
    python examples/probe_transfer.py --sae-probes 5_hist_fig_ismale

By default there are two tasks from the bundled texts: sentiment (the contrast set) and register
(story or review, documents of the map's test fold). Dense probes are logistic regressions on the
mean state. Sparse probes read k features of the transferred SAE, of the target's own SAE, or of
random directions. The paper (arXiv 2506.06609) prints no accuracies, only plots (y from .5 to 1)
with the conclusion "zero-shot transfer ≈ native" for dense probes. Our numbers test it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.models import Read, same_place
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Task,
    Verdict,
    bundled_tasks,
    run,
    sae_probes_task,
    task_from_file,
)

CLOSE = 0.05
"""Difference of accuracy up to which zero-shot counts as ≈ native."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Tasks and probes."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "n_texts": 90,
        "target_layer": 3,
        "n_draws": 1,
        "ks": (10,),
        "sparse_ks": (1, 5),
    }
    n_tokens: int = 60_000
    """Tokens of the harvest."""
    source_layer: int | None = None
    """Layer at which probes are learnt; by default the SAE's layer, or the middle layer."""
    target_layer: int | str | None = None
    """Layer at which probes are judged; by default chosen by cross-validation."""
    task_file: Path | None = None
    """JSON Lines with `text` and `label`; by default the bundled tasks."""
    sae_probes: str | None = None
    """Name of a data set of the package sae-probes, instead of texts."""
    target_sae: str | None = None
    """SAE of the target, a SAELens folder; by default the bundled one, for the bundled pair."""
    n_texts: int = 1_000
    """Number of texts per task at most."""
    read: Read = "mean"
    """Position at which a text is read."""
    ks: tuple[int, ...] = (10, 30, 100)
    """Numbers of target labels in the learning curve."""
    sparse_ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Numbers of features that a sparse probe reads."""
    n_draws: int = 20
    """Number of draws of each control."""


def reproduce(options: Options) -> Reproduction:
    """Transfer dense and sparse probes and judge them."""
    stitch, table, sparse, figures = measured(options)
    chance = float(table["chance"].mean())
    without_labels = table[(table["k"] == 0) | (table["arm"] == "native")]
    by_arm = without_labels.groupby("arm")["accuracy"].mean()
    zero, native = float(by_arm["transferred"]), float(by_arm["native"])
    controls = {
        arm: float(by_arm[arm])
        for arm in ("token_identity", "shuffled", "random", "permuted")
        if arm in by_arm
    }
    control = max(controls, key=lambda arm: controls[arm])
    close = native - zero <= CLOSE
    is_new_probe_better, sparse_words = sparse_probes(sparse)
    verdict: Verdict = (
        "holds"
        if close and control != "token_identity" and is_new_probe_better
        else "holds with a caveat"
    )
    if not zero > controls[control]:
        verdict = "does not survive its null"
    control_name = control.replace("_", " ")
    return Reproduction(
        name="probe_transfer",
        title="Probes of the small model on the large model",
        paper="Stitching, figures 3a, 9 and 10",
        claim="Dense probes transferred zero-shot are about as accurate as native probes; sparse "
        "probes have to be fitted again.",
        compared=[
            Compared(
                "accuracy of the transferred dense probe, mean over tasks",
                zero,
                "≈ native, plots only",
                control=controls[control],
                control_name=control_name,
            ),
            Compared(
                "accuracy of the native dense probe",
                native,
                "plots only",
                control=chance,
                control_name="largest class",
            ),
        ],
        says="This shows whether a probe still works through this stitch on these texts, and how "
        "much of that token identity alone would give. It does not show that a probe would work "
        "between other models, nor that the model uses the probe's direction.",
        verdict=verdict,
        because=f"transferred {zero:.3f}, native {native:.3f} "
        f"({'within' if close else 'not within'} {CLOSE:g}), the strongest control "
        f"({control_name}) {controls[control]:.3f}, chance {chance:.3f}; {sparse_words}.",
        figures=figures,
        tables={
            "Dense probes": table,
            **({"Sparse probes": pd.concat(sparse, ignore_index=True)} if sparse else {}),
        },
        details={"stitch": repr(stitch)},
    )


def measured(
    options: Options,
) -> tuple[lrt.Stitch, pd.DataFrame, list[pd.DataFrame], dict[str, go.Figure]]:
    """The stitch, accuracies of dense probes, tables of sparse probes, and the figures."""
    pair, corpus = options.pair(), options.texts()
    own, theirs = saes(options)
    stitch, token_map = fit(pair, corpus, options, own)
    dense, sparse, figures = [], [], {}
    for task in tasks(options):
        result = lrt.evaluate_probe(
            pair,
            stitch,
            task.texts,
            task.labels,
            read=options.read,
            token_map=token_map,
            task=task.name,
            ks=options.ks,
            n_random=options.n_draws,
            n_permuted=options.n_draws,
            n_shuffled=options.n_draws,
            seed=options.seed,
        )
        dense.append(result.summary.assign(chance=result.chance))
        figures[f"{task.name}: accuracy of every arm, and over labels of the target"] = (
            result.figure()
        )
        if is_at(own, stitch.source_hook):
            native = theirs if is_at(theirs, stitch.target_hook) else None
            train, test = task.split()
            evaluation = lrt.evaluate_sparse_probes(
                pair,
                stitch,
                train.texts,
                train.labels,
                test_texts=test.texts,
                test_labels=test.labels,
                source_sae=own,
                native_sae=native,
                ks=options.sparse_ks,
                n_random=options.n_draws,
                task=task.name,
                seed=options.seed,
            )
            sparse.append(evaluation.table)
            figures[f"{task.name}: accuracy over the number of SAE features"] = evaluation.figure()
    return stitch, pd.concat(dense, ignore_index=True), sparse, figures


def is_at(sae: Any, hook_point: str) -> bool:
    """Return True if there is an SAE and its hook point is this one."""
    return sae is not None and same_place(str(sae.cfg.metadata.hook_name), hook_point)


def sparse_probes(tables: list[pd.DataFrame]) -> tuple[bool, str]:
    """Judge if probes of transferred features are better when fitted again, with the numbers."""
    if not tables:
        return False, "sparse probes were not measured"
    mean = pd.concat(tables).groupby("arm")["accuracy"].mean()
    transferred, again = float(mean["transferred"]), float(mean["transferred_new_probe"])
    words = (
        f"sparse probes, mean over tasks and k: as transferred {transferred:.3f}, fitted again "
        f"{again:.3f}, random features {mean['random']:.3f}"
    )
    return again > transferred, words


def fit(
    pair: lrt.ModelPair, corpus: Any, options: Options, own: Any
) -> tuple[lrt.Stitch, lrt.AffineMap]:
    """The stitch with its null, and the token identity map to the source hook point.

    The token identity map goes from the target's embedding to the activations at the source.
    """
    at = str(own.cfg.metadata.hook_name) if own is not None else pair.source.n_layers // 2
    source: Any = at if options.source_layer is None else options.source_layer
    layers: Any = "all" if options.target_layer is None else [options.target_layer]
    shared: dict[str, Any] = {"n_tokens": options.n_tokens, "seed": options.seed}
    stitch = lrt.fit_stitches(
        pair, corpus, source_layers=[source], target_layers=layers, null="full", **shared
    ).best()
    moments = lrt.harvest(
        pair.reversed(),
        corpus,
        source_layers=[stitch.target_hook],
        target_layers=[stitch.source_hook],
        null=False,
        **shared,
    )
    return stitch, lrt.token_identity_map(moments, stitch.source_hook)


def tasks(options: Options) -> list[Task]:
    """The requested tasks, shuffled, with at most `n_texts` texts each."""
    if options.task_file is not None:
        requested = [task_from_file(options.task_file)]
    elif options.sae_probes is not None:
        requested = [sae_probes_task(options.sae_probes)]
    else:
        requested = bundled_tasks(options.seed)
    return [task.sample(options.n_texts, options.seed) for task in requested]


def saes(options: Options) -> tuple[Any, Any]:
    """The SAEs of source and target; None if the option is missing and models are not bundled."""
    own = options.source_sae() if options.bundled or options.sae else None
    theirs = (
        options.load_sae(options.target_sae, "--target-sae", "large")
        if options.bundled or options.target_sae
        else None
    )
    return own, theirs


if __name__ == "__main__":
    run(reproduce)
