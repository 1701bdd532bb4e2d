"""Files for readers of activations, read back and compared with states of the models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import lrt_lens as lrt
from lrt_lens.adapters.lenses import ReaderSettings, write_reader_states
from lrt_lens.errors import HookPointError, MismatchError
from lrt_lens.stitching import fve_nrm


@pytest.fixture(scope="module")
def stitch(pair: Any, corpus: list[str]) -> Any:
    return lrt.fit_stitches(
        pair, corpus, pairs=[(0, 1)], context_length=32, null="full", progress=False
    ).best()


@pytest.fixture
def texts(passages: list[str]) -> list[str]:
    return passages[:40]


def test_the_file_has_the_targets_states_down_the_stitch(
    pair: Any, stitch: Any, texts: list[str], tmp_path: Path
) -> None:
    written = write_reader_states(
        tmp_path / "states.parquet", pair, stitch, texts, positions_per_text=2
    )
    rows = pq.read_table(written.rows).to_pylist()
    assert len(rows) == written.n_rows == 2 * len(texts)
    own, moved = [], []
    for row in rows:
        ids = torch.tensor(pair.target.encode([texts[int(row["doc_id"])]]))
        at = row["n_raw_tokens"] - 1
        y = pair.target.engine.capture(ids, [stitch.target_hook])[stitch.target_hook][0, at]
        x = pair.source.engine.capture(ids, [stitch.source_hook])[stitch.source_hook][0, at]
        expected = y.double() @ stitch.down.weight.double() + stitch.down.bias.double()
        vector = torch.tensor(row["activation_vector"], dtype=torch.float64)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)
        assert row["detokenized_text_truncated"] == pair.target.tokenizer.decode(ids[0, : at + 1])
        own.append(x)
        moved.append(vector)
    assert written.fve_nrm.value == pytest.approx(
        fve_nrm(torch.stack(moved), torch.stack(own)), abs=1e-4
    )
    assert written.fve_nrm.low < written.fve_nrm.value < written.fve_nrm.high
    assert written.fve_nrm_shuffled < written.fve_nrm.value


def test_the_sidecar_is_yaml_with_both_layer_numbers(
    pair: Any, stitch: Any, texts: list[str], tmp_path: Path
) -> None:
    reader = {
        "d_model": 16,
        "extraction_layer_index": 0,
        "tokens": {"injection_char": "㊗", "injection_token_id": 7},
        "prompt_templates": {"av": "say {injection_char}"},
    }
    written = write_reader_states(tmp_path / "s.parquet", pair, stitch, texts, reader=reader)
    assert written.sidecar.name == "s.parquet.nla_meta.yaml"
    about = yaml.safe_load(written.sidecar.read_text(encoding="utf-8"))
    assert about == json.loads(written.sidecar.read_text(encoding="utf-8"))
    assert about["kind"] == "nla_dataset"
    assert about["row_count"] == len(texts)
    assert about["extraction"] | {"d_model": 16, "layer_index": 0} == about["extraction"]
    assert about["transferred"]["hidden_states_index"] == 1
    assert about["transferred"]["fve_nrm"] == pytest.approx(written.fve_nrm.value)
    assert about["tokens"] == reader["tokens"]
    other = write_reader_states(
        tmp_path / "h.parquet", pair, stitch, texts, layer_number="hidden_state"
    )
    about = yaml.safe_load(other.sidecar.read_text(encoding="utf-8"))
    assert about["extraction"]["layer_index"] == 1
    assert about["transferred"]["block"] == 0
    # Hugging Face's own states of that number are those of the hook point.
    ids = torch.tensor(pair.source.encode(texts[:1]))
    hf = pair.source.engine.model(ids, output_hidden_states=True).hidden_states[1]
    hook = stitch.source_hook
    torch.testing.assert_close(hf, pair.source.engine.capture(ids, [hook])[hook])


def test_all_positions_of_a_text_are_written(
    pair: Any, stitch: Any, texts: list[str], tmp_path: Path
) -> None:
    written = write_reader_states(
        tmp_path / "all.parquet", pair, stitch, texts[:3], positions_per_text=None
    )
    table = pq.read_table(written.rows)
    lengths = [len(ids) for ids in pair.target.encode(texts[:3])]
    masked = stitch.skip_first  # BOS is one of the first positions
    assert len(table) == sum(n - masked for n in lengths)
    numbers = np.array(table.column("n_raw_tokens").to_pylist())
    assert numbers.min() == masked + 1


def test_what_a_reader_cannot_read_is_refused(
    pair: Any, stitch: Any, texts: list[str], corpus: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "states.parquet"
    for reader in ({"d_model": 24}, {"extraction": {"layer_index": 3}}):
        with pytest.raises(MismatchError, match="the reader reads layer"):
            write_reader_states(path, pair, stitch, texts, reader=reader)
    with pytest.raises(ValueError, match="none of 1 texts"):
        write_reader_states(path, pair, stitch, ["a"])
    middle = lrt.fit_stitches(
        pair, corpus, pairs=[("blocks.1.hook_resid_mid", 1)], context_length=32, progress=False
    ).best()
    with pytest.raises(HookPointError, match="output of a block"):
        write_reader_states(path, pair, middle, texts)
    assert not path.exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"positions_per_text": 0}, "at least 1"), ({"layer_number": "third"}, "layer_number is")],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReaderSettings(**options)
