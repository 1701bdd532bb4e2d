"""Names of the files in a folder of checkpoints, and their removal.

    run.safetensors, rank{r}.safetensors, rank{r}.lock     # see `lrt_lens.moments._checkpoint`
    survey/, chosen.json                                   # a survey that went before the harvest
    sequences.jsonl                                        # kept states, in their order

Limits: files of other names in the folder are left alone.
"""

import re
from pathlib import Path

from lrt_lens._files import TEMPORARY, remove_abandoned

RUN_NAME = "run.safetensors"
SURVEY_FOLDER, CHOSEN_NAME = "survey", "chosen.json"
"""Folder of a survey inside that of the harvest that follows it, and file of what it chose."""
LEDGER_NAME = "sequences.jsonl"
"""File with the sequences of a harvest of kept states, in their order."""
RANK_NAME = re.compile(r"rank([0-9]{1,9})\.safetensors")
_OURS = re.compile(
    r"\.?rank[0-9]{1,9}\.safetensors(\.damaged|\.\w{8})?|rank[0-9]{1,9}\.lock"
    rf"|{re.escape(RUN_NAME)}(\.damaged)?|{re.escape(CHOSEN_NAME)}|{re.escape(LEDGER_NAME)}"
)
"""Names of all files that a harvest writes into a folder of checkpoints."""


def rank_name(rank: int) -> str:
    """Return the name of the checkpoint file of a rank."""
    return f"rank{rank}.safetensors"


def rank_paths(folder: Path) -> list[Path]:
    """Return the files of ranks in a folder, and nothing that only looks like one."""
    return sorted(path for path in folder.glob("rank*") if RANK_NAME.fullmatch(path.name))


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in a folder, and the folder itself if it is then empty.

    Those of a survey that went before the harvest are removed too.
    """
    if (folder / SURVEY_FOLDER).is_dir():
        remove_checkpoints(folder / SURVEY_FOLDER)
    for path in folder.glob("*"):
        if _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    remove_abandoned(folder, TEMPORARY)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
