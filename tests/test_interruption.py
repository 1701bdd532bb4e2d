"""Every call that runs a model can be interrupted and leaves both models unchanged."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import lrt_lens as lrt

TEXTS = [
    " ".join(f"the {a} {b} was {c} and then they found it" for _ in range(2))
    for a in ("cat", "dog")
    for b in ("king", "boy")
    for c in ("sad", "old")
]
WORDS = (
    "cat",
    "dog",
    "king",
    "boy",
    "bird",
    "tree",
    "girl",
    "queen",
    "river",
    "house",
    "stone",
    "garden",
)
ITEMS = lrt.ChoiceItems(
    [f"the {word} was" for word in WORDS], [" happy"] * len(WORDS), [" sad"] * len(WORDS)
)
QUIET: dict[str, Any] = {"progress": False}


def even(text: str) -> bool:
    return len(text) % 2 == 0


class Bench:
    """Models, artefacts and texts that the calls below use."""

    def __init__(self, pair: Any, corpus: list[str], folder: Path) -> None:
        self.pair, self.corpus, self.folder = pair, corpus, folder
        for model in (pair.source, pair.target):
            # At its first pass a TransformerLens bridge registers hooks of its own and keeps them.
            model.logits("the cat")
        self.grid = lrt.fit_stitches(
            pair,
            corpus[:100],
            source_layers=[0],
            target_layers=[1],
            context_length=32,
            null="full",
            progress=False,
        )
        self.stitch = self.grid.best()
        self.contrast = lrt.ContrastSet(TEXTS[:4], TEXTS[4:], name="mood")
        self.other = lrt.ContrastSet(TEXTS[::2], TEXTS[1::2], name="colour")
        self.vector = lrt.SteeringVector.mean_difference(
            pair.source, self.contrast, at=self.stitch.source_hook
        )
        self.moved = self.stitch.transfer(self.vector)
        self.labels = ["one", "two"] * (len(corpus) // 2)

    @property
    def sae(self) -> Any:
        """Random SAE at the source hook of the stitch."""
        return _random_sae(16, self.stitch.source_hook)

    @property
    def target_sae(self) -> Any:
        """Random SAE at the target hook of the stitch."""
        return _random_sae(24, self.stitch.target_hook)

    @cached_property
    def codes(self) -> Any:
        """Map from the codes of `sae`."""
        return lrt.fit_code_map(
            self.pair, self.stitch, self.sae, self.corpus, context_length=32, progress=False
        )

    def fresh_folder(self) -> str:
        """Return a new empty folder, for one cache."""
        return tempfile.mkdtemp(dir=self.folder)

    def concepts(self) -> list[Any]:
        return [lrt.Concept(contrast, ITEMS) for contrast in (self.contrast, self.other)]


def _random_sae(d: int, hook: str) -> Any:
    """A TopK SAE of random weights."""
    sae_lens = pytest.importorskip("sae_lens", exc_type=ImportError)
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(0)
    found = sae_lens.TopKSAE(
        sae_lens.TopKSAEConfig(d_in=d, d_sae=40, k=6, metadata=SAEMetadata(hook_name=hook))
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return found


CALLS: dict[str, Callable[[Bench], Any]] = {
    "harvest": lambda b: lrt.harvest(b.pair, b.corpus, context_length=32, **QUIET),
    "fit_stitches": lambda b: lrt.fit_stitches(b.pair, b.corpus, context_length=32, **QUIET),
    "capture": lambda b: b.pair.target.capture(b.corpus[:4], "all", truncation="right"),
    "generate": lambda b: _generate(b),
    "compare_continuations": lambda b: lrt.compare_continuations(
        b.pair.target, ["the cat"], {"moved": b.moved}, scales=2.0
    ),
    "mean_difference": lambda b: lrt.SteeringVector.mean_difference(
        b.pair.target, b.contrast, at=1
    ),
    "mean_component": lambda b: b.moved.mean_component(b.pair.target, TEXTS),
    "inlp": lambda b: lrt.SteeringSubspace.inlp(b.pair.target, b.contrast, at=1, k=2),
    "contrast_cka": lambda b: lrt.contrast_cka(
        b.pair, lrt.ContrastSet(b.corpus[:8], b.corpus[8:16]), read="mean", n_shuffled=2, **QUIET
    ),
    "fit_coverage": lambda b: lrt.fit_coverage(
        b.stitch, b.pair.target, b.corpus, folds="all", n_documents=30
    ),
    "probe": lambda b: lrt.LinearProbe.fit(
        b.pair.target, b.corpus[:30], b.labels[:30], at=1, read="mean"
    ),
    "calibrate_scale": lambda b: lrt.calibrate_scale(b.pair.target, b.moved, b.corpus[:4]),
    "calibrate_scale_kl": lambda b: lrt.calibrate_scale(
        b.pair.target, [b.moved, _later(b)], b.corpus[:4], unit="kl"
    ),
    "steering_agreement": lambda b: lrt.steering_agreement(
        b.pair, b.stitch, b.vector.direction[None], b.corpus[:30], **QUIET
    ),
    "evaluate_steering": lambda b: lrt.evaluate_steering(
        b.pair, b.stitch, b.vector, ITEMS, neutral=b.corpus[:4], n_random=2, n_permuted=1, **QUIET
    ),
    "evaluate_stitch_loss": lambda b: lrt.evaluate_stitch_loss(
        b.pair, b.stitch, b.corpus, context_length=32, **QUIET
    ),
    "evaluate_lens": lambda b: lrt.evaluate_lens(
        b.pair,
        b.stitch,
        lrt.Lens.logit(b.pair.source.identity),
        b.corpus,
        context_length=32,
        **QUIET,
    ),
    "evaluate_probe": lambda b: lrt.evaluate_probe(
        b.pair, b.stitch, b.corpus[:60], b.labels[:60], ks=(8,), n_seeds=1, **QUIET
    ),
    "evaluate_probe_labels": lambda b: lrt.evaluate_probe_labels(
        b.pair, b.stitch, b.corpus[:60], b.labels[:60], ks=(0, 4), n_draws=2, **QUIET
    ),
    "evaluate_vector_labels": lambda b: lrt.evaluate_vector_labels(
        b.pair,
        b.stitch,
        lrt.ContrastSet(
            [" ".join(text.split()[:8]) for text in b.corpus[:20]],
            [" ".join(text.split()[:8]) for text in b.corpus[20:40]],
            name="halves",
        ),
        ks=(0, 4),
        n_draws=2,
        **QUIET,
    ),
    "evaluate_propensity": lambda b: lrt.evaluate_propensity(
        b.pair, b.stitch, ITEMS, n_random=1, n_shuffled=1, **QUIET
    ),
    "evaluate_clamping": lambda b: lrt.evaluate_clamping(
        b.pair, b.stitch, b.vector, ["the cat", "the dog"], even, max_new_tokens=4, **QUIET
    ),
    "evaluate_ablation": lambda b: lrt.evaluate_ablation(
        b.pair,
        b.stitch,
        b.vector,
        neutral=b.corpus[:4],
        items=ITEMS,
        n_random=1,
        n_shuffled=1,
        **QUIET,
    ),
    "evaluate_concept_transfer": lambda b: lrt.evaluate_concept_transfer(
        b.pair,
        b.concepts(),
        source_hook=0,
        target_hook=1,
        neutral=b.corpus[:4],
        n_random=1,
        **QUIET,
    ),
    "evaluate_interpolation": lambda b: lrt.evaluate_interpolation(
        b.pair,
        [b.contrast, b.other],
        source_hook=0,
        target_hook=1,
        counts=[4],
        stitch=b.stitch,
        **QUIET,
    ),
    "evaluate_sae": lambda b: lrt.evaluate_sae(
        b.pair, b.stitch, b.sae, b.corpus, context_length=32, n_random=1, **QUIET
    ),
    "evaluate_features": lambda b: lrt.evaluate_features(
        b.pair, b.stitch, b.sae, b.corpus, context_length=32, **QUIET
    ),
    "evaluate_features_gradient": lambda b: lrt.evaluate_features(
        b.pair, b.stitch, b.sae, b.corpus, context_length=32, attribution="gradient", **QUIET
    ),
    "evaluate_sparse_probes": lambda b: lrt.evaluate_sparse_probes(
        b.pair,
        b.stitch,
        [text[:60] for text in b.corpus[:40]],
        b.labels[:40],
        test_texts=[text[:60] for text in b.corpus[40:80]],
        test_labels=b.labels[40:80],
        source_sae=b.sae,
        ks=(4,),
        **QUIET,
    ),
    "fit_code_map": lambda b: lrt.fit_code_map(
        b.pair, b.stitch, b.sae, b.corpus, context_length=32, **QUIET
    ),
    "evaluate_code_map": lambda b: lrt.evaluate_code_map(
        b.pair, b.stitch, b.sae, b.codes, b.corpus, context_length=32, n_features=4, **QUIET
    ),
    "match_features": lambda b: lrt.match_features(
        b.pair, b.stitch, b.sae, b.target_sae, b.corpus, context_length=32, **QUIET
    ),
    "study_sae_initialisation": lambda b: lrt.study_sae_initialisation(
        b.pair, b.stitch, b.sae, b.corpus, n_tokens=2000, seeds=(0,), **QUIET
    ),
    "concept_map": lambda b: lrt.ConceptMap.fit(
        b.pair, [b.contrast, b.other], source_hook=0, target_hook=1
    ),
    "cached_harvest": lambda b: lrt.harvest(
        b.pair, b.corpus, context_length=32, cache=b.fresh_folder(), **QUIET
    ),
    "train_sae": lambda b: lrt.train_sae(
        b.pair.source, b.corpus, at=0, d_sae=24, k=4, n_tokens=2000, context_length=32, **QUIET
    ),
}
"""Every entry point that runs models, on small ones."""
SHORT = (
    "capture",
    "contrast_cka",
    "fit_coverage",
    "inlp",
    "mean_difference",
    "mean_component",
    "probe",
    "steering_agreement",
    "evaluate_interpolation",
    "evaluate_vector_labels",
    "concept_map",
)
"""Calls that end, on models this small, before the later interrupts."""


def _generate(bench: Bench) -> Any:
    with bench.moved.apply(bench.pair.target, scale=2.0):
        return bench.pair.target.generate(["the cat", "the dog was"], max_new_tokens=6)


def _later(bench: Bench) -> Any:
    return lrt.SteeringVector.mean_difference(bench.pair.target, bench.contrast, at=2)


@pytest.fixture(scope="module")
def bench(pair: Any, corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(pair, corpus, tmp_path_factory.mktemp("caches"))


def state(pair: Any) -> list[Any]:
    """Return everything of both models, and of torch, that a call may change and must restore."""
    found: list[Any] = [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    ]
    for model in (pair.source, pair.target):
        found += [
            (name, len(point.fwd_hooks), len(point.bwd_hooks))
            for name, point in model.bridge.hook_dict.items()
        ]
        modules = [*model.engine.model.named_modules(), *model.bridge.named_modules()]
        for name, module in modules:
            hooks = (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
            found.append(
                (
                    name,
                    *map(len, hooks),
                    module.training,
                    "forward" in module.__dict__,
                    [id(child) for child in module._modules.values()],
                )
            )
        found += [
            (name, parameter.requires_grad, parameter.grad is None)
            for name, parameter in model.engine.model.named_parameters()
        ]
    return found


class Stop:
    """Replacement of `torch.nn.functional.linear` that raises KeyboardInterrupt in a layer.

    It raises at its nth call, or at the nth call during which a model is changed.
    """

    def __init__(self, pair: Any, nth: int, *, changed: bool) -> None:
        self.pair, self.left, self.before = pair, nth, state(pair) if changed else None
        self.linear = torch.nn.functional.linear

    def __call__(self, *args: Any, **options: Any) -> Any:
        # A model is unchanged if it is as before the calls, except for the switches of torch, which
        # every forward pass may set.
        if self.before is None or state(self.pair)[4:] != self.before[4:]:
            self.left -= 1
            if self.left <= 0:
                raise KeyboardInterrupt
        return self.linear(*args, **options)


@pytest.fixture
def stop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stop]]:
    def arm(nth: int, *, changed: bool) -> Stop:
        found = Stop(bench.pair, nth, changed=changed)
        monkeypatch.setattr(torch.nn.functional, "linear", found)
        return found

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("nth", "changed"),
    [(9, False), (60, False), (2, True), (20, True)],
    ids=["soon", "later", "hooked", "hooked later"],
)
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_leaves_both_models_as_they_were(
    bench: Bench, stop: Any, name: str, nth: int, changed: bool
) -> None:
    if name in SHORT and nth > 9:
        pytest.skip("over before that")
    if "sae" in name or "features" in name or "code" in name or "sparse" in name:
        _ = bench.codes
    before = state(bench.pair)
    stop(nth, changed=changed)
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](bench)
    assert state(bench.pair) == before


def test_every_call_that_evaluates_is_here() -> None:
    packages = [import_module(f"lrt_lens.{name}") for name in lrt._PACKAGES]
    names = {name for package in [lrt, *packages] for name in dir(package)}
    started = {name for name in names if name.startswith("evaluate_")}
    known = {call.split("_gradient")[0] for call in CALLS}
    # It calls what the others call and nothing else: rows of both models, and the steering and
    # probes of each baseline.
    elsewhere = {"evaluate_family_baselines"}
    assert len(started) >= 8
    assert started - known - elsewhere == set()


def test_a_call_works_after_an_interrupt(
    bench: Bench, stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _generate(bench)
    stop(20, changed=True)
    with pytest.raises(KeyboardInterrupt):
        _generate(bench)
    monkeypatch.undo()
    assert _generate(bench) == expected
