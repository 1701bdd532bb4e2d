"""Concepts for scripts that steer or map them, and a map fitted on ordinary text.

Problem: scripts that steer or map concepts need the same concepts, from task files or from the
bundled data. Mechanism: one loader for both, which never uses a text as an item.

    concepts = load_concepts(None, pairs=40, test_items=20)      # the bundled ones

Limits: task files have the form of the model-written evaluations.
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
from lrt_lens.stitching._fit_stitches import fit_stitches
from lrt_lens.stitching._stitch import Stitch

logger = logging.getLogger(__name__)


def load_concepts(folder: Path | None, pairs: int, test_items: int, seed: int = 0) -> list[Concept]:
    """Return one concept per task file of the folder, or the bundled ones.

    Args:
        folder: at least two JSON Lines files in the form of the model-written evaluations; None for
            the bundled concepts.
        pairs: largest number of text pairs per concept.
        test_items: largest number of items per concept; they share no text with the pairs.
        seed: seed of the split of a task file.

    Raises:
        MissingInputError: fewer than two task files.
    """
    if folder is None:
        return [
            Concept(
                first_pairs(demo_contrast(name), pairs), first_items(demo_items(name), test_items)
            )
            for name in CONCEPTS
        ]
    # Sorted, because the order of files in a folder differs between systems.
    files = sorted(folder.glob("*.jsonl"))
    if len(files) < 2:
        raise MissingInputError(
            f"--tasks: {len(files)} .jsonl file(s) in {str(folder.absolute())!r}; "
            "give a folder of at least two task files"
        )
    # `n_test` items are held out of the pairs, so a file has to hold both numbers together.
    return [
        Concept.from_items(
            behaviour_items(file, n=pairs + test_items, seed=seed), n_test=test_items, seed=seed
        )
        for file in files
    ]


def first_pairs(contrast: ContrastSet, n: int) -> ContrastSet:
    """Return the contrast set of the first n pairs."""
    return ContrastSet(contrast.positive[:n], contrast.negative[:n], name=contrast.name)


def first_items(items: ChoiceItems, n: int) -> ChoiceItems:
    """Return the first n items."""
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
    """Return a map of ordinary text between two hook points.

    The result is None if ``n_tokens`` is 0, or, with a warning, if the models cannot be paired.

    Args:
        models: source and target.
        documents: texts to fit on.
        source_hook: layer or hook point of the source.
        target_hook: layer or hook point of the target.
        n_tokens: tokens to fit on.
        seed: seed of the folds.
    """
    if not n_tokens:
        return None
    try:
        # A map of ordinary text needs tokens that correspond; concept maps do not.
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
