"""Agreement of a transferred lens with the target, on a model paired with itself and by hand."""

from typing import Any

import numpy as np
import pytest
import torch

import lrt_lens as lrt
from lrt_lens.adapters.lenses import Lens, LensSettings, evaluate_lens
from lrt_lens.adapters.lenses._evaluation import agreement
from lrt_lens.errors import MismatchError

OPTIONS: dict[str, Any] = {"context_length": 32, "n_tokens": 400, "progress": False}


@pytest.fixture(scope="module")
def grid(pair: Any, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, pairs=[(1, 1)], context_length=32, null="full", progress=False
    )


@pytest.fixture(scope="module")
def result(pair: Any, corpus: list[str], grid: Any) -> Any:
    token = lrt.token_identity_map(grid.moments, "blocks.1.hook_resid_post")
    lens = Lens.logit(pair.source.identity)
    return evaluate_lens(pair, grid.best(), lens, corpus, token_map=token, **OPTIONS)


def test_agreement_is_counted_by_hand() -> None:
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p, log_q = (one.log_softmax(-1) for one in (logits, other))
    found = agreement(log_p, log_q)
    for i in range(6):
        tops = [set(np.argsort(-one[i].numpy())[:5]) for one in (logits, other)]
        assert found["top5"][i] == len(tops[0] & tops[1]) / 5
        p, q = log_p[i].exp().numpy(), log_q[i].exp().numpy()
        assert found["kl"][i] == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)
        assert found["top1"][i] == (int(logits[i].argmax()) == int(other[i].argmax()))


def test_every_arm_is_compared_with_both_references(result: Any) -> None:
    arms = {"transferred", "source lens", "shuffled", "token identity"}
    rows = set(zip(result.table["arm"], result.table["reference"], strict=True))
    references = ("final prediction", "target lens")
    expected = {(arm, reference) for arm in arms for reference in references}
    assert rows == expected | {("target lens", "final prediction")}
    assert (result.table["n_documents"] >= 2).all()
    assert result.table[["top1", "top5"]].stack().between(0, 1).all()
    assert (result.table["kl"] >= 0).all()


def test_the_source_lens_behind_the_last_block_is_the_sources_prediction(
    result: Any, pair: Any, corpus: list[str]
) -> None:
    # The source hook point is behind its last block, so that its lens is its final prediction.
    row = result.table.query("arm == 'source lens' and reference == 'final prediction'").iloc[0]
    assert row["top5"] < 1
    same = lrt.ModelPair(pair.source, pair.source)
    stitch = lrt.fit_stitches(
        same, corpus, pairs=[(1, 1)], context_length=32, null="full", progress=False
    ).best()
    own = evaluate_lens(same, stitch, Lens.logit(pair.source.identity), corpus, **OPTIONS)
    rows = own.table.query("arm in ['transferred', 'source lens', 'target lens']")
    np.testing.assert_allclose(rows["top5"], 1, atol=0.02)
    np.testing.assert_allclose(rows["kl"], 0, atol=1e-3)
    assert max(own.table.query("arm == 'shuffled'")["top5"].tolist()) < 0.9


def test_a_difference_is_that_of_the_table(result: Any) -> None:
    rows = result.table.query("reference == 'final prediction'").set_index("arm")["top5"]
    one = result.difference("transferred", "shuffled")
    assert one.value == pytest.approx(rows["transferred"] - rows["shuffled"])
    with pytest.raises(ValueError, match="arm is 'nobody'"):
        result.difference("nobody", "shuffled")
    assert "LensEvaluation" in result._repr_html_()


def test_foreign_lenses_are_refused(pair: Any, grid: Any, corpus: list[str]) -> None:
    stitch = grid.best()
    with pytest.raises(MismatchError, match="this lens"):
        evaluate_lens(pair, stitch, Lens.logit(pair.target.identity), corpus, **OPTIONS)
    source = Lens.logit(pair.source.identity)
    with pytest.raises(MismatchError, match="target_lens"):
        evaluate_lens(pair, stitch, source, corpus, target_lens=source, **OPTIONS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"), [({"folds": "some"}, "folds is"), ({"n_tokens": 0}, "n_tokens is 0")]
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LensSettings(**options)


def test_two_tokenizers_transfer_a_lens_and_are_not_compared(
    load: Any, train_tokenizer: Any, corpus: list[str]
) -> None:
    other = load("llama", d=24, layers=3, seed=2, tokenizer=train_tokenizer(vocabulary=300))
    pair = lrt.ModelPair(load("llama", d=16, layers=2, seed=1), other)
    stitch = lrt.fit_stitches(
        pair, corpus, pairs=[(1, 1)], context_length=32, progress=False
    ).best()
    lens = Lens.logit(pair.source.identity)
    logits = stitch.transfer(lens).logits(pair.source, torch.zeros(3, 24))
    assert logits.shape == (3, pair.source.d_vocab)
    with pytest.raises(MismatchError, match="read the lens by itself"):
        evaluate_lens(pair, stitch, lens, corpus, **OPTIONS)
