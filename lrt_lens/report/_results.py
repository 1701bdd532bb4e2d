"""Writer of ``results.json``: arguments, package versions and tables, with a schema version.

    write_results(out / "results.json", {"n_tokens": 120_000}, {"grid": grid.scores})

Problem: results are read by programs, months later. Mechanism: one JSON file with all numbers that
the report shows, the arguments that produced them, and the versions of the packages.

Limits: infinite numbers and NaN become null, because JSON has neither.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._files import write_atomically
from lrt_lens.moments._provenance import package_versions

RESULTS_SCHEMA = "lrt_lens.results/1"
"""Schema version of the file; it changes if a key changes its meaning."""


def write_results(path: Path, arguments: dict[str, Any], tables: dict[str, Any]) -> Path:
    """Write one JSON file and return its path; tables become lists of rows, NaN becomes null.

    Args:
        path: file to write, whole or not at all.
        arguments: arguments of the run.
        tables: name of each table, with a `DataFrame` or any other JSON-like value.
    """
    content = {
        "schema_version": RESULTS_SCHEMA,
        "versions": package_versions(),
        "arguments": arguments,
        **tables,
    }
    # allow_nan=False: json would otherwise write NaN, which is not JSON and which browsers refuse.
    text = json.dumps(plain_json(content), indent=1, allow_nan=False)
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def plain_json(value: Any) -> Any:
    """Return a value as lists, dictionaries and JSON scalars; NaN and infinity become null."""
    if isinstance(value, pd.DataFrame):
        return [plain_json(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    # numpy and torch scalars have `item`, which returns a Python number.
    if hasattr(value, "item"):
        value = value.item()
    # JSON has no NaN and no infinity.
    return None if isinstance(value, float) and not math.isfinite(value) else value
