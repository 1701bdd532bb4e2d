"""Moments of activations that a user brings: arrays, mappings, ids of documents and tokens."""

import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score

from lrt_lens.data import Parts, document_key, part_of
from lrt_lens.errors import HookPointError, MismatchError, NonFiniteError
from lrt_lens.moments import ActivationSettings, CrossMoments, harvest
from lrt_lens.stitching.solvers import Ridge
from tests.moments.small_blocks import OPTIONS
from tests.rows import SOURCES, TARGETS

PAIR = ("source", "target")
N_TOKENS = 40
"""Different tokens in the rows with tokens."""


def same(one: CrossMoments, other: CrossMoments, rel: float = 1e-9) -> None:
    """Compare all sums."""
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(tensor, theirs[name], rtol=rel, atol=rel * scale, msg=name)


@pytest.fixture(scope="module")
def tokens(rows: Any) -> np.ndarray:
    return np.random.default_rng(0).zipf(1.3, len(rows.x)).clip(max=N_TOKENS) * 7


@pytest.fixture(scope="module")
def lexical(rows: Any, tokens: np.ndarray) -> Any:
    """Those rows with a state of the target that depends on the token too."""
    effect = torch.from_numpy(np.random.default_rng(1).normal(size=(7 * N_TOKENS + 1, 9)))
    return replace(rows, y=rows.y + 3 * effect[torch.from_numpy(tokens)])


# ------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4"])
def test_numpy_arrays_are_torch_tensors(rows: Any, dtype: str) -> None:
    x, y = (values.numpy().astype(dtype) for values in (rows.x, rows.y))
    native = np.dtype(dtype).newbyteorder("=")
    tensors = [torch.from_numpy(values.astype(native)) for values in (x, y)]
    found = CrossMoments.from_activations(x, y, documents=rows.documents)
    same(found, CrossMoments.from_activations(*tensors, documents=rows.documents), rel=0)


def test_bfloat16_of_numpy_is_read_as_such(rows: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, y = rows.x.bfloat16(), rows.y.bfloat16()
    theirs = [values.float().numpy().astype(ml_dtypes.bfloat16) for values in (x, y)]
    same(
        CrossMoments.from_activations(*theirs, documents=rows.documents),
        CrossMoments.from_activations(x, y, documents=rows.documents),
        rel=0,
    )


def test_a_mapped_file_is_read_in_pieces(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "x.npy", tmp_path / "y.npy"]
    for path, values in zip(paths, (rows.x, rows.y), strict=True):
        np.save(path, values.numpy())
    mapped = [np.load(path, mmap_mode="r") for path in paths]
    monkeypatch.setattr("lrt_lens.moments._own_rows._ROWS_AT_ONCE", 100)
    found = CrossMoments.from_activations(*mapped, documents=rows.documents, moment_dtype="float64")
    monkeypatch.undo()
    whole = CrossMoments.from_activations(
        rows.x, rows.y, documents=rows.documents, moment_dtype=torch.float64
    )
    # The shift is the mean of other rows, so centred scatters are compared.
    for parts in (whole.parts.fit, whole.parts.test):
        for name in ("mean_x", "xx", "xy", "yy"):
            ours, theirs = (getattr(m.scatter(PAIR, parts), name) for m in (found, whole))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-6)


def test_gradients_are_not_kept(rows: Any) -> None:
    x = rows.x.clone().requires_grad_()
    moments = CrossMoments.from_activations(x, rows.y, documents=rows.documents)
    assert not any(tensor.requires_grad for tensor in moments.tensors().values())


# ----------------------------------------------------------------------------------------- mappings


def test_mappings_give_one_grid_of_all_hook_pairs(rows: Any, layered: dict) -> None:
    x = {0: layered["source"][SOURCES[0]], SOURCES[1]: layered["source"][SOURCES[1]].numpy()}
    y = {0: layered["target"][TARGETS[0]], np.int64(2): layered["target"][TARGETS[1]]}
    moments = CrossMoments.from_activations(
        x, y, documents=rows.documents, moment_dtype=torch.float64
    )
    assert moments.pairs == tuple((s, t) for s in SOURCES for t in TARGETS)
    for s, t in moments.pairs:
        alone = CrossMoments.from_activations(
            layered["source"][s],
            layered["target"][t],
            documents=rows.documents,
            source_hook=s,
            target_hook=t,
            moment_dtype=torch.float64,
        )
        for parts in (alone.parts.fit, alone.parts.test):
            torch.testing.assert_close(
                moments.scatter((s, t), parts).xy, alone.scatter((s, t), parts).xy
            )
        for test in (False, True):
            torch.testing.assert_close(
                moments.null_scatter((s, t), test).xy, alone.null_scatter((s, t), test).xy
            )


def test_hook_pairs_can_be_chosen_and_other_arrays_are_not_read(rows: Any, layered: dict) -> None:
    x, y = layered["source"], layered["target"]
    bad = {SOURCES[0]: rows.x * float("nan"), **{h: v for h, v in x.items() if h != SOURCES[0]}}
    moments = CrossMoments.from_activations(bad, y, documents=rows.documents, pairs=[(1, 2)])
    assert moments.pairs == ((SOURCES[1], TARGETS[1]),)
    assert moments.token_hook == "hook_embed"
    assert set(moments.source) == {SOURCES[1], "hook_embed"}


def test_rows_of_several_hook_points_come_in_several_calls(rows: Any, layered: dict) -> None:
    def piece(start: int, stop: int) -> dict[str, Any]:
        x, y = (
            {hook: values[start:stop] for hook, values in layered[side].items()}
            for side in ("source", "target")
        )
        return {"x": x, "y": y, "documents": rows.documents[start:stop]}

    options: dict[str, Any] = {"moment_dtype": torch.float64, "null": False}
    moments = CrossMoments.from_activations(**piece(0, 1000), **options)
    moments.update(**piece(1000, 1010))
    moments.update(**piece(1010, 2400))
    whole = CrossMoments.from_activations(**piece(0, 2400), **options)
    assert moments.provenance.part_documents == whole.provenance.part_documents
    for pair in whole.kept_pairs:
        for part in whole.n.nonzero()[:, 0].tolist():
            torch.testing.assert_close(
                moments.scatter(pair, (part,)).xy, whole.scatter(pair, (part,)).xy
            )


# --------------------------------------------------------------------------------------------- null


def test_the_null_is_that_of_a_naive_permutation_of_documents(rows: Any, moments_of: Any) -> None:
    # With x and y that name their document and position, the sums show which rows were paired.
    document = torch.tensor([int(name.split()[1]) for name in rows.documents])
    position = torch.arange(len(document)) % 20
    x = torch.nn.functional.one_hot(document).double()
    y = torch.cat([x, torch.nn.functional.one_hot(position).double()], 1)
    moments = moments_of(replace(rows, x=torch.cat([x, y[:, 120:]], 1), y=y))
    for test in (False, True):
        null = moments.null_scatter(PAIR, test)
        # Σ x̃ ỹᵀ without centring: numbers of pairs.
        pairs = null.xy + null.n * torch.outer(null.mean_x, null.mean_y)
        torch.testing.assert_close(pairs[:120, :120].diagonal(), torch.zeros(120).double())
        # All documents have 20 rows, so each position has partners at the same position.
        n_documents = null.n / 20
        same_position = n_documents * torch.eye(20).double()
        torch.testing.assert_close(pairs[120:, 120:], same_position)
        # Every row is used once on either side.
        of_documents = null.n * null.mean_x[:120]
        torch.testing.assert_close(pairs[:120, :120].sum(1), of_documents)
        torch.testing.assert_close(pairs[:120, :120].sum(0), of_documents)


@pytest.mark.parametrize("null", ["full", "sketch"])
def test_the_null_of_the_grid_is_about_nought(rows: Any, null: str) -> None:
    moments = CrossMoments.from_activations(rows.x, rows.y, documents=rows.documents, null=null)
    scores = moments.fit(Ridge()).scores.iloc[0]
    assert moments.null == null
    assert scores["r2"] > 0.4
    assert -0.1 < scores["r2_null"] < 0.03


def test_blocks_of_long_documents_hold_rows_of_all(
    rows: Any, moments_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Ten documents of 240 rows in blocks of 64 rows: as they come, a block is one document.
    monkeypatch.setattr("lrt_lens.moments._from_activations.rows_of_block", lambda *_: 64)
    documents = [f"long {i // 240}" for i in range(2400)]
    with caplog.at_level(logging.WARNING):
        moments = moments_of(replace(rows, documents=documents))
        moments.finish()
    open_null = moments.open_null
    assert open_null.n_null == 2400
    assert open_null.n_same < 0.02 * 2400
    assert "shuffled pairs" not in caplog.text


def test_a_null_within_one_document_is_named(rows: Any, caplog: pytest.LogCaptureFixture) -> None:
    moments = CrossMoments(pairs=(PAIR,), null="full")
    with caplog.at_level(logging.WARNING):
        for start in range(0, 2400, 800):
            # Each call has one document, and is read before the next one comes.
            documents = [f"text {start}"] * 800
            moments.update(
                rows.x[start : start + 800], rows.y[start : start + 800], documents=documents
            )
            moments.finish()
    assert "100% of the shuffled pairs are of one document" in caplog.text
    assert "give more documents, or rows of more documents per call" in caplog.text


def test_rows_of_small_calls_wait_for_partners(rows: Any, moments_of: Any) -> None:
    whole = moments_of(rows)
    moments = CrossMoments(pairs=(PAIR,), moment_dtype=torch.float64, null="full")
    for start in range(0, 2400, 20):
        piece = rows.taken(range(start, start + 20))
        moments.update(piece.x, piece.y, documents=piece.documents)
    # All rows fit into one block, whose shuffled pairs do not depend on the calls.
    for test in (False, True):
        torch.testing.assert_close(
            moments.null_scatter(PAIR, test).xy, whole.null_scatter(PAIR, test).xy
        )


@pytest.mark.parametrize("way", ["saved", "pickled", "merged"])
def test_rows_that_wait_are_not_lost(rows: Any, moments_of: Any, way: str, tmp_path: Path) -> None:
    moments, expected = moments_of(rows), moments_of(rows)
    expected.finish()
    assert moments.open_null.is_waiting
    if way == "saved":
        found = CrossMoments.load(moments.save(tmp_path / "moments.safetensors"))
    elif way == "pickled":
        found = pickle.loads(pickle.dumps(moments))
    else:
        empty = CrossMoments((PAIR,), None, torch.float64, "full", moments.provenance)
        found = empty.merge(moments)
    same(found, expected)


def test_positions_decide_the_partners(rows: Any, moments_of: Any) -> None:
    ranks = np.tile(np.arange(20), 120)
    by_rank, given = moments_of(rows), moments_of(rows, positions=ranks)
    same(by_rank, given, rel=0)
    other = moments_of(rows, positions=np.random.default_rng(0).permutation(ranks))
    assert not torch.allclose(
        other.null_scatter(PAIR, False).xy, given.null_scatter(PAIR, False).xy
    )


# ------------------------------------------------------------------------------------ as in harvest


def test_rows_of_a_harvest_give_its_moments(pair: Any, corpus: list[str]) -> None:
    """Compare all sums, null and token identity included, with the same blocks."""
    by_key = {document_key(text, 0): text for text in corpus}
    blocks: list[tuple[Any, ...]] = []

    def keep(_: Any, order: list[Any], x: Any, y: Any) -> None:
        documents = [by_key[w.document] for w in order for _ in w.rows]
        positions = np.concatenate([w.rows for w in order])
        blocks.append((dict(x), dict(y), documents, positions))

    whole = harvest(pair, corpus, progress=False, on_block=keep, **OPTIONS)
    moments: CrossMoments | None = None
    for x, y, documents, positions in blocks:
        ids: dict[str, Any] = {"documents": documents, "positions": positions}
        if moments is None:
            moments = CrossMoments.from_activations(
                x,
                y,
                pairs=whole.pairs,
                moment_dtype=whole.moment_dtype,
                null=whole.null,
                source_model=pair.source,
                target_model=pair.target.identity,
                **ids,
            )
        else:
            moments.update(x, y, **ids)
        # A block of the harvest is a block of the null.
        moments.finish()
    assert moments is not None
    same(moments, whole)
    assert moments.provenance.part_documents == whole.provenance.part_documents
    assert moments.provenance.source == whole.provenance.source
    ours, theirs = moments.fit().scores, whole.fit().scores
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-6)


# ------------------------------------------------------------------------------------------- tokens


def naive_token_scores(rows: Any, columns: np.ndarray, alpha: float) -> tuple[float, float]:
    """R² of scikit-learn's ridge from columns, on the test fold."""
    fits = rows.fits
    y, x = rows.y.numpy(), columns.astype(float)
    penalty = alpha * ((x[fits] - x[fits].mean(0)) ** 2).sum() / x.shape[1]
    fitted = SklearnRidge(alpha=penalty).fit(x[fits], y[fits]).predict(x[~fits])
    return (
        r2_score(y[~fits], fitted, multioutput="variance_weighted"),
        r2_score(y[~fits], fitted, multioutput="uniform_average"),
    )


@pytest.mark.parametrize("most", [1024, 5])
def test_token_identity_is_ridge_from_a_column_per_frequent_token(
    lexical: Any, tokens: np.ndarray, moments_of: Any, most: int
) -> None:
    ids, counts = np.unique(tokens[lexical.fits], return_counts=True)
    frequent = np.sort(ids[np.argsort(-counts, kind="stable")[:most]])
    moments = moments_of(lexical, tokens=tokens, token_columns=most)
    assert moments.provenance.frequent_tokens == tuple(frequent.tolist())
    scores = moments.fit(Ridge(alpha=1e-3)).scores.iloc[0]
    expected = naive_token_scores(lexical, tokens[:, None] == frequent, 1e-3)
    assert (scores["r2_token"], scores["r2_uniform_token"]) == pytest.approx(expected, rel=1e-6)
    assert scores["r2_token"] > 0.1


def test_token_identity_is_ridge_from_the_embedding_if_it_is_given(
    lexical: Any, tokens: np.ndarray, moments_of: Any
) -> None:
    embedding = np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32)
    scores = moments_of(lexical, tokens=tokens, embedding=embedding).fit(Ridge(alpha=1e-3)).scores
    expected = naive_token_scores(lexical, embedding[tokens], 1e-3)
    found = scores.iloc[0][["r2_token", "r2_uniform_token"]].to_numpy(float)
    assert found == pytest.approx(expected, rel=1e-6)
    # States at hook_embed are the same rows.
    x = {"source": lexical.x, "hook_embed": embedding[tokens]}
    by_states = moments_of(replace(lexical, x=x)).fit(Ridge(alpha=1e-3)).scores
    assert by_states["r2_token"].item() == pytest.approx(expected[0], rel=1e-6)


def test_the_gain_is_over_token_identity(lexical: Any, tokens: np.ndarray, moments_of: Any) -> None:
    grid = moments_of(lexical, tokens=tokens).fit()
    row = grid.scores.iloc[0]
    token = grid.folds[PAIR].token.r2_uniform
    assert row["gain_cv"] == pytest.approx((row["r2_uniform_cv"] - token) / (1 - token))
    assert 0 < row["gain_cv"] < row["r2_uniform_cv"]


def test_without_tokens_the_gain_is_unknown_and_not_r2(rows: Any, moments_of: Any) -> None:
    grid = moments_of(rows).fit()
    assert grid.scores[["gain_cv", "r2_token", "r2_uniform_token"]].isna().to_numpy().all()
    assert grid.scores["r2_null"].notna().all()
    with pytest.raises(ValueError, match=r"gain_cv is unknown, .*: give tokens=….*r2_uniform_cv"):
        grid.best(by="gain_cv")
    assert grid.choices()["score"].item() == grid.scores["r2_uniform_cv"].item()
    assert grid.best().scores == grid.best(by="r2_uniform_cv").scores
    html = grid._repr_html_()
    assert "best pair (r2_uniform_cv)" in html
    assert "gain_cv is unknown, because these moments hold no token identity" in html


def test_later_rows_have_the_columns_of_the_first(
    lexical: Any, tokens: np.ndarray, moments_of: Any, tmp_path: Path
) -> None:
    first = lexical.taken(range(1200))
    moments = moments_of(first, tokens=tokens[:1200], token_columns=5, null=False)
    moments = CrossMoments.load(moments.save(tmp_path / "first.safetensors"))
    moments.update(
        lexical.x[1200:], lexical.y[1200:], documents=lexical.documents[1200:], tokens=tokens[1200:]
    )
    frequent = moments.provenance.frequent_tokens
    whole = moments_of(lexical, tokens=tokens, frequent_tokens=frequent, null=False)
    assert moments.kept_pairs == whole.kept_pairs
    for pair in whole.kept_pairs:
        ours, theirs = (m.scatter(pair, m.parts.fit) for m in (moments, whole))
        torch.testing.assert_close(ours.xy, theirs.xy)
        torch.testing.assert_close(ours.xx, theirs.xx)
    other = moments_of(lexical, tokens=tokens, null=False)
    with pytest.raises(MismatchError, match=r"differ in frequent_tokens, .* for the second"):
        moments.merge(other)


# --------------------------------------------------------------------------------------- provenance


def test_documents_are_counted_by_their_ids(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows.taken(range(1210)))
    assert moments.provenance.n_documents == 61
    # The document of rows 1200 to 1219 continues.
    rest = rows.taken(range(1210, 2400))
    moments.update(rest.x, rest.y, documents=rest.documents)
    assert moments.provenance.n_documents == 120
    expected = np.bincount([part_of(document_key(f"document {i}", 0)) for i in range(120)])
    assert moments.provenance.part_documents == tuple(expected.tolist())
    assert moments.folds["documents"].sum() == 120
    assert "120" in moments._repr_html_()


def test_what_is_unknown_is_called_unknown(
    rows: Any, moments_of: Any, layered_moments: Callable[..., CrossMoments], tmp_path: Path
) -> None:
    moments = moments_of(rows)
    assert moments.provenance.source is None
    assert "unknown" in moments.provenance.alignment
    assert "unknown model" in moments._repr_html_()
    stitch = moments.fit().best()
    assert repr(stitch).startswith("Stitch(unknown source → unknown target, r2 0.")
    assert repr(stitch).endswith(", tokens alone unknown)")
    stitch.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "0 tokens" not in card
    assert "windows: unknown" in card
    assert "It is unknown what tokens explain" in card
    assert "others are refused by the hash" not in card
    # Rows that were added without documents.
    uncounted = layered_moments()
    assert ">unknown<" in uncounted._repr_html_()
    uncounted.fit().best().save_pretrained(tmp_path / "uncounted")
    text = (tmp_path / "uncounted" / "README.md").read_text(encoding="utf-8")
    assert "documents: unknown" in text


def test_models_can_be_named(pair: Any, rows: Any) -> None:
    n = 2400
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, pair.source.d_model, generator=generator)
    y = torch.randn(n, pair.target.d_model, generator=generator)
    moments = CrossMoments.from_activations(
        {-1: x},
        {1: y},
        documents=rows.documents,
        source_model=pair.source,
        target_model=pair.target.identity,
    )
    last = f"blocks.{pair.source.n_layers - 1}.hook_resid_post"
    assert moments.pairs == ((last, "blocks.1.hook_resid_post"),)
    stitch = moments.fit().best()
    stitch.check(pair.source, pair.target)
    with pytest.raises(MismatchError, match="expected"):
        stitch.check(pair.target, pair.source)
    with pytest.raises(HookPointError, match=r"x has the layer 99, and .* blocks"):
        CrossMoments.from_activations(
            {99: x}, {1: y}, documents=rows.documents, source_model=pair.source
        )
    with pytest.raises(MismatchError, match=r"x\[0\] has 12 dimensions, and .* has"):
        CrossMoments.from_activations(
            {0: rows.x}, {1: y}, documents=rows.documents, source_model=pair.source
        )


# ---------------------------------------------------------------------------------------- bad input


BAD: list[tuple[str, type[Exception], str]] = [
    ("x = [x]", TypeError, "x is of type list; expected a torch tensor .* torch.cat"),
    ("x = x.reshape(120, 20, 12)", ValueError, r"shape \[120, 20, 12\].*flatten"),
    ("x = x.long()", TypeError, "x is of dtype torch.int64; expected floating"),
    ("x = x.numpy().astype(complex)", TypeError, "x is of dtype complex128"),
    ("x = {}", ValueError, r"x has the hook points \[\]; expected at least one"),
    ("x = {3: x, 'blocks.3.hook_resid_post': x}", ValueError, "expected at least one, each once"),
    ("x = {-1: x}", HookPointError, "layer -1, and the number of layers is unknown"),
    ("x = {True: x}", TypeError, "x has the key True; expected a layer"),
    (
        "x, y = {3: x, 4: x[1:]}, {5: y}",
        ValueError,
        r"x\[3\] has 2400, x\[4\] 2399, y\[5\] 2400, documents 2400",
    ),
    ("ids['tokens'] = [1, 2]", ValueError, "x has 2400, y 2400, documents 2400, tokens 2"),
    ("ids['tokens'] = np.ones(2400)", TypeError, "tokens is of dtype float64; expected whole"),
    ("ids['tokens'] = -np.ones(2400, int)", ValueError, "smallest number -1"),
    ("ids['positions'] = range(7)", ValueError, "documents 2400, positions 7"),
    ("ids['embedding'] = x", ValueError, "embedding is given without tokens"),
    (
        "ids |= {'tokens': np.arange(2400), 'embedding': x[:5]}",
        ValueError,
        "tokens has the id 2399, and embedding 5 rows",
    ),
    (
        "x, ids['tokens'] = {1: x, 'hook_embed': x}, np.arange(2400)",
        ValueError,
        "both stand for token identity",
    ),
    ("ids['pairs'] = [(1, 2)]", HookPointError, r"pairs has \[\('blocks.1.hook_resid_post', "),
    ("ids['layers'] = 5", TypeError, "unknown option layers"),
    ("ids['token_columns'] = 0", ValueError, "token_columns"),
    ("x[5, 2] = float('inf')", NonFiniteError, "1 of 2400 activations at 'source' are NaN"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_refused(rows: Any, change: str, kind: type[Exception], message: str) -> None:
    names = {"x": rows.x.clone(), "y": rows.y, "ids": {"documents": rows.documents}, "np": np}
    exec(change, names)
    with pytest.raises(kind, match=message):
        CrossMoments.from_activations(names["x"], names["y"], **names["ids"])


def test_tokens_that_come_too_late_are_refused(rows: Any, moments_of: Any) -> None:
    moments = moments_of(rows)
    with pytest.raises(ValueError, match="these moments have no token identity: give tokens with"):
        moments.update(rows.x, rows.y, documents=rows.documents, tokens=range(2400))


def test_moments_that_do_not_fit_are_refused_before_a_row_is_read(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrt_lens.moments._placement.available_memory", lambda _: 1000)
    with pytest.raises(ValueError, match=r"give fewer hook pairs \(pairs=…\), null=False"):
        CrossMoments.from_activations(rows.x * float("nan"), rows.y, documents=rows.documents)


def test_ids_may_be_columns_of_a_table(rows: Any, moments_of: Any) -> None:
    table = pd.DataFrame({"document": rows.documents}, index=range(5000, 7400))
    x = rows.x.clone()
    # A heavy row is named by its document.
    x[7] *= 1e6
    moments = moments_of(replace(rows, x=x, documents=table["document"]))
    assert moments.provenance.n_documents == 120
    [(_, name)] = [
        row for hook, row in moments.provenance.heaviest_rows.items() if "source" in hook
    ]
    assert name == "row 7 (document 'document 0')"


def test_settings_are_an_object_or_keywords(rows: Any) -> None:
    settings = ActivationSettings(null="sketch", seed=3, parts=Parts(3, 2))
    one = CrossMoments.from_activations(rows.x, rows.y, documents=rows.documents, settings=settings)
    other = CrossMoments.from_activations(
        rows.x, rows.y, documents=rows.documents, null="sketch", seed=3, parts=Parts(3, 2)
    )
    same(one, other, rel=0)
    assert one.provenance == other.provenance
