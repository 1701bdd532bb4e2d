"""Concepts for scripts that steer or map them: contrast texts and items from task files, or
bundled; and a map of ordinary text between two layers.
"""

import logging
from pathlib import Path
from typing import Any

from lrt_lens.adapters.concepts._evaluation import Concept
from lrt_lens.bundled._texts import CONCEPTS, demo_contrast, demo_items
from lrt_lens.data._behaviours import behaviour_items
from lrt_lens.data._contrast import ChoiceItems, ContrastSet
from lrt_lens.errors import MismatchError
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.reproduction._options import MissingInputError
from lrt_lens.stitching._fit import fit_stitches
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


def load_concepts(folder: Path | None, pairs: int, test_items: int, seed: int = 0) -> list[Concept]:
    """A concept a task file of the folder (at least two), or the bundled ones.

    Args: folder: JSON Lines files in the form of the model-written evaluations; None for the
        bundled concepts. pairs: pairs of texts a concept at most. test_items: items a concept at
        most, which share no text with the pairs. seed: of the split of a task file.
    """
    if folder is None:
        return [
            Concept(
                first_pairs(demo_contrast(name), pairs), first_items(demo_items(name), test_items)
            )
            for name in CONCEPTS
        ]
    files = sorted(folder.glob("*.jsonl"))
    if len(files) < 2:
        raise MissingInputError(
            f"--tasks: {len(files)} .jsonl file(s) in {str(folder.absolute())!r}; give a folder of at least two task files"
        )
    return [
        Concept.from_items(
            behaviour_items(file, n=pairs + test_items, seed=seed), n_test=test_items, seed=seed
        )
        for file in files
    ]


def first_pairs(contrast: ContrastSet, n: int) -> ContrastSet:
    """The first n pairs."""
    return ContrastSet(contrast.positive[:n], contrast.negative[:n], name=contrast.name)


def first_items(items: ChoiceItems, n: int) -> ChoiceItems:
    """The first n items."""
    return ChoiceItems(items.prompts[:n], items.positive[:n], items.negative[:n], name=items.name)


def generic_stitch(
    models: tuple[HookedModel, HookedModel],
    documents: Any,
    *,
    source_hook: int | str,
    target_hook: int | str,
    n_tokens: int,
    seed: int = 0,
) -> Stitch | None:
    """A map of ordinary text between two hook points; None, with a warning, where no tokens are
    wanted or the models cannot be paired.
    """
    if not n_tokens:
        return None
    try:
        pair = ModelPair(*models)
    except MismatchError as error:
        logger.warning("no map of generic text: %s", error)
        return None
    grid = fit_stitches(
        pair,
        documents,
        source_layers=[source_hook],
        target_layers=[target_hook],
        n_tokens=n_tokens,
        null=False,
        seed=seed,
    )
    return grid.best()
