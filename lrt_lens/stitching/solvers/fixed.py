"""Maps that were not fitted on these moments, scored beside those that were: from weights alone, from training by steps, or composed of others.

    grid.compare([Ridge(), FixedMaps(adam.maps, "adam_stitching"), shared_embedding_maps(pair)])

`shared_embedding_maps` is the Emb2Emb baseline: the rows of the two models' (un)embedding matrices that belong to the same tokens are paired
data for a map, and no text is run through either model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lrt_lens.errors import MismatchError
from lrt_lens.models.hooked_model import HookedModel
from lrt_lens.models.pair import ModelPair
from lrt_lens.stitching.affine import AffineMap, MapPair
from lrt_lens.stitching.moments import FIT_PARTS, CrossMoments, Pair
from lrt_lens.stitching.solvers.ridge import Ridge
from lrt_lens.stitching.solvers.solver import FoldErrors, Setting, Side, Solver, held_out_errors


@dataclass(frozen=True)
class FixedMaps(Solver):
    """The same two maps for every pair of hook points that they fit."""

    maps: MapPair
    label: str = "fixed"
    """Its name in tables."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return self.label

    def sides(self, moments: CrossMoments) -> tuple["FixedSide", "FixedSide"]:
        """(up, down)."""
        return FixedSide(moments, self.maps.up, down=False), FixedSide(moments, self.maps.down, down=True)


class FixedSide(Side):
    """One direction of `FixedMaps`; nothing is fitted, so every refit and the null are the map itself."""

    def __init__(self, moments: CrossMoments, affine: AffineMap, *, down: bool) -> None:
        super().__init__(moments, down=down)
        self.affine = affine

    def cross_validate(self, pair: Pair) -> FoldErrors:
        """Errors on each fold."""
        held_out = [self.scatter(pair, (k,)) for k in FIT_PARTS]
        setting = Setting()
        return held_out_errors(held_out, [[self.solve(pair, (), setting)] for _ in FIT_PARTS], [setting])

    def solve(self, pair: Pair, parts: Sequence[int], setting: Setting) -> AffineMap:  # noqa: ARG002 (nothing is fitted)
        """The map, between the pair's hook points; MismatchError where the widths are others."""
        source, target = self.names(pair)
        widths = tuple(self.scatter(pair, FIT_PARTS).xy.shape)
        if tuple(self.affine.weight.shape) != widths:
            raise MismatchError(
                f"the fixed map is {tuple(self.affine.weight.shape)}, but {source!r} → {target!r} is {widths}; give a map of these widths"
            )
        return replace(
            self.affine, weight=self.affine.weight.double(), bias=self.affine.bias.double(), source_hook=source, target_hook=target
        )

    def fit_null(self, pair: Pair, setting: Setting) -> AffineMap:
        """The map itself."""
        return self.solve(pair, (), setting)


def shared_embedding_maps(pair: ModelPair, matrix: Literal["embed", "unembed"] = "unembed", solver: Solver | None = None) -> FixedMaps:
    """Maps fitted on the rows of both models' embedding (or unembedding) matrices, a row per token that both vocabularies have.

    Residual streams write in the unembedding's coordinates late and in the embedding's early. Needs no activations; ``solver`` is `Ridge()`
    unless given, with the penalty chosen over folds of tokens.
    """
    source, target = _matrix(pair.source, matrix), _matrix(pair.target, matrix)
    theirs = pair.target.tokenizer.get_vocab()
    shared = [(i, theirs[token], token) for token, i in pair.source.tokenizer.get_vocab().items() if token in theirs]
    shared = [(i, j, token) for i, j, token in shared if i < len(source) and j < len(target)]
    if len(shared) < 64:
        raise MismatchError(
            f"{pair.source.name!r} and {pair.target.name!r} share {len(shared)} tokens; a map from embeddings needs a common vocabulary"
        )
    moments = CrossMoments.from_activations(
        source[[i for i, _, _ in shared]],
        target[[j for _, j, _ in shared]],
        documents=[token for _, _, token in shared],
        source_hook=f"{matrix}_source",
        target_hook=f"{matrix}_target",
    )
    (only,) = moments.pairs
    return FixedMaps(moments.fit(solver or Ridge())[only].maps, f"shared_{matrix}dings")


def _matrix(model: HookedModel, matrix: str) -> Tensor:
    """[token, d_model] in float32, on the CPU."""
    bridge = model.bridge
    original = getattr(bridge, "original_model", None)
    if original is not None:
        module = original.get_input_embeddings() if matrix == "embed" else original.get_output_embeddings()
        return module.weight.detach().float().cpu()
    weight = bridge.W_E if matrix == "embed" else bridge.W_U.T
    return torch.as_tensor(weight).detach().float().cpu()
