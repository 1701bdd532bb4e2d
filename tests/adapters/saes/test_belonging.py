"""One rule for 'do these rows, codes and matches belong here': every entry point asks it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.saes import CodeMap, SAERows, decoder_geometry, match_features
from lrt_lens.errors import MismatchError
from lrt_lens.models import ModelPair
from tests.adapters.saes.codes.test_code_map import TinySae
from tests.adapters.test_belonging import the_message

SOURCE, TARGET = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
FAST: dict[str, Any] = {"n_tokens": 500, "context_length": 32, "progress": False}


@pytest.fixture(scope="module")
def stitch(pair: ModelPair, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, source_layers=[0], target_layers=[1], context_length=32, progress=False
    ).best()


@pytest.fixture(scope="module")
def sae(pair: ModelPair) -> Callable[..., Any]:
    """``sae(16)``: a random SAE of this width without metadata."""

    def make(width: int) -> Any:
        from sae_lens import TopKSAE, TopKSAEConfig

        config = TopKSAEConfig(d_in=width, d_sae=2 * width, k=4, rescale_acts_by_decoder_norm=False)
        return TopKSAE(config)

    return make


def rows_of(model: Any, hook: str) -> SAERows:
    """Rows of a hook point; they are compared before any is read."""

    def chunks() -> Iterator[torch.Tensor]:
        return pytest.fail("rows were read before the refusal")

    return SAERows(hook, torch.ones(3, model.d_model), chunks, model.identity)


def test_every_entry_point_gives_one_answer_about_rows(
    pair: ModelPair, stitch: Any, sae: Any, load: Any
) -> None:
    studies: dict[str, Callable[[Any], Any]] = {
        "study_sae_initialisation": lambda rows: lrt.study_sae_initialisation(
            pair, stitch, sae(16), rows, progress=False
        ),
        "study_sae_scaling": lambda rows: lrt.study_sae_scaling(
            pair, stitch, [sae(16), TinyWidth(sae(16))], rows, progress=False
        ),
    }
    training: dict[str, Callable[[Any], Any]] = {
        "train_sae": lambda rows: lrt.train_sae(pair.target, rows, at=1, progress=False)
    }
    stranger = rows_of(load("llama", d=24, layers=3, seed=92), TARGET)
    for foreign in (stranger, rows_of(pair.source, TARGET)):
        message = the_message(studies | training, foreign)
        assert message.startswith("these rows were read on a model that is")
    wide = replace(stranger, model=None, held_out=torch.ones(3, 40))
    message = the_message(studies | training, wide)
    assert message.startswith("these rows have width 40; expected 24 dimensions, as at")
    elsewhere = rows_of(pair.target, "blocks.2.hook_resid_post")
    start = "these rows were read at 'blocks.2.hook_resid_post' on "
    assert the_message(studies, elsewhere).startswith(start)
    assert the_message(training, elsewhere).startswith(start)


class TinyWidth:
    """An SAE with another number of features in its configuration, for a study of two widths."""

    def __init__(self, sae: Any) -> None:
        self.cfg, self.W_dec = replace(sae.cfg, d_sae=8), sae.W_dec


def test_codes_of_other_models_or_hook_points_are_refused(
    pair: ModelPair, stitch: Any, load: Any, corpus: list[str]
) -> None:
    one = TinySae(16)
    codes = CodeMap(
        torch.zeros(2, 24),
        torch.zeros(24),
        torch.arange(2),
        torch.ones(len(one.W_dec), dtype=torch.int64),
        SOURCE,
        TARGET,
        pair.source.identity,
        pair.target.identity,
    )
    stranger = load("llama", d=24, layers=3, seed=92).identity
    for foreign, message in (
        (replace(codes, target=stranger), "the target model of the code map is"),
        (replace(codes, source=stranger), "the source model of the code map is"),
        (replace(codes, source_hook=TARGET), "the code map maps 'blocks.1"),
        (
            replace(codes, target=None, weight=torch.zeros(2, 40), bias=torch.zeros(40)),
            r"the code map maps .* \[40\]; expected .* \[24\]",
        ),
    ):
        with pytest.raises(MismatchError, match=message):
            lrt.evaluate_code_map(pair, stitch, one, foreign, corpus, **FAST)


def test_matches_of_other_saes_are_refused(pair: ModelPair, stitch: Any, corpus: list[str]) -> None:
    one, other = TinySae(16), TinySae(24)
    matches = match_features(
        pair, stitch, one, other, corpus, min_firings=1, **FAST | {"n_tokens": 3000}
    )
    decoders = [sae.W_dec.detach() for sae in (one, other)]
    generator = torch.Generator().manual_seed(5)
    random = torch.randn(decoders[0].shape, generator=generator)
    for wrong in (random, decoders[0][:12], torch.cat([decoders[0], random])):
        with pytest.raises(MismatchError, match="give the matches of these two SAEs"):
            decoder_geometry(wrong, decoders[1], matches=matches, n_draws=1)
    # The precision and the length of the rows do not matter.
    for right in (decoders[0].to(torch.bfloat16), 3 * decoders[0]):
        matches.refuse_other_decoders(right, decoders[1])


def test_misspelt_options_are_found_before_the_text_is_read(
    pair: ModelPair, stitch: Any, sae: Any
) -> None:
    class Unread(list[str]):
        def __iter__(self) -> Iterator[str]:
            return pytest.fail("documents were read")

    for study, saes in (
        (lrt.study_sae_initialisation, sae(16)),
        (lrt.study_sae_scaling, [sae(16), TinyWidth(sae(16))]),
    ):
        with pytest.raises(TypeError, match="unknown option lrr"):
            study(pair, stitch, saes, Unread(), lrr=1, progress=False)
