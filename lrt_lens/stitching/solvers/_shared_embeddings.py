"""Maps fitted on rows of two models' (un)embedding matrices, without running either model.

This is the Emb2Emb baseline (Lee et al., arXiv 2503.21073). A row is one token that both
vocabularies have. Two tokens are the same if they have the same spelling, so the tokenizers may
differ.

    grid.compare([Ridge(), shared_embedding_maps(pair)])

Limits: the map is the same for all layers.
"""

from typing import Literal

import torch
from torch import Tensor

from lrt_lens.data._token_spelling import shared_tokens
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._activation_settings import ActivationSettings
from lrt_lens.moments._from_activations import moments_of_activations
from lrt_lens.moments._own_rows import RowIds
from lrt_lens.stitching._affine import MapPair
from lrt_lens.stitching.solvers._fixed import FixedMaps
from lrt_lens.stitching.solvers._ridge import Ridge
from lrt_lens.stitching.solvers._solver import Solver

Matrix = Literal["embed", "unembed"]
LEAST_SHARED = 64
"""Least number of shared tokens; with fewer, a fold could have too few rows, or none."""


def shared_embedding_maps(
    pair: ModelPair, matrix: Matrix = "unembed", solver: Solver | None = None
) -> FixedMaps:
    """Return maps fitted on the rows of both models' embedding (or unembedding) matrices.

    No activations are read. Early layers of a residual stream are close to the coordinates of the
    embedding, late layers to those of the unembedding.

    Args:
        pair: source model and target model.
        matrix: the matrix whose rows are used.
        solver: family of maps; `Ridge` if None. Its penalty is chosen by cross-validation over
            folds of tokens.

    Raises:
        MismatchError: the vocabularies share too few spellings.
    """
    # float32 rows [token, d_source] and [token, d_target].
    tokens, x, y = shared_rows(pair.source, pair.target, matrix)
    # Each token is a document of its own, so that folds are folds of tokens.
    settings = ActivationSettings(f"{matrix}_source", f"{matrix}_target", null=False)
    moments = moments_of_activations(x, y, RowIds(tokens), settings)
    (only,) = moments.pairs
    fitters = (solver or Ridge()).fitters(moments)
    up, down = (fitter.fit(only, fitter.cross_validate(only).setting) for fitter in fitters)
    return FixedMaps(MapPair(up, down), f"shared_{matrix}dings")


def shared_rows(
    source: HookedModel, target: HookedModel, matrix: Matrix
) -> tuple[list[str], Tensor, Tensor]:
    """Return spellings and rows of the tokens that both vocabularies have.

    The rows are [token, d_source] and [token, d_target].
    """
    ours, theirs = embedding_rows(source, matrix), embedding_rows(target, matrix)
    # A tokenizer may have tokens for which the model's matrix has no row.
    shared = [
        (text, i, j)
        for text, i, j in shared_tokens(source.tokenizer, target.tokenizer)
        if i < len(ours) and j < len(theirs)
    ]
    if len(shared) < LEAST_SHARED:
        raise MismatchError(
            f"{source.name!r} ({len(source.tokenizer)} tokens) and {target.name!r} "
            f"({len(target.tokenizer)}) share {len(shared)} spellings; "
            f"a map from embeddings needs at least {LEAST_SHARED}: use anchor_stitch, which needs "
            "texts only"
        )
    return (
        [text for text, _, _ in shared],
        ours[[i for _, i, _ in shared]],
        theirs[[j for _, _, j in shared]],
    )


def embedding_rows(model: HookedModel, matrix: Matrix) -> Tensor:
    """Return the rows of a matrix [token, d_model] in float32, on the CPU."""
    # The accessors of a transformers model return both matrices as [d_vocab, d_model]. A
    # HookedTransformer does not have them.
    original = model.engine.model
    if hasattr(original, "get_input_embeddings"):
        module = (
            original.get_input_embeddings()
            if matrix == "embed"
            else original.get_output_embeddings()
        )
        return module.weight.detach().float().cpu()
    # TransformerLens: W_E [d_vocab, d_model], W_U [d_model, d_vocab].
    weight = original.W_E if matrix == "embed" else original.W_U.T
    return torch.as_tensor(weight).detach().float().cpu()
