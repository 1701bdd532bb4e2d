"""Every result with a ``figure()`` draws it in the one template, with titled axes, at any width.

Each class has a small table here; a class with a ``figure`` and no table fails the first test.
"""

import importlib
import inspect
import itertools
import math
import pkgutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

import lrt_lens
from lrt_lens.adapters.concepts import ConceptInterpolation, ConceptTransfer
from lrt_lens.adapters.labels import LabelSavings
from lrt_lens.adapters.layers import LayerChoice
from lrt_lens.adapters.lenses import LensEvaluation
from lrt_lens.adapters.probes import ProbeEvaluation
from lrt_lens.adapters.saes import (
    CodeMapEvaluation,
    DecoderGeometry,
    FeatureEvaluation,
    FeatureMatches,
    SAEEvaluation,
    SAEInitialisation,
    SAEScaling,
    SAETraining,
    SparseProbeEvaluation,
)
from lrt_lens.adapters.saes._initialisation import threshold_table
from lrt_lens.adapters.saes._scaling import fit_arms, frontier_of
from lrt_lens.adapters.saes.features._contexts import TopContexts
from lrt_lens.adapters.saes.features._page import FeaturePage, TokenContext
from lrt_lens.adapters.saes.features._result import OutputTokens
from lrt_lens.adapters.vectors import (
    AblationEvaluation,
    Calibration,
    ClampEvaluation,
    PropensityEvaluation,
    SteeringEvaluation,
    SubspaceFidelity,
    TransferComparison,
)
from lrt_lens.baselines import FamilyBaselines
from lrt_lens.diffing import ModelDiff
from lrt_lens.domains import DomainMatrix
from lrt_lens.figures import TEMPLATE_NAME
from lrt_lens.moments import CrossMoments, Scatter
from lrt_lens.moments._scatter import DenseSecondMoment
from lrt_lens.statistics import Interval
from lrt_lens.stitching import (
    AffineMap,
    LearningCurve,
    MapDiagnostics,
    SolverComparison,
    Stitch,
    StitchGrid,
    StitchLoss,
    Survey,
    map_diagnostics,
)
from lrt_lens.stitching.solvers import Ridge
from lrt_lens.updates import UpdateReport
from tests.figures.counts import counts_of

SOURCE, TARGET = "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"
ARMS = ("none", "native", "transferred", "shuffled", "random")
SCORES = {
    "source_hook": SOURCE,
    "target_hook": TARGET,
    "solver": "ridge",
    "n_tokens": 1000,
    "alpha": 0.1,
    "alpha_down": 0.1,
    "r2": 0.6,
    "r2_cv": 0.55,
    "r2_uniform": 0.5,
    "r2_uniform_cv": 0.45,
    "gain_cv": 0.3,
    "r2_down": 0.7,
    "r2_down_cv": 0.65,
    "r2_uniform_down": 0.6,
    "r2_uniform_down_cv": 0.55,
    "cosine": 0.8,
    "cka": 0.7,
    "r2_null": -0.05,
    "r2_token": 0.2,
    "r2_uniform_token": 0.25,
}


def around(
    name: str, value: float, width: float = 0.05, ends: tuple[str, str] | None = None
) -> dict[str, float]:
    """Return the columns of a number with its interval."""
    low, high = ends or (f"{name}_low", f"{name}_high")
    return {name: value, low: value - width, high: value + width}


def diagnostics() -> MapDiagnostics:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = x - x.mean(0)
    gram = DenseSecondMoment(centred.T @ centred)
    scatter = Scatter(200.0, x.mean(0), x.mean(0), gram.matrix, gram, gram)
    return map_diagnostics(AffineMap(torch.eye(6) * 2, torch.zeros(6), SOURCE, TARGET), scatter)


def transfers() -> TransferComparison:
    """Return three rules on one concept, one of them without a number."""
    rows = [
        {"concept": "mood", "rule": rule}
        | {
            f"{name}{end}": value + width
            for name in ("fraction", "fraction_mean", "difference", "difference_mean")
            for end, width in (("_low", -0.1), ("", 0.0), ("_high", 0.2))
        }
        | {"fraction_of_native": value, "flag": ""}
        for rule, value in (("native", 1.0), ("ridge, last", 0.7), ("LDA, last", float("nan")))
    ]
    table = pd.DataFrame(rows).assign(n_items=48, n_texts=16)
    return TransferComparison(table, 0.1, "ridge, last")


def steering() -> SteeringEvaluation:
    curves = [
        {"concept": "mood", "arm": arm, "draw": None, "scale": scale, "damage": 0.1 * scale**2}
        | around("propensity", (1 + i) * scale)
        for i, arm in enumerate(ARMS)
        for scale in ([0.0] if arm == "none" else [0.5, 1.0, 1.5])
    ]
    summary = [
        {"concept": "mood", "arm": arm, "flag": ""}
        | around("effect_at_equal_damage", float(i), ends=("low", "high"))
        for i, arm in enumerate(ARMS)
    ]
    counted = pd.DataFrame(summary).assign(n_items=48, n_texts=16)
    return SteeringEvaluation(pd.DataFrame(curves), counted, 0.1, {})


def ablation() -> AblationEvaluation:
    rows = [
        {"where": where, "arm": arm}
        | around("drop", 1.0)
        | around("share", 0.5)
        | around("damage", 0.1)
        for where, arm in itertools.product(("hook", "everywhere"), ARMS)
    ]
    return AblationEvaluation(pd.DataFrame(), pd.DataFrame(rows).assign(n=32))


def clamping() -> ClampEvaluation:
    rows = [
        {"concept": "mood", "arm": arm, "clipped_ratio": 1.0}
        | around("share", 0.5, ends=("low", "high"))
        for arm in ARMS
    ]
    return ClampEvaluation(pd.DataFrame(), pd.DataFrame(rows).assign(n=32))


def code_map() -> CodeMapEvaluation:
    rows = [
        {"arm": arm} | around("r2", 0.5) | around("r2_uniform", 0.4)
        for arm in ("s2l", "l2l", "reconstruction")
    ]
    numbers = np.linspace(-0.5, 0.9, 9)
    agreements = {f"agreement_{arm}": numbers for arm in ("s2l", "l2l", "other", "random")}
    return CodeMapEvaluation(
        pd.DataFrame(rows).assign(n_documents=120),
        pd.DataFrame({"feature": range(9), "cosine": numbers} | agreements),
    )


def concept_transfer() -> ConceptTransfer:
    arms = ("native", "own", "own_disjoint", "other", "source")
    rows = [
        {"concept": "mood", "arm": arm, "draw": None, "beta": beta}
        | around("probability", 50 + 9 * beta, 2)
        for arm, beta in itertools.product(arms, (-1.0, 0.0, 1.0))
    ]
    rows.append(
        {"concept": "mood", "arm": "none", "draw": None, "beta": 0.0}
        | around("probability", 50.0, 2)
    )
    summary = [
        {"concept": "mood", "arm": arm, "cosine": 0.7, "flag": ""}
        | around("effect_at_equal_damage", 1.0, ends=("low", "high"))
        | around("effect", 1.0)
        for arm in arms
    ]
    counted = pd.DataFrame(summary).assign(n_items=48, n_texts=16)
    return ConceptTransfer(pd.DataFrame(rows), counted, {}, 0.1)


def interpolation() -> ConceptInterpolation:
    rows = [
        {
            "concept": "mood",
            "arm": arm,
            "n": n,
            "draw": draw,
            "d": 100,
            "n_over_d": n / 100,
            "cosine": 0.9,
            "norm_ratio": 1.0,
            "interpolates": n < 100,
        }
        for arm, n, draw in itertools.product(("own", "noise_source", "other"), (50, 250), (0, 1))
    ]
    return ConceptInterpolation(pd.DataFrame(rows), {"mood": 50})


def geometry() -> DecoderGeometry:
    arms = ("matched", "shuffled", "random_unit")
    numbers = {"norm": 10.0, "residual": 4.0, "chance": 6.0, "share": 0.4, "r2": 0.5, "cosine": 0.8}
    shape = {"draw": 0, "n_features": 50, "d_source": 16, "leverage": 0.4}
    rows = [{"arm": arm} | shape | numbers for arm in arms]
    features = [
        {"arm": "matched", "feature": i, "error": 0.5 + 0.01 * i, "variance": 1.0, "cosine": 0.8}
        for i in range(20)
    ]
    return DecoderGeometry(pd.DataFrame(rows), pd.DataFrame(features))


def probes(kind: Any) -> Any:
    arms = ("source", "native", "transferred", "shuffled", "fine_tuned", "scratch")
    rows = [
        {"task": "mood", "arm": arm, "k": k, "auroc": 0.9}
        | around("accuracy", 0.8, ends=("low", "high"))
        for arm in arms
        for k in (
            (1, 10) if arm in ("fine_tuned", "scratch") or kind is SparseProbeEvaluation else (0,)
        )
    ]
    table = pd.DataFrame(rows)
    return (
        kind(table, 0.5, 100, {})
        if kind is SparseProbeEvaluation
        else kind(table, table, 0.5, 100, {})
    )


def propensity() -> PropensityEvaluation:
    rows = [
        {
            "task": task,
            "arm": arm,
            "draw": None,
            "scale": scale,
            "r": 0.1 * scale,
            "r_change": 0.2,
            "mse": 0.3,
            "mse_share": 0.4,
        }
        for task, arm, scale in itertools.product(("one-task", "another-task"), ARMS, (-1.0, 1.0))
    ]
    table = pd.DataFrame(rows).assign(n_test=40)
    return PropensityEvaluation(table, pd.DataFrame(), pd.DataFrame())


def saes() -> SAEEvaluation:
    metrics = {
        "l0": 20.0,
        "fvu": 0.2,
        "delta_ce": 0.3,
        "ce_recovered": 0.9,
        "ce_recovered_zero": 0.95,
        "dead_fraction": 0.1,
    }
    rows = [
        {"arm": arm, "model": "large"}
        | {k: v for name, value in metrics.items() for k, v in around(name, value).items()}
        for arm in ARMS[1:]
    ]
    table = pd.DataFrame(rows).assign(n_tokens=20_000, n_documents=80)
    return SAEEvaluation(table, pd.DataFrame(), SOURCE, TARGET)


def history(arms: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {
            "arm": arm,
            "seed": 0,
            "tokens": tokens,
            "flops": 1e6 * tokens,
            "explained_variance": value,
            "l0": 20.0,
            "dead_fraction": 0.1,
        }
        for arm in arms
        for tokens, value in ((0, 0.1), (1000, 0.5), (10_000, 0.8))
    ]
    return pd.DataFrame(rows)


def initialisation() -> SAEInitialisation:
    arms = ("transferred", "scratch", "rotated")
    cosines = pd.DataFrame(
        [{"arm": arm, "decoder_cosine": 0.1 * i} for arm in arms for i in range(9)]
    )
    given: dict[str, Any] = {
        "history": history(arms),
        "cosines": cosines,
        "thresholds": threshold_table(
            history(arms), [0.5, 0.95], {"scratch": 0.0, "transferred": 1e6, "rotated": 0.0}
        ),
        "n_held_out": 4096,
    }
    fields = inspect.signature(SAEInitialisation).parameters.values()
    return SAEInitialisation(
        **{
            one.name: given.get(one.name, {float: 0.0, int: 1}.get(one.annotation, pd.DataFrame()))
            for one in fields
        }
    )


def scaling() -> SAEScaling:
    runs = [
        history(("transferred", "scratch", "rotated")).assign(width=width) for width in (64, 128)
    ]
    table = pd.concat(runs, ignore_index=True)
    table = table.assign(
        fvu=1 - table["explained_variance"],
        training=table["flops"],
        stitch=table["flops"],
        source_sae=np.nan,
    )
    frontier = frontier_of(table, 5)
    return SAEScaling(
        table, frontier, fit_arms(frontier), initialisation().savings.assign(width=64)
    )


def stitch_loss() -> StitchLoss:
    rows = [
        {
            "route": route,
            "arm": arm,
            "finishes_in": "large",
            "kl": 0.2,
            "recovered": 0.5,
            "increase_percent": 10.0,
        }
        | around("ce", 3.0 + 0.5 * i)
        for route in ("A→B", "B→A")
        for i, arm in enumerate(("own", "mean", "zero", "stitched", "shuffled", "token"))
    ]
    table = pd.DataFrame(rows).assign(n_tokens=20_000, n_documents=80)
    return StitchLoss(table, pd.DataFrame(), SOURCE, TARGET)


def comparison() -> SolverComparison:
    rows = [
        {
            "solver": solver,
            "source_hook": SOURCE,
            "target_hook": TARGET,
            "direction": way,
            "r2": 0.6,
            "r2_uniform": 0.5,
            "r2_null": -0.1,
            "r2_token": 0.2,
        }
        for solver, way in itertools.product(("ridge", "procrustes"), ("up", "down"))
    ]
    return SolverComparison(pd.DataFrame(rows).assign(n=1000))


def grid() -> SimpleNamespace:
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
    rows = [
        SCORES | {"source_hook": s, "target_hook": t}
        for s, t in itertools.product(hooks[:3], hooks)
    ]
    return SimpleNamespace(scores=pd.DataFrame(rows))


def page() -> FeaturePage:
    context = TokenContext([" the", "<b>", " film"], [0.0, 2.0, 0.5], [0.1, 1.0, 0.0], 1)
    return FeaturePage(
        7,
        ("small", "large"),
        (SOURCE, TARGET),
        {},
        {"source": [context], "target": [context]},
        {"source": [], "target": []},
    )


def features() -> FeatureEvaluation:
    rng = np.random.default_rng(0)
    names = (
        "attribution_r",
        "attribution_r_random",
        "attribution_r_shuffled",
        "attribution_r_other",
        "attribution_r_low",
        "attribution_r_high",
        "rho_write",
        "rho_read",
        "density_source",
        "density_target",
        "max_activation_source",
        "max_activation_target",
        "entropy_share_source",
        "entropy_share_target",
    )
    table = pd.DataFrame(
        {"feature": range(60), "kind": ["semantic", "structural", "undecided"] * 20}
        | {name: rng.uniform(0, 1, 60) for name in names}
    )
    heads = [
        {
            "feature": f,
            "model": model,
            "layer": 3,
            "head": head,
            "effect_choosing": 0.02,
            "effect_random": 0.01,
            "n_examples": 64,
        }
        | around("effect", 0.02, 0.01, ends=("low", "high"))
        for f, model, head in itertools.product((0, 1), ("source", "target"), (0, 1))
    ]
    contexts, tokens = TopContexts(60, 1, 1), OutputTokens(torch.zeros(60, 2), torch.zeros(60, 2))
    return FeatureEvaluation(
        table,
        pd.DataFrame(heads),
        "small",
        "large",
        SOURCE,
        TARGET,
        20_000,
        "logits",
        (0.02, 0.02),
        (contexts, contexts),
        (tokens, tokens),
    )


def family() -> FamilyBaselines:
    rows = [
        {"method": method, "effect_null": 0.1, "auroc_null": 0.5}
        | around("cosine", 0.7)
        | around("fraction_of_native", 0.6, ends=("fraction_low", "fraction_high"))
        | around("share_of_native", 0.8, ends=("share_low", "share_high"))
        | around("effect", 1.0)
        | around("auroc", 0.8)
        for method in ("stitch", "anchors", "random", "native")
    ]
    return FamilyBaselines(pd.DataFrame(rows), 0.1, SOURCE, TARGET, 20, 50)


def matches() -> FeatureMatches:
    numbers = np.linspace(0.2, 0.95, 30)
    table = pd.DataFrame(
        {
            "source": range(30),
            "target": range(30),
            "correlation": numbers,
            "correlation_test": numbers - 0.05,
        }
    )
    return FeatureMatches(table.assign(firings_source=10, firings_target=10), 40, 50, 1000, 1000)


def calibration() -> Calibration:
    curve = pd.DataFrame({"scale": [0.0, 1.0, 2.0], "damage": [0.0, 0.05, 0.2]})
    return Calibration(1.5, 0.1, 0.1, curve, n_texts=16)


def training() -> SAETraining:
    runs = history(("this run",)).drop(columns=["arm", "seed"])
    return SAETraining(None, runs, 1.0, torch.zeros(3), SOURCE, n_held_out=4096)


def layer_choice() -> LayerChoice:
    rows = [
        {
            "source_hook": f"blocks.{source}.hook_resid_post",
            "target_hook": f"blocks.{target}.hook_resid_post",
            "predicted": 0.1 * source + 0.2 * target,
            "auroc": 0.6 + 0.1 * source,
            "auroc_low": 0.5 + 0.1 * source,
            "auroc_high": 0.7 + 0.1 * source,
        }
        for source in range(2)
        for target in range(3)
    ]
    table = pd.DataFrame(rows).assign(n_texts=96)
    return LayerChoice(table, "vector", "fidelity of reading × gain")


def label_savings() -> LabelSavings:
    arms = {"native": (4, 16), "transferred": (0,), "combined": (4, 16), "shuffled": (0,)}
    rows = [
        {
            "task": "mood",
            "unit": "pairs",
            "measure": measure,
            "arm": arm,
            "k": k,
            "draw": draw,
            "value": 0.5 + k / 50 + draw / 100,
            "weight": 0.5,
        }
        for measure in ("cosine", "auroc")
        for arm, ks in arms.items()
        for k in ks
        for draw in range(3)
    ]
    return LabelSavings(pd.DataFrame(rows), {"cosine": 0.0, "auroc": 0.5}, 20, 20)


def model_diff() -> ModelDiff:
    rows = [
        {"kind": kind, "index": i, "held_out": 0.9 / i, "noise": 0.3}
        | around("eigenvalue", 1.0 / i, 0.1 / i, ends=("low", "high"))
        for kind in ("gained", "lost", "difference", "shared")
        for i in range(1, 8)
    ]
    return ModelDiff(pd.DataFrame(rows), {}, SOURCE, TARGET, {}, 1000, {})


def update_report() -> UpdateReport:
    arms = ("old", "frozen", "repaired", "relearnt", "shuffled")
    rows = [
        {"artefact": name, "arm": arm, "measure": measure}
        | around("value", 0.8, ends=("low", "high"))
        for name, measure in (("probe 1", "auroc"), ("probe 2", "auroc"), ("mood", "effect"))
        for arm in arms
    ]
    summary = [
        {"artefact": "probe 1", "hook": SOURCE, "measure": "auroc", "n": 60},
        {"artefact": "probe 2", "hook": SOURCE, "measure": "auroc", "n": 60},
        {"artefact": "mood", "hook": SOURCE, "measure": "effect", "n": 40},
    ]
    return UpdateReport(pd.DataFrame(summary), pd.DataFrame(rows), {}, {}, n_tokens=1000)


def domains() -> DomainMatrix:
    names = ("stories", "reviews")
    rows = [
        {"fitted_on": a, "scored_on": b, "r2": 0.5, "auroc_share": 0.9, "n_test": 1000}
        for a, b in itertools.product(names, names)
    ]
    return DomainMatrix(pd.DataFrame(rows), pd.DataFrame(), {}, {})


def subspace() -> SubspaceFidelity:
    rows = [
        {"measure": measure, "direction": i, "value": 0.9 / i}
        | around("random_mean", 0.3 / i, 0.1 / i, ends=("random_low", "random_high"))
        for measure in ("correlation", "angle")
        for i in range(1, 4)
    ]
    return SubspaceFidelity(pd.DataFrame(rows), "write", None, 1000, 100)


def curve() -> LearningCurve:
    rows = [
        {"map": "affine", "n_tokens": n, "score": score, "direction": direction}
        | around("value", 0.4 + 0.02 * i, ends=("low", "high"))
        for i, n in enumerate((1000, 1414, 2000))
        for score, direction in (("r2", ""), ("fve_nrm", ""), ("write", "sentiment"))
    ]
    rows.append(rows[-3] | {"map": "mlp"})
    table = pd.DataFrame(rows).rename(columns={"value_low": "low", "value_high": "high"})
    rise = Interval(0.02, 0.01, 0.03)
    fitted = StitchGrid(CrossMoments(((SOURCE, TARGET),)), Ridge(), pd.DataFrame())
    return LearningCurve(table, rise, None, fitted, 500)


def lens() -> LensEvaluation:
    rows = [
        {"arm": arm, "reference": reference} | around("top5", 0.2 + 0.1 * i)
        for reference in ("final prediction", "target lens")
        for i, arm in enumerate(("target lens", "transferred", "source lens", "shuffled"))
    ]
    table = pd.DataFrame(rows).assign(n_tokens=10_000, n_documents=54)
    return LensEvaluation(table, pd.DataFrame(), SOURCE, TARGET, "logit")


FIGURES: dict[str, Any] = {
    "DomainMatrix": lambda: domains().figure(),
    "UpdateReport": lambda: update_report().figure(),
    "SubspaceFidelity": lambda: subspace().figure(),
    "LensEvaluation": lambda: lens().figure(),
    "LearningCurve": lambda: curve().figure(),
    "ModelDiff": lambda: model_diff().figure(),
    "SteeringEvaluation": lambda: steering().figure(),
    "SteeringEvaluation curves": lambda: steering().figure("curves"),
    "SteeringEvaluation damage": lambda: steering().figure("damage"),
    "TransferComparison": lambda: transfers().figure(),
    "TransferComparison mean": lambda: transfers().figure("mean"),
    "AblationEvaluation": lambda: ablation().figure(),
    "ClampEvaluation": lambda: clamping().figure(),
    "CodeMapEvaluation": lambda: code_map().figure(),
    "ConceptTransfer": lambda: concept_transfer().figure(),
    "ConceptTransfer beta": lambda: concept_transfer().figure("beta"),
    "ConceptTransfer weak_to_strong": lambda: concept_transfer().figure("weak_to_strong"),
    "ConceptInterpolation": lambda: interpolation().figure(),
    "DecoderGeometry": lambda: geometry().figure(),
    "FamilyBaselines": lambda: family().figure(),
    "FeatureMatches": lambda: matches().figure(),
    "ProbeEvaluation": lambda: probes(ProbeEvaluation).figure(),
    "SparseProbeEvaluation": lambda: probes(SparseProbeEvaluation).figure(),
    "PropensityEvaluation": lambda: propensity().figure(),
    "SAEEvaluation": lambda: saes().figure(),
    "SAEInitialisation": lambda: initialisation().figure(),
    "SAEInitialisation savings": lambda: initialisation().figure("savings"),
    "SAEScaling": lambda: scaling().figure(),
    "SAETraining": lambda: training().figure(),
    "LabelSavings": lambda: label_savings().figure(),
    "LayerChoice": lambda: layer_choice().figure(),
    "MapDiagnostics": lambda: diagnostics().figure(),
    "StitchLoss": lambda: stitch_loss().figure(),
    "SolverComparison": lambda: comparison().figure(),
    "SolverComparison r2": lambda: comparison().figure("r2"),
    "StitchGrid": lambda: StitchGrid.figure(grid()),  # type: ignore[arg-type]
    "StitchGrid chosen": lambda: StitchGrid.figure(
        grid(),  # type: ignore[arg-type]
        chosen=(SOURCE, TARGET),
    ),
    "Survey": lambda: Survey.figure(grid(), "r2"),  # type: ignore[arg-type]
    "Stitch": lambda: Stitch.figure(
        SimpleNamespace(source_hook=SOURCE, target_hook=TARGET, scores=SCORES)
    ),  # type: ignore[arg-type]
    "FeaturePage": lambda: page().figure(),
    "FeatureEvaluation": lambda: features().figure(),
    "FeatureEvaluation fidelity": lambda: features().fidelity_figure(),
    "FeatureEvaluation entropy": lambda: features().entropy_figure(),
    "FeatureEvaluation attention": lambda: features().attention_figure(),
    "Calibration": lambda: calibration().figure(),
}


def classes_with_figures() -> set[str]:
    """Return the names of all classes of the package that define ``figure``."""
    found = set()
    for module in pkgutil.walk_packages(lrt_lens.__path__, "lrt_lens."):
        if module.name.split(".")[1] in ("__main__", "cli", "reproduction") or module.name.endswith(
            "exploration.widget"
        ):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isclass(value)
                and value.__module__ == module.name
                and "figure" in vars(value)
            ):
                found.add(name)
    return found


def test_every_class_with_a_figure_is_drawn_here() -> None:
    assert classes_with_figures() - {name.split()[0] for name in FIGURES} == set()


def test_every_evaluation_has_a_figure() -> None:
    packages = [importlib.import_module(f"lrt_lens.{name}") for name in lrt_lens._PACKAGES]
    results = {
        name: getattr(package, name)
        for package in [lrt_lens, *packages]
        for name in dir(package)
        if name.endswith(("Evaluation", "Geometry", "Matches", "Transfer", "Loss"))
    }
    assert len(results) >= 12
    assert [
        name
        for name, kind in results.items()
        if inspect.isclass(kind) and not hasattr(kind, "figure")
    ] == []


@pytest.fixture(params=FIGURES, ids=lambda name: name.replace(" ", "-"))
def figure(request: pytest.FixtureRequest) -> go.Figure:
    return FIGURES[request.param]()


def axes(figure: go.Figure) -> dict[str, dict[str, Any]]:
    """Return the axes on which traces are drawn, by name."""
    layout = figure.to_dict()["layout"]
    used = {
        trace.get(f"{letter}axis", letter) for trace in figure.to_dict()["data"] for letter in "xy"
    }
    return {name: layout.get(f"{name[0]}axis{name[1:]}", {}) for name in used}


def is_of_names(figure: go.Figure, name: str) -> bool:
    """Return True if the ticks of an axis are names of arms, solvers or tasks.

    Such an axis needs no title.
    """
    values = [
        value
        for trace in figure.to_dict()["data"]
        if trace.get(f"{name[0]}axis", name[0]) == name and trace["type"] != "heatmap"
        for value in np.ravel(
            np.asarray(trace.get(name[0], [trace.get(f"{name[0]}0", 0)]), dtype=object)
        )[:5]
    ]
    return bool(values) and all(isinstance(value, str) for value in values)


COUNTS = {
    "SubspaceFidelity": "1,000 held-out tokens, 100 random subspaces",
    "LensEvaluation": "10,000 tokens, 54 documents",
    "LearningCurve": "3 points, 500 held-out tokens",
    "SteeringEvaluation": "48 items, 16 neutral texts",
    "SteeringEvaluation curves": "48 items, 16 neutral texts",
    "SteeringEvaluation damage": "48 items, 16 neutral texts",
    "TransferComparison": "48 items, 16 neutral texts",
    "TransferComparison mean": "48 items, 16 neutral texts",
    "AblationEvaluation": "32 continuations",
    "ClampEvaluation": "32 continuations per arm",
    "CodeMapEvaluation": "120 test documents, 9 features",
    "ConceptTransfer": "48 items, 16 neutral texts",
    "ConceptTransfer beta": "48 items",
    "ConceptTransfer weak_to_strong": "48 items",
    "ConceptInterpolation": "2 draws per point, 50 held-out pairs",
    "DecoderGeometry": "50 features, 1 draw of random rows",
    "FamilyBaselines": "20 items, 50 test texts",
    "FeatureMatches": "30 pairs of features, 1,000 test tokens",
    "ProbeEvaluation": "100 test texts",
    "SparseProbeEvaluation": "100 test texts",
    "PropensityEvaluation": "40 test prompts per task",
    "SAEEvaluation": "20,000 tokens, 80 documents",
    "SAEInitialisation": "1 seed, 4,096 held-out tokens",
    "SAEInitialisation savings": "1 seed, 4,096 held-out tokens",
    "SAEScaling": "1 seed, 2 widths",
    "SAETraining": "4,096 held-out tokens",
    "LabelSavings": "20 held-out pairs",
    "LayerChoice": "96 texts",
    "MapDiagnostics": "200 fitting rows",
    "StitchLoss": "20,000 tokens, 80 documents",
    "SolverComparison": "1 hook pair, 1,000 fitting tokens",
    "SolverComparison r2": "1 hook pair, 1,000 fitting tokens",
    "StitchGrid": "1,000 fitting tokens",
    "StitchGrid chosen": "1,000 fitting tokens",
    "Survey": "1,000 fitting tokens",
    "Stitch": "1,000 fitting tokens",
    "FeaturePage": "2 contexts, 6 tokens",
    "FeatureEvaluation": "60 features, 20,000 positions",
    "FeatureEvaluation fidelity": "60 features, 20,000 positions",
    "FeatureEvaluation entropy": "60 features, 20,000 positions",
    "FeatureEvaluation attention": "2 features, 64 examples of each",
    "Calibration": "16 neutral texts",
    "ModelDiff": "1,000 tokens",
    "DomainMatrix": "1,000 test tokens",
    "UpdateReport": "40–60 texts or items, 1,000 fitting tokens",
}
"""Text after "n =" in the line under the title of each figure."""
LONGEST_LINE = 58
"""Number of characters that a phone shows in a line under a title: 390 pixels at 12 pixels."""


@pytest.mark.parametrize("name", FIGURES)
def test_its_line_of_counts_says_what_its_numbers_rest_on(name: str) -> None:
    counts = counts_of(FIGURES[name]())
    assert counts == f"n = {COUNTS[name]}"
    assert len(counts) <= LONGEST_LINE


def title_of(axis: dict[str, Any]) -> str:
    return str(axis.get("title", {}).get("text") or "")


def test_it_is_drawn_in_our_template_at_any_width(figure: go.Figure) -> None:
    assert figure.layout.template == pio.templates[TEMPLATE_NAME]
    assert figure.layout.width is None
    assert len(figure.data) > 0


def test_its_axes_say_what_they_measure(figure: go.Figure) -> None:
    found = axes(figure)
    titled = {name for name, axis in found.items() if title_of(axis)}
    for name, axis in found.items():
        shared = axis.get("matches") or name
        group = {
            other
            for other, one in found.items()
            if other[0] == name[0] and (one.get("matches") or other) == shared
        }
        assert name in titled or group & titled or is_of_names(figure, name), (
            f"axis {name} has no title: {axis}"
        )


def test_it_has_a_title_that_nothing_covers(figure: go.Figure) -> None:
    layout = figure.layout
    assert layout.title.text
    margin = (
        layout.margin.t if layout.margin.t is not None else figure.layout.template.layout.margin.t
    )
    subtitle = layout.title.subtitle.text or ""
    lines = (layout.title.text.count("<br>") + 1) * 20 + (subtitle.count("<br>") + 1) * 16 * bool(
        subtitle
    )
    headings = [
        one
        for one in figure.layout.annotations
        if one.yref == "paper"
        and one.y is not None
        and math.isclose(one.y, 1.0)
        and one.yanchor == "bottom"
    ]
    lines += max(((one.text.count("<br>") + 1) * 17 for one in headings), default=0)
    lines += 40 * bool(layout.updatemenus)
    assert lines <= margin, f"the title needs about {lines} pixels over the plot, and has {margin}"


def test_what_colours_mean_is_written(figure: go.Figure) -> None:
    traces = figure.to_dict()["data"]
    shown = [
        trace for trace in traces if trace.get("showlegend") is not False and trace.get("name")
    ]
    if any(trace["type"] == "heatmap" for trace in traces):
        assert title_of({"title": figure.layout.coloraxis.colorbar.title.to_plotly_json()})
    named_by_axis = any(is_of_names(figure, name) for name in axes(figure))
    assert (
        shown
        or named_by_axis
        or len({str(trace.get("marker", {}).get("color")) for trace in traces}) == 1
        or figure.layout.coloraxis.colorscale
    )
