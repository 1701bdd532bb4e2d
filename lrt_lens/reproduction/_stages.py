"""Stages of a run that takes hours: what is in the cache folder is not measured again.

Problem: a run on real models takes hours on a CPU, and an interruption should cost minutes.
Mechanism: the result of each stage is a file whose name holds a digest of the settings that the
result depends on, so that another setting is another file.

    stages = Stages(Path("cache"), {"source": "org/small", "seed": 0})
    table = stages.table("loss", {"n_tokens": 20_000}, lambda: evaluate(...).table)

Limits: code is not part of a digest; remove the folder after an update of the package.
"""

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lrt_lens._files import make_folder
from lrt_lens._stored_fields import read_json_file
from lrt_lens.errors import FileFormatError
from lrt_lens.report._results import RESULTS_SCHEMA, write_results

logger = logging.getLogger(__name__)

_AS_TEXT = {math.inf: "infinity", -math.inf: "-infinity"}
"""Infinite numbers in the file of a table."""
_Stored = TypeVar("_Stored")
"""Result of a stage."""


@dataclass(frozen=True)
class Stages:
    """Results of stages in one folder."""

    folder: Path
    """Folder of the results; it is made when the first one is written."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Settings that every stage depends on, such as the models and a digest of the texts."""

    def table(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return the table of a stage, measured now if it is not in the folder.

        A table that was measured now is read from its file too, so that a run and its repetition
        work with the same values.

        Args:
            name: name of the stage, the beginning of the file's name.
            settings: settings that the table depends on, besides the shared ones.
            measure: function that measures the table.

        Raises:
            FileFormatError: the file is damaged.
            OSError: the file cannot be written.
        """
        path = self.path(name, settings, ".json")
        if not path.is_file():
            logger.info("%s: measured now", path)
            make_folder(self.folder)
            measured = measure()
            content = {"columns": list(measured), "table": measured.replace(_AS_TEXT)}
            write_results(path, self._all(settings), content)
        content = read_json_file(path, RESULTS_SCHEMA)
        rows, columns = content.get("table"), content.get("columns")
        if not isinstance(rows, list) or not isinstance(columns, list):
            raise FileFormatError(f"{str(path)!r} has no table; remove it and run again")
        # JSON has no NaN and no infinity: a column without numbers comes back as a column of None.
        table = pd.DataFrame(rows, columns=columns)
        table = table.replace({text: value for value, text in _AS_TEXT.items()}).infer_objects()
        nothing = [name for name, empty in table.isna().all().items() if empty and rows]
        return table.astype(dict.fromkeys(nothing, float))

    def stored(
        self,
        name: str,
        settings: Mapping[str, Any],
        ending: str,
        make: Callable[[], _Stored],
        *,
        save: Callable[[_Stored, Path], Any],
        load: Callable[[Path], _Stored],
    ) -> _Stored:
        """Return what a stage makes, read from its file or folder, or made now and written there.

        Args:
            name: name of the stage.
            settings: settings that the result depends on, besides the shared ones.
            ending: ending of the file; empty for a folder.
            make: function that makes the result.
            save: function that writes it to a path that does not exist yet.
            load: function that reads it.
        """
        path = self.path(name, settings, ending)
        if path.exists():
            return load(path)
        logger.info("%s: made now", path)
        made = make()
        make_folder(self.folder)
        # In the same file system, so that the result appears under its name as a whole.
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{name}."))
        try:
            save(made, temporary / path.name)
            (temporary / path.name).replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return made

    def path(self, name: str, settings: Mapping[str, Any], ending: str) -> Path:
        """Return the file of a stage's result with these settings."""
        text = json.dumps(self._all(settings), sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}{ending}"

    def _all(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(dict(self.shared) | dict(settings), default=str))
