"""A finished reproduction, as a script would return it."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from lrt_lens.reproduction import Compared, Reproduction


@pytest.fixture
def made() -> Callable[..., Reproduction]:
    """Return a function that builds a reproduction; keyword arguments replace its fields."""

    def make(**changes: Any) -> Reproduction:
        content: dict[str, Any] = {
            "name": "stitched_loss",
            "title": "Loss",
            "paper": "Stitching, table 1",
            "claim": "It is low.",
            "says": "Little.",
            "compared": [
                Compared(
                    "A→B, nats", 4.256, 3.99, low=4.2, high=4.31, control=6.0, control_name="mean"
                )
            ],
            "verdict": "holds",
            "because": "4.26 against 6.00.",
            "figures": {"Loss": go.Figure(go.Bar(x=["a"], y=[1.0]))},
            "tables": {"All": pd.DataFrame({"route": ["A→B"], "ce": [float("nan")]})},
            "seconds": 12.0,
        }
        return Reproduction(**(content | changes))

    return make


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no pictures, so that no browser is started."""
    monkeypatch.setattr("lrt_lens.reproduction._result.write_pictures", lambda *_: False)
