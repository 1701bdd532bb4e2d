"""Labelled texts for scripts with probes: bundled tasks, a file, or a data set of sae-probes.

    train, test = bundled_tasks(map_seed=0)[0].sample(400).split()

Problem: probes of all scripts must be trained and tested on the same texts, none of which a map was
fitted on. Mechanism: each source of texts is a function that returns a `Task`.

Limits: texts of other languages have no bundled task.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from lrt_lens.bundled._texts import demo_contrast, demo_documents
from lrt_lens.data._document_files import read_records
from lrt_lens.data._document_rows import is_missing
from lrt_lens.data._parts import N_FOLDS, document_key, part_of
from lrt_lens.errors import FileFormatError
from lrt_lens.reproduction._labelled_texts import Task
from lrt_lens.reproduction._options import MissingInputError


def task_from_file(path: Path) -> Task:
    """Return the rows ``{"text": …, "label": …}`` of a JSON Lines file.

    Rows without a label are left out.

    Raises:
        MissingInputError: there is no such file.
        FileFormatError: the file is damaged or holds no such rows.
    """
    if not path.is_file():
        raise MissingInputError(
            f"--task-file: no file at {str(path.absolute())!r}; "
            "give JSON Lines with 'text' and 'label'"
        )
    rows = [row for _, row in read_records(path) if not is_missing(row.get("label"))]
    if not rows or not all(isinstance(row.get("text"), str) for row in rows):
        raise FileFormatError(
            f"{path} holds no rows with 'text' and 'label'; expected one such object per line"
        )
    return Task(
        path.name.split(".")[0], [row["text"] for row in rows], [row["label"] for row in rows]
    )


def bundled_tasks(map_seed: int) -> list[Task]:
    """Return the tasks sentiment (the contrast set) and register (story or review).

    The texts of register are beginnings of documents on which no map of that seed was fitted.
    """
    contrast = demo_contrast("sentiment")
    sentiment = Task(
        "sentiment",
        list(contrast.texts),
        ["positive"] * len(contrast.positive) + ["negative"] * len(contrast.negative),
    )
    texts: list[str] = []
    labels: list[str] = []
    for register in ("story", "review"):
        documents = demo_documents(register)
        texts += documents
        labels += [register] * len(documents)
    # 30 words, so that both registers have texts of one length.
    return [sentiment, held_out(Task("register", texts, labels), map_seed, n_words=30)]


def held_out(task: Task, map_seed: int, *, n_words: int) -> Task:
    """Return the first words of the texts on which no map of that seed was fitted.

    Args:
        task: labelled texts, which may be documents of the map's harvest.
        map_seed: seed of the harvest, which gives the test fold.
        n_words: number of words that are kept of each text.
    """
    # Parts from N_FOLDS on are the test fold of a harvest with that seed.
    rows = [
        (" ".join(text.split()[:n_words]), label)
        for text, label in zip(task.texts, task.labels, strict=True)
        if part_of(document_key(text, map_seed)) >= N_FOLDS
    ]
    return Task(task.name, [text for text, _ in rows], [label for _, label in rows])


def sae_probes_task(name: str) -> Task:
    """Return a data set of the package sae-probes, by file name.

    It reads the columns ``prompt`` and ``target``.

    Raises:
        MissingInputError: the package, or a data set of that name, is missing.
    """
    # The package is located, not imported: only its data files are read.
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or spec.origin is None:
        raise MissingInputError(
            "--sae-probes: the package sae-probes is not installed; "
            "`pip install --no-deps sae-probes==0.4.2` installs the data sets"
        )
    folder = Path(spec.origin).parent / "data" / "cleaned_data"
    path = folder / f"{name}.csv.zst"
    if not path.is_file():
        known: Sequence[str] = sorted(
            file.name.removesuffix(".csv.zst") for file in folder.glob("*.csv.zst")
        )
        raise MissingInputError(
            f"sae-probes has no data set {name!r}; it has {len(known)}, such as {list(known[:5])}: "
            "choose one of them"
        )
    rows = [row for _, row in read_records(path)]
    return Task(name, [row["prompt"] for row in rows], [row["target"] for row in rows])
