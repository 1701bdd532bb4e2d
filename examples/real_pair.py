r"""A pair of real models, measured as a whole: survey, map, loss, probes, steering, SAE.

    python examples/real_pair.py                                    # bundled pair
    python examples/real_pair.py --source HuggingFaceTB/SmolLM2-135M-Instruct \
        --target google/gemma-3-270m --documents web.jsonl.gz \
        --sentiment reviews.jsonl.gz --topic news.jsonl.gz --cache cache

The survey scores all hook pairs, and its best pair gets a ridge map from exact moments. Through
that map go next-token losses, probes of sentiment, topic and truth, two steering vectors, and an
SAE that is trained here. Every measure has its controls. A run on real models takes hours on a CPU:
with ``--cache`` a run that is started again measures only what is missing.

None of the three papers reports this for one pair; the rows say which paper has the measure.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import plotly.graph_objects as go

import lrt_lens as lrt
from lrt_lens.bundled import CONCEPTS
from lrt_lens.figures import probe_figure, sae_figure, stitch_loss_figure, summary_figure
from lrt_lens.models import residual_post, short_hook
from lrt_lens.reproduction import (
    Compared,
    FigureOptions,
    Reproduction,
    Stages,
    Task,
    Verdict,
    bundled_tasks,
    capital_statements,
    first_items,
    first_pairs,
    held_out,
    run,
    task_from_file,
)

Stage = Literal["loss", "probes", "steering", "sae"]
SAE_CONTEXT_LENGTH = 128
"""Number of tokens per window of everything about SAEs."""
STAGES: tuple[Stage, ...] = ("loss", "probes", "steering", "sae")
CONTROLS = ("shuffled", "random", "permuted")
"""Arms that know nothing of the models' correspondence or of the concept."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Stages, labelled texts and sizes."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tokens": 6_000,
        "survey_tokens": 4_000,
        "loss_tokens": 800,
        "sae_tokens": 4_096,
        "sae_rows": 4_096,
        "refit_tokens": 4_000,
        "n_texts": 90,
        "n_items": 6,
        "n_neutral": 4,
        "n_pairs": 16,
        "n_draws": 1,
    }
    UNUSED: ClassVar = frozenset({"sae"})
    n_tokens: int = 100_000
    """Tokens of the exact moments of the best hook pair."""
    survey_tokens: int = 20_000
    """Tokens of the survey of all hook pairs."""
    source_layer: int | str | None = None
    """Layer of the source; by default that of the survey's best pair."""
    target_layer: int | str | None = None
    """Layer of the target; by default that of the survey's best pair."""
    stages: tuple[Stage, ...] = STAGES
    """Measurements besides the survey and the map."""
    loss_tokens: int = 20_000
    """Number of predicted tokens of the stitched losses."""
    sentiment: Path | None = None
    """JSON Lines with `text` and `label`; by default the bundled contrast set."""
    topic: Path | None = None
    """JSON Lines with `text` and `label`; by default the bundled stories and reviews."""
    n_texts: int = 400
    """Number of texts per task at most."""
    n_words: int = 60
    """Number of words that are read of each text of a file."""
    n_pairs: int = 60
    """Number of contrast pairs from which a steering vector is learnt."""
    n_items: int = 40
    """Number of items on which a steering vector is measured."""
    n_neutral: int = 20
    """Number of neutral texts on which damage is measured."""
    n_draws: int = 20
    """Number of draws of each control."""
    sae_tokens: int = 300_000
    """Number of tokens on which the SAE is trained."""
    sae_rows: int = 100_000
    """Number of different rows on which SAEs are trained, held in memory."""
    sae_expansion: int = 4
    """Number of features of the SAEs per dimension."""
    sae_draws: int = 2
    """Number of random maps of the SAE's control, each of which takes a pass of the target."""
    refit_tokens: int = 36_000
    """Number of tokens on which the transferred SAE is refitted."""
    cache: Path | None = None
    """Folder in which the result of each stage is kept; by default OUT/real_pair-cache."""


def reproduce(options: Options) -> Reproduction:
    """Measure every stage and put them together."""
    run_ = Run.of(options)
    tables = {name: run_.measure(name) for name in options.stages}
    rows = compared_rows(run_, tables)
    passed, judged = judged_stages(tables)
    figures: dict[str, go.Figure] = {
        "Survey: gain over token identity of all hook pairs, with the null": run_.survey.figure(
            chosen=run_.where
        )
    }
    for name, table in tables.items():
        figures |= stage_figures(name, table)
    verdict: Verdict = (
        "holds"
        if judged and set(passed) == set(judged)
        else "holds with a caveat"
        if passed
        else "does not survive its null"
    )
    missing = [name for name in judged if name not in passed]
    scores = run_.stitch.scores
    return Reproduction(
        name="real_pair",
        title="One pair of models, measured as a whole",
        paper="lrt_lens, a pair as a whole",
        claim="What is learnt in one model works in the other through one affine map, beyond every "
        "control: the next-token loss, probes, steering vectors and an SAE.",
        compared=rows,
        says="Each stage is one setting on one pair of layers, with the sizes in the options. A "
        "measure counts if the transferred artefact is better, beyond its interval, than every "
        "control that knows nothing of it; a probe only if it is also better than token identity.",
        verdict=verdict,
        because=f"the map {arrow(run_.where)} explains {scores['r2']:.3f} of the variance of "
        f"held-out states (token identity {scores['r2_token']:.3f}); better than their controls: "
        f"{', '.join(passed) or 'nothing'}; not better: {', '.join(missing) or 'nothing'}.",
        figures=figures,
        tables={
            "Best hook pairs of the survey": run_.survey.choices().head(20),
            "Survey of all hook pairs": run_.survey.scores,
            "The exact map": pd.DataFrame([scores]),
            **{f"Stage: {name}": table for name, table in tables.items()},
        },
        details={"stitch": repr(run_.stitch), "n_pairs": len(run_.survey)},
    )


@dataclass(frozen=True)
class Run:
    """Models, texts, survey and map that all stages share."""

    options: Options
    stages: Stages
    pair: lrt.ModelPair
    texts: list[str]
    survey: lrt.Survey
    where: tuple[str, str]
    """Hook pair of the map."""
    moments: lrt.CrossMoments
    """Exact moments of that hook pair."""
    stitch: lrt.Stitch

    @classmethod
    def of(cls, options: Options) -> "Run":
        """Load the models and make, or read, the survey and the map."""
        pair, texts = options.pair(), options.texts()
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        stages = Stages(
            options.cache or options.out / "real_pair-cache",
            {"texts": digest, "seed": options.seed},
        )
        settings = {"models": models_of(pair), "n_tokens": options.survey_tokens}
        survey = stages.stored(
            "survey",
            settings,
            ".safetensors",
            lambda: lrt.survey(
                pair,
                texts,
                n_tokens=options.survey_tokens,
                seed=options.seed,
                checkpoint=stages.path("survey", settings, ".checkpoint"),
            ),
            save=lambda made, path: made.save(path),
            load=lrt.Survey.load,
        )
        where = chosen(survey, pair, options)
        moments = exact_moments(stages, pair, texts, where, options)
        return cls(options, stages, pair, texts, survey, where, moments, moments.fit().best())

    def measure(self, name: Stage) -> pd.DataFrame:
        """The table of a stage, from the cache or measured now."""
        measures = {
            "loss": self._loss,
            "probes": self._probes,
            "steering": self._steering,
            "sae": self._sae,
        }
        return measures[name]()

    @property
    def _identity(self) -> dict[str, Any]:
        """Settings that every stage after the map depends on."""
        return {
            "models": models_of(self.pair),
            "where": self.where,
            "n_tokens": self.options.n_tokens,
        }

    def _loss(self) -> pd.DataFrame:
        def measured() -> pd.DataFrame:
            return lrt.evaluate_stitch_loss(
                self.pair,
                self.stitch,
                self.texts,
                n_tokens=self.options.loss_tokens,
                token_maps=lrt.token_identity_map(self.moments, self.where[1]),
                seed=self.options.seed,
            ).table

        settings = self._identity | {"loss_tokens": self.options.loss_tokens}
        return self.stages.table("loss", settings, measured)

    def _probes(self) -> pd.DataFrame:
        back = exact_moments(
            self.stages, self.pair.reversed(), self.texts, self.where[::-1], self.options
        )
        token_map = lrt.token_identity_map(back, self.where[0])
        return pd.concat(
            [self._probe(task, groups, token_map) for task, groups in tasks(self.options)],
            ignore_index=True,
        )

    def _probe(
        self, task: Task, groups: list[int] | None, token_map: lrt.AffineMap
    ) -> pd.DataFrame:
        n_draws = self.options.n_draws

        def measured() -> pd.DataFrame:
            result = lrt.evaluate_probe(
                self.pair,
                self.stitch,
                task.texts,
                task.labels,
                groups=groups,
                token_map=token_map,
                task=task.name,
                ks=(),
                n_random=n_draws,
                n_permuted=n_draws,
                n_shuffled=n_draws,
                seed=self.options.seed,
            )
            return result.table.assign(chance=result.chance, n_test=result.n_test)

        settings = self._identity | {"task": task.texts, "labels": task.labels, "n_draws": n_draws}
        return self.stages.table(f"probe_{task.name}", settings, measured)

    def _steering(self) -> pd.DataFrame:
        return pd.concat([self._steered(name) for name in CONCEPTS], ignore_index=True)

    def _steered(self, name: Any) -> pd.DataFrame:
        options = self.options
        sizes = {
            key: getattr(options, key) for key in ("n_pairs", "n_items", "n_neutral", "n_draws")
        }

        def measured() -> pd.DataFrame:
            contrast = first_pairs(lrt.demo_contrast(name), options.n_pairs)
            vector = lrt.SteeringVector.mean_difference(
                self.pair.source, contrast, at=self.where[0]
            )
            return lrt.evaluate_steering(
                self.pair,
                self.stitch,
                vector,
                first_items(lrt.demo_items(name), options.n_items),
                neutral=lrt.demo_neutral()[: options.n_neutral],
                n_random=options.n_draws,
                n_permuted=options.n_draws,
                n_shuffled=options.n_draws,
                seed=options.seed,
            ).summary

        return self.stages.table(f"steering_{name}", self._identity | sizes, measured)

    def _sae(self) -> pd.DataFrame:
        options = self.options
        training = {
            "models": models_of(self.pair),
            "at": self.where,
            "expansion": options.sae_expansion,
            "n_tokens": options.sae_tokens,
            "n_rows": options.sae_rows,
        }

        def measured() -> pd.DataFrame:
            own, native = (self._trained_sae(end, training) for end in (0, 1))
            return lrt.evaluate_sae(
                self.pair,
                self.stitch,
                own,
                self.texts,
                native=native,
                refit=lrt.RefitSettings(
                    n_tokens=options.refit_tokens, context_length=SAE_CONTEXT_LENGTH
                ),
                n_tokens=options.loss_tokens,
                context_length=SAE_CONTEXT_LENGTH,
                n_random=options.sae_draws,
                seed=options.seed,
            ).table

        settings = self._identity | training | {"refit_tokens": options.refit_tokens}
        settings |= {"loss_tokens": options.loss_tokens, "n_draws": options.sae_draws}
        return self.stages.table("sae", settings, measured)

    def _trained_sae(self, end: int, training: dict[str, Any]) -> Any:
        """SAE of the source (0) or the target (1), trained once and kept."""
        options, model = self.options, (self.pair.source, self.pair.target)[end]

        def trained() -> Any:
            rows = lrt.SAERows.from_documents(
                model,
                self.texts,
                at=self.where[end],
                context_length=SAE_CONTEXT_LENGTH,
                seed=options.seed,
            )
            # The model reads the text once; training goes over the same rows several times.
            return lrt.train_sae(
                None,
                rows.in_memory(options.sae_rows),
                d_sae=options.sae_expansion * model.d_model,
                n_tokens=options.sae_tokens,
                seed=options.seed,
            ).sae

        return self.stages.stored(
            "sae_weights",
            training | {"end": end},
            "",
            trained,
            save=lambda made, path: made.save_model(str(path)),
            load=partial(loaded_sae, device=options.device),
        )


def models_of(pair: lrt.ModelPair) -> list[str]:
    """Digests of weights and tokenizers, which the names of cached files depend on."""
    identities = (pair.source.identity, pair.target.identity)
    return [f"{one.config_hash} {one.tokenizer_hash}" for one in identities]


def loaded_sae(path: Path, device: str) -> Any:
    """The SAE of a folder that SAELens wrote."""
    # Imported here because sae-lens takes seconds to import.
    from sae_lens import SAE

    return SAE.load_from_disk(str(path), device=device)


def chosen(survey: lrt.Survey, pair: lrt.ModelPair, options: Options) -> tuple[str, str]:
    """The survey's best hook pair, among those of the given layers."""
    table = survey.choices()
    for role, model, layer in (
        ("source_hook", pair.source, options.source_layer),
        ("target_hook", pair.target, options.target_layer),
    ):
        if layer is not None:
            if isinstance(layer, int) and not -model.n_layers <= layer < model.n_layers:
                raise ValueError(
                    f"--{role.replace('_hook', '-layer')} is {layer}; {model.name!r} has layers 0 "
                    f"to {model.n_layers - 1}"
                )
            # Negative numbers count layers from the end.
            hook = layer if isinstance(layer, str) else residual_post(layer % model.n_layers)
            table = table[table[role] == hook]
    if table.empty:
        raise ValueError(
            f"--source-layer {options.source_layer} and --target-layer {options.target_layer}: the "
            f"survey has no such pair among its {len(survey)}; give layers of both models"
        )
    first = table.iloc[0]
    return str(first["source_hook"]), str(first["target_hook"])


def exact_moments(
    stages: Stages, pair: lrt.ModelPair, texts: list[str], where: tuple[str, ...], options: Options
) -> lrt.CrossMoments:
    """Exact moments of one hook pair, from the cache or harvested now."""
    settings = {"models": models_of(pair), "where": where, "n_tokens": options.n_tokens}
    return stages.stored(
        "moments",
        settings,
        ".safetensors",
        lambda: lrt.harvest(
            pair,
            texts,
            pairs=[(where[0], where[1])],
            n_tokens=options.n_tokens,
            null="full",
            seed=options.seed,
            checkpoint=stages.path("moments", settings, ".checkpoint"),
        ),
        save=lambda made, path: made.save(path),
        load=lrt.CrossMoments.load,
    )


def tasks(options: Options) -> list[tuple[Task, list[int] | None]]:
    """Labelled texts of the three tasks, with the groups of texts that belong together."""
    bundled = bundled_tasks(options.seed)
    found: list[tuple[Task, list[int] | None]] = []
    for name, path, own in zip(
        ("sentiment", "topic"), (options.sentiment, options.topic), bundled, strict=True
    ):
        task = own
        if path is not None:
            task = held_out(task_from_file(path), options.seed, n_words=options.n_words)
        task = Task(name, task.texts, task.labels).sample(options.n_texts, options.seed)
        found.append((task, None))
    return [*found, capital_statements(options.seed)]


def judged_stages(tables: Mapping[str, pd.DataFrame]) -> tuple[list[str], list[str]]:
    """Names of the measures that beat their controls, and of all measures."""
    results: dict[str, bool] = {}
    if "loss" in tables:
        for route, part in tables["loss"].groupby("route", sort=False):
            by_arm = part.set_index("arm")
            if "stitched" in by_arm.index:
                others = by_arm["ce"].reindex(["mean", "shuffled", "token"]).min()
                results[f"loss of {route}"] = bool(by_arm.loc["stitched", "ce_high"] < others)
    if "probes" in tables:
        for task, part in tables["probes"].groupby("task", sort=False):
            by_arm = part.set_index("arm")
            others = by_arm["accuracy"].reindex([*CONTROLS, "token_identity"]).max()
            transferred = by_arm.loc["transferred"]
            results[f"probe of {task}"] = bool(
                transferred["low"] > max(others, transferred["chance"])
            )
    if "steering" in tables:
        for concept, part in tables["steering"].groupby("concept", sort=False):
            by_arm = part.set_index("arm")
            drawn = by_arm.loc[by_arm["n_draws"] > 1, "transferred_p"]
            low = by_arm.loc["transferred", "low"]
            # Fewer than 19 draws give no p below .05, so they show nothing.
            beaten = len(drawn) > 0 and bool((drawn <= 0.05).all())
            results[f"steering of {concept}"] = bool(low > 0 and beaten)
    if "sae" in tables:
        by_arm = tables["sae"].set_index("arm")
        others = by_arm["delta_ce"].reindex(["shuffled", "random"]).min()
        results["SAE"] = bool(by_arm.loc["transferred", "delta_ce_high"] < others)
        if "refitted" in by_arm.index:
            others = by_arm["delta_ce"].reindex(["shuffled_refitted", "random_refitted"]).min()
            results["refitted SAE"] = bool(by_arm.loc["refitted", "delta_ce_high"] < others)
    return [name for name, passed in results.items() if passed], list(results)


def compared_rows(run_: Run, tables: Mapping[str, pd.DataFrame]) -> list[Compared]:
    """The main number of every stage, with the best control."""
    scores = run_.stitch.scores
    rows = [
        Compared(
            f"R² of the map {arrow(run_.where)}, held-out documents",
            float(scores["r2"]),
            control=float(scores["r2_token"]),
            control_name="token identity",
        )
    ]
    if "loss" in tables:
        rows += loss_rows(tables["loss"])
    if "probes" in tables:
        for task, part in tables["probes"].groupby("task", sort=False):
            by_arm = part.set_index("arm")
            others = by_arm["accuracy"].reindex([*CONTROLS, "token_identity"]).dropna()
            rows.append(
                Compared(
                    f"accuracy of the transferred probe of {task} (native "
                    f"{by_arm.loc['native', 'accuracy']:.3f})",
                    *with_interval(by_arm.loc["transferred"], "accuracy"),
                    control=float(others.max()),
                    control_name=str(others.idxmax()).replace("_", " "),
                )
            )
    if "steering" in tables:
        for concept, part in tables["steering"].groupby("concept", sort=False):
            by_arm = part.set_index("arm")
            others = by_arm["effect_at_equal_damage"].reindex(list(CONTROLS)).dropna()
            native = by_arm["effect_at_equal_damage"].get("native", math.nan)
            rows.append(
                Compared(
                    f"effect of the transferred vector of {concept}, nats (native {native:.3f})",
                    *with_interval(by_arm.loc["transferred"], "effect_at_equal_damage"),
                    control=float(others.max()) if len(others) else None,
                    control_name=f"mean of {others.idxmax()} draws" if len(others) else "",
                )
            )
    if "sae" in tables:
        by_arm = tables["sae"].set_index("arm")
        for arm, controls in (
            ("transferred", ["shuffled", "random"]),
            ("refitted", ["shuffled_refitted", "random_refitted"]),
        ):
            others = by_arm["delta_ce"].reindex(controls).dropna()
            if arm in by_arm.index:
                rows.append(
                    Compared(
                        f"ΔCE of the {arm} SAE, nats per token (at the source "
                        f"{by_arm.loc['source', 'delta_ce']:.3f})",
                        *with_interval(by_arm.loc[arm], "delta_ce"),
                        control=float(others.min()) if len(others) else None,
                        control_name=(
                            str(others.idxmin()).replace("_", " ") if len(others) else ""
                        ),
                    )
                )
    return rows


def loss_rows(table: pd.DataFrame) -> list[Compared]:
    """Cross-entropy of every stitched route, with the best control."""
    rows = []
    for route, part in table.groupby("route", sort=False):
        by_arm = part.set_index("arm")
        if "stitched" not in by_arm.index:
            continue
        others = by_arm["ce"].reindex(["mean", "shuffled", "token"]).dropna()
        stitched = by_arm.loc["stitched"]
        rows.append(
            Compared(
                f"loss of {route}, nats per token (own {by_arm.loc['own', 'ce']:.3f})",
                float(stitched["ce"]),
                low=float(stitched["ce_low"]),
                high=float(stitched["ce_high"]),
                control=float(others.min()),
                control_name=str(others.idxmin()),
            )
        )
    return rows


def with_interval(row: Any, value: str) -> tuple[float, None, float, float]:
    """Value, no number of a paper, and the ends of the interval: the first fields of `Compared`."""
    ends = ("low", "high") if value != "delta_ce" else ("delta_ce_low", "delta_ce_high")
    return float(row[value]), None, float(row[ends[0]]), float(row[ends[1]])


def stage_figures(name: str, table: pd.DataFrame) -> dict[str, go.Figure]:
    """The figures of a stage, by caption."""
    if name == "loss":
        return {"Cross-entropy per route and arm": stitch_loss_figure(table)}
    if name == "probes":
        return {
            f"Probe of {task}: accuracy of every arm": probe_figure(
                part, chance=float(part["chance"].iloc[0])
            )
            for task, part in table.groupby("task", sort=False)
        }
    if name == "steering":
        return {
            f"Steering of {concept}: effects at equal damage": summary_figure(
                part, concept=str(concept)
            )
            for concept, part in table.groupby("concept", sort=False)
        }
    return {"SAE before and after the transfer": sae_figure(table)}


def arrow(where: tuple[str, str]) -> str:
    """A hook pair in short form."""
    return f"{short_hook(where[0])} → {short_hook(where[1])}"


if __name__ == "__main__":
    run(reproduce)
