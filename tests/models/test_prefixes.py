"""Models of one tokenizer that read every text behind other special tokens."""

import json
import logging
from dataclasses import asdict
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelIdentity, ModelPair
from lrt_lens.moments import ActivationCache, CrossMoments, harvest
from lrt_lens.stitching import score_rows

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def behind(train_tokenizer: Any, build_hf: Any) -> Any:
    """A function that loads a model which reads texts behind the ids ``prefix``."""

    def load(prefix: list[int], **options: Any) -> HookedModel:
        tokenizer = train_tokenizer()
        special = [(tokenizer.convert_ids_to_tokens(i), i) for i in sorted(set(prefix))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=" ".join([tokenizer.convert_ids_to_tokens(i) for i in prefix] + ["$A"]),
            special_tokens=special,
        )
        model = HookedModel.load(build_hf("llama", **options), tokenizer=tokenizer)
        assert model.prefix == prefix
        return model

    return load


def own_states(model: HookedModel, bodies: list[list[int]]) -> list[Tensor]:
    """Return the states [token, d_model] of the bodies behind a model's prefix, by transformers."""
    hf, n_prefix = model.engine.model, len(model.prefix)
    with torch.inference_mode():
        return [
            hf(torch.tensor([[*model.prefix, *body]]), output_hidden_states=True)
            .hidden_states[2][0, n_prefix:]
            .double()
            for body in bodies
        ]


@pytest.mark.parametrize(("one", "other"), [([0], [0, 5]), ([0, 5], [0]), ([0], [7])])
def test_each_model_reads_its_own_prefix_in_a_harvest(
    behind: Any, passages: list[str], one: list[int], other: list[int]
) -> None:
    pair = ModelPair(behind(one), behind(other, d=24, seed=1))
    assert not pair.aligned
    moments = harvest(
        pair, passages, source_layers=[1], target_layers=[1], moment_dtype=torch.float64
    )
    bodies = pair.source.encode_bodies(passages)
    # The first four positions of either model are masked.
    first = 4 - min(len(one), len(other))
    kept = [body for body in bodies if len(body) - first >= 4]
    rows = [
        torch.cat([states[first:] for states in own_states(model, kept)])
        for model in (pair.source, pair.target)
    ]
    naive = CrossMoments.from_activations(
        *rows,
        documents=[i for i, body in enumerate(kept) for _ in body[first:]],
        source_hook=HOOK,
        target_hook=HOOK,
        moment_dtype=torch.float64,
    )
    parts = tuple(range(13))
    ours, expected = (m.scatter((HOOK, HOOK), parts) for m in (moments, naive))
    assert ours.n == expected.n == len(rows[0])
    for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )


def test_rows_of_a_stitch_are_read_behind_each_prefix(behind: Any, passages: list[str]) -> None:
    pair = ModelPair(behind([0]), behind([0, 5], d=24, seed=1))
    moments = harvest(pair, passages * 3, source_layers=[1], target_layers=[1])
    scored = score_rows(moments.fit().best(), pair, passages[:20])
    assert scored is not None


def test_identities_tell_prefixes_apart(behind: Any) -> None:
    one, other = behind([0]), behind([0, 5])
    assert one.identity.config_hash == other.identity.config_hash
    assert one.identity != other.identity
    with pytest.raises(MismatchError, match=r"with prefix \(0, 5\); expected .* prefix \(0,\)"):
        one.identity.refuse_other(other.identity, "the model")
    one.identity.refuse_other(other.identity, "the model", tokens=False)
    stored = json.loads(json.dumps(asdict(other.identity)))
    assert ModelIdentity(**stored) == other.identity
    # Files of earlier versions do not tell the prefix.
    del stored["prefix"]
    other.identity.refuse_other(ModelIdentity(**stored), "the model")


def test_a_vector_and_a_probe_of_another_prefix_are_reported(
    behind: Any, passages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = behind([0]), behind([0, 5])
    contrast = ContrastSet(passages[:10], passages[10:20])
    vector = SteeringVector.mean_difference(one, contrast, at=1)
    probe = LinearProbe.fit(one, passages[:20], [0, 1] * 10, at=1)
    with caplog.at_level(logging.WARNING), vector.apply(one):
        probe.accuracy(one, passages[:20], [0, 1] * 10)
    assert "special tokens" not in caplog.text
    with caplog.at_level(logging.WARNING), vector.apply(other):
        pass
    assert "behind the special tokens [0], and 'LlamaForCausalLM' reads texts behind" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        probe.accuracy(other, passages[:20], [0, 1] * 10)
    assert "was fitted behind the special tokens [0]" in caplog.text


def test_what_compares_tokens_one_by_one_refuses_two_prefixes(behind: Any) -> None:
    pair = ModelPair(behind([0]), behind([0, 5]))
    with pytest.raises(MismatchError, match=r"behind the special tokens \[0\] and .* \[0, 5\]"):
        pair.refuse_two_tokenizers("this", "do that")


def test_a_cache_of_another_prefix_is_refused(
    behind: Any, passages: list[str], tmp_path: Any
) -> None:
    cache = ActivationCache.from_model(tmp_path / "cache", behind([0]), passages, hooks=[1])
    with pytest.raises(MismatchError, match=r"has prefix \(0, 5\)"):
        cache.record(behind([0, 5]), [1], role="target")
