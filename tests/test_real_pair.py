"""``examples/real_pair.py`` calls something transferred only if it is better than its controls."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import lrt_lens as lrt

EXAMPLE = Path(__file__).parent.parent / "examples" / "real_pair.py"


@pytest.fixture(scope="module")
def real_pair() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_pair", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_pair"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(**arms: dict[str, Any]) -> pd.DataFrame:
    """Return one row per arm."""
    return pd.DataFrame([{"arm": arm, **values} for arm, values in arms.items()])


def test_a_probe_has_to_be_better_beyond_its_interval(real_pair: ModuleType) -> None:
    def judged(low: float, token_identity: float) -> list[str]:
        shared = {"task": "topic", "chance": 0.5}
        table = rows(
            transferred={"accuracy": 0.61, "low": low, **shared},
            token_identity={"accuracy": token_identity, "low": 0.5, **shared},
            random={"accuracy": 0.5, "low": 0.4, **shared},
        )
        passed, names = real_pair.judged_stages({"probes": table})
        assert names == ["probe of topic"]
        return passed

    assert judged(0.58, 0.55) == ["probe of topic"]
    assert judged(0.55, 0.605) == []
    assert judged(0.49, 0.45) == []


def test_a_vector_has_to_beat_enough_draws(real_pair: ModuleType) -> None:
    def judged(n_draws: int, p: float) -> list[str]:
        shared = {"concept": "mood"}
        table = rows(
            transferred={"low": 0.1, "n_draws": 1, "transferred_p": None, **shared},
            random={"low": -1.0, "n_draws": n_draws, "transferred_p": p, **shared},
        )
        return real_pair.judged_stages({"steering": table})[0]

    assert judged(20, 1 / 21) == ["steering of mood"]
    assert judged(20, 0.2) == []
    # One draw is no control.
    assert judged(1, 0.01) == []


def test_a_loss_and_an_sae_are_compared_with_their_best_control(real_pair: ModuleType) -> None:
    losses = rows(
        own={"ce": 3.0, "ce_high": 3.1},
        stitched={"ce": 4.0, "ce_high": 4.2},
        token={"ce": 4.1, "ce_high": 4.3},
        mean={"ce": 8.0, "ce_high": 8.1},
    ).assign(route="A→B")
    assert real_pair.judged_stages({"loss": losses})[0] == []
    losses.loc[losses["arm"] == "token", "ce"] = 4.5
    assert real_pair.judged_stages({"loss": losses})[0] == ["loss of A→B"]
    sae = rows(
        source={"delta_ce": 0.1, "delta_ce_high": 0.2},
        transferred={"delta_ce": 1.0, "delta_ce_high": 1.1},
        shuffled={"delta_ce": 3.0, "delta_ce_high": 3.1},
        random={"delta_ce": 1.05, "delta_ce_high": 1.2},
    )
    assert real_pair.judged_stages({"sae": sae})[0] == []
    sae.loc[sae["arm"] == "random", "delta_ce"] = 2.0
    assert real_pair.judged_stages({"sae": sae})[0] == ["SAE"]
    refitted = rows(
        refitted={"delta_ce": 0.8, "delta_ce_high": 0.9},
        shuffled_refitted={"delta_ce": 1.5, "delta_ce_high": 1.6},
        random_refitted={"delta_ce": 0.85, "delta_ce_high": 1.0},
    )
    both = pd.concat([sae, refitted], ignore_index=True)
    assert real_pair.judged_stages({"sae": both})[0] == ["SAE"]
    both.loc[both["arm"] == "random_refitted", "delta_ce"] = 1.2
    assert real_pair.judged_stages({"sae": both})[0] == ["SAE", "refitted SAE"]


def test_a_layer_that_a_model_does_not_have_is_refused(real_pair: ModuleType) -> None:
    class Surveyed:
        """A survey of one hook pair."""

        def choices(self) -> pd.DataFrame:
            hooks = ["blocks.4.hook_resid_post", "blocks.3.hook_resid_post"]
            return pd.DataFrame([hooks], columns=["source_hook", "target_hook"])

        def __len__(self) -> int:
            return 1

    pair, survey = lrt.demo_pair(), Surveyed()
    assert real_pair.chosen(survey, pair, real_pair.Options())[0] == "blocks.4.hook_resid_post"
    given = real_pair.Options(source_layer=-1, target_layer="blocks.3.hook_resid_post")
    assert real_pair.chosen(survey, pair, given)[1] == "blocks.3.hook_resid_post"
    with pytest.raises(ValueError, match="--source-layer is 27; 'small' has layers 0 to 4"):
        real_pair.chosen(survey, pair, real_pair.Options(source_layer=27))
    with pytest.raises(ValueError, match="the survey has no such pair among its 1"):
        real_pair.chosen(survey, pair, real_pair.Options(target_layer=0))
