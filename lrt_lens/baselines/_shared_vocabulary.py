"""A stitch from the tokens that two vocabularies share: a map between (un)embedding matrices.

    stitch = embedding_stitch(pair, source_hook=2, target_hook=3)  # unembeddings
    embedding_stitch(pair, source_hook=0, target_hook=0, matrix="embed", texts=texts)

Problem: a map without activations, for models of which only weights and tokenizers are available.
Mechanism (Emb2Emb, Lee et al., arXiv 2503.21073): rows of both matrices that spell the same token
(`lrt_lens.data._token_spelling`) are pairs, and a linear map is fitted on them, here by ridge with
its penalty chosen over folds of tokens. No text is run through either model. The paper uses the map
of unembeddings for steering vectors of one family.

Limits: residual streams use the coordinates of the unembedding in late layers and those of the
embedding in early ones; for the layers between there is no such reason. ``scores`` hold R² on rows
of held-out tokens (``r2_embeddings``), which is no evidence about streams. Without ``texts`` the
statistics that scale a vector, and the bias, are those of the matrices: suitable for directions,
not for points. With ``texts`` each model reads them by itself, and the bias maps mean to mean.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lrt_lens.baselines._anchors import Models, other_rows, refuse_bad_texts, text_provenance
from lrt_lens.baselines._text_rows import read_text_rows
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import model_sides, paired_hooks
from lrt_lens.models._reading import readable
from lrt_lens.models._text_codec import text_list
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.moments._activation_settings import ActivationSettings
from lrt_lens.moments._from_activations import moments_of_activations
from lrt_lens.moments._own_rows import RowIds
from lrt_lens.stitching._affine import AffineMap, MapPair
from lrt_lens.stitching._fit import fit_grid
from lrt_lens.stitching._stitch import Stitch
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._shared_embeddings import Matrix, shared_rows
from lrt_lens.stitching.solvers._solver import Solver


def embedding_stitch(
    models: Models,
    *,
    source_hook: int | str,
    target_hook: int | str,
    matrix: Matrix = "unembed",
    solver: Solver | None = None,
    texts: Sequence[str] | None = None,
    skip_first: int = SKIP_FIRST,
    seed: int = 0,
) -> Stitch:
    """Return the stitch fitted on the rows of shared tokens; see the module docstring.

    Args:
        models: a `ModelPair`, or (source, target) of any two tokenizers.
        source_hook: hook point of the source at which the map is used.
        target_hook: hook point of the target.
        matrix: ``"unembed"`` (the paper) or ``"embed"``.
        solver: `Ridge()` by default.
        texts: for the statistics and means of the streams only; never paired.
        skip_first: number of masked tokens at the beginning of a text.
        seed: seed of the null.

    Raises:
        MismatchError: the vocabularies share fewer than 64 tokens.
        HookPointError: a hook point that the model does not have.
        ValueError: another ``matrix``, or fewer than two texts.
    """
    if matrix not in ("embed", "unembed"):
        raise ValueError(f"matrix is {matrix!r}; expected 'embed' or 'unembed'")
    source, target = model_sides(models)
    [hooks] = paired_hooks(source, target, source_hook, target_hook)
    tokens, x, y = shared_rows(source, target, matrix)
    solver = solver or Ridge()
    fitted = _fit(x, y, tokens, solver)
    # The null pairs each token with the row of another token.
    shuffled = y[other_rows(len(y), torch.Generator().manual_seed(seed))]
    null = _fit(x, shuffled, tokens, solver)
    about: dict[str, Any] = {
        "source_hook": hooks[0],
        "target_hook": hooks[1],
        "solver": f"shared_{matrix}dings",
        "n_shared_tokens": len(tokens),
    }
    names = ("r2", "r2_uniform", "r2_down", "r2_uniform_down", "alpha")
    stitch = Stitch(
        maps=_at(fitted.maps, hooks),
        source_statistics=fitted.source_statistics,
        target_statistics=fitted.target_statistics,
        scores=about | {f"{name}_embeddings": fitted.scores[name] for name in names},
        provenance=text_provenance(source, target, texts or [], skip_first, seed),
        null=_at(null.maps, hooks),
        refits=tuple(_at(maps, hooks) for maps in fitted.refits),
    )
    if texts is None:
        return stitch
    refuse_bad_texts(texts)
    kept = readable([source, target], texts, "every", skip_first=skip_first)
    return with_streams(stitch, source, target, kept.of(text_list(texts)), skip_first)


def with_streams(
    stitch: Stitch,
    source: HookedModel,
    target: HookedModel,
    texts: Sequence[str],
    skip_first: int = SKIP_FIRST,
) -> Stitch:
    """Return the stitch with statistics of the streams on these texts.

    Its biases map the mean of one stream to the mean of the other.
    """
    ours, theirs = (
        read_text_rows(model, text_list(texts), hook, skip_first=skip_first).statistics
        for model, hook in ((source, stitch.source_hook), (target, stitch.target_hook))
    )

    def centred(maps: MapPair) -> MapPair:
        # b = ȳ − x̄W
        up, down = (
            replace(affine, bias=end.mean - start.mean @ affine.weight.double())
            for affine, start, end in ((maps.up, ours, theirs), (maps.down, theirs, ours))
        )
        return MapPair(up, down)

    return replace(
        stitch,
        maps=centred(stitch.maps),
        null=stitch.null and centred(stitch.null),
        refits=tuple(map(centred, stitch.refits)),
        source_statistics=ours,
        target_statistics=theirs,
    )


def _fit(x: Tensor, y: Tensor, tokens: list[str], solver: Solver) -> Stitch:
    # Each token is a document of its own, so folds and intervals are over tokens.
    moments = moments_of_activations(x, y, RowIds(tokens), ActivationSettings(null=False))
    (only,) = moments.pairs
    return fit_grid(moments, solver)[only]


def _at(maps: MapPair, hooks: tuple[str, str]) -> MapPair:
    # The map is fitted between two matrices and used between two hook points: only names change.
    up, down = maps.up, maps.down
    return MapPair(
        AffineMap(up.weight.double(), up.bias.double(), *hooks),
        AffineMap(down.weight.double(), down.bias.double(), *hooks[::-1]),
    )
