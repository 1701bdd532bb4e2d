"""Uploads to a hub arrive whole, with a card, and load again; each failure is one error."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import snapshot_download

import lrt_lens as lrt
from lrt_lens._hub import downloaded_file, is_hub_id
from lrt_lens.adapters.concepts import ConceptMap
from lrt_lens.adapters.probes import LinearProbe
from lrt_lens.adapters.vectors import SteeringVector, Strength
from lrt_lens.errors import FileFormatError, HubError
from lrt_lens.serving import push_to_hub
from lrt_lens.stitching import Stitch
from tests.serving.hub.hub_server import TOKEN, Hub


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def python_of(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]


# ------------------------------------------------------------------------------------- round trips


def test_a_stitch_is_uploaded_whole_and_loads_with_equal_maps(
    hub: Hub, owned_stitch: Stitch
) -> None:
    url = owned_stitch.push_to_hub("user/stitch", license="mit", private=True)
    assert url.startswith(f"{hub.url}/user/stitch/commit/")
    files = hub.files("user/stitch")
    assert sorted(files) == [
        "README.md",
        "held_out.safetensors",
        "stitch.safetensors",
        "stitch_config.json",
    ]
    assert hub.repositories["user/stitch"].private
    assert hub.repositories["user/stitch"].large == {"held_out.safetensors", "stitch.safetensors"}
    assert hub.repositories["user/stitch"].messages == ["Upload stitch with lrt_lens"]
    loaded = Stitch.from_pretrained("user/stitch")
    assert torch.equal(loaded.up.weight, owned_stitch.up.weight.float())
    assert torch.equal(loaded.down.bias, owned_stitch.down.bias.float())
    assert loaded.scores == owned_stitch.scores
    card = files["README.md"].decode()
    assert front_matter(card)["license"] == "mit"
    assert "Stitch.from_pretrained('user/stitch')" in card


def test_the_mixins_arguments_of_a_stitch_still_work(hub: Hub, owned_stitch: Stitch) -> None:
    owned_stitch.push_to_hub(
        "user/stitch",
        config={"ignored": 1},
        commit_message="first",
        branch="trial",
        token=TOKEN,
        allow_patterns=["*.json"],
        model_card_kwargs={},
    )
    assert hub.repositories["user/stitch"].messages == ["first"]
    assert sorted(hub.files("user/stitch", "trial")) == ["stitch_config.json"]
    assert hub.files("user/stitch") == {}


def test_saving_with_push_to_hub_uploads(hub: Hub, owned_stitch: Stitch, tmp_path: Path) -> None:
    owned_stitch.save_pretrained(tmp_path / "one", push_to_hub=True, repo_id="user/one")
    assert Stitch.from_pretrained("user/one").source_hook == owned_stitch.source_hook


def test_a_vector_comes_back_from_the_hub_bit_for_bit(hub: Hub, vector: SteeringVector) -> None:
    calibrated = replace(vector, strength=Strength(1.5, 0.1, 0.1, skip_first=4, n_texts=3))
    calibrated.push_to_hub("user/mood")
    path = downloaded_file("user/mood", "vector.safetensors", "steering vector")
    for loaded in (SteeringVector.load(path), SteeringVector.load("user/mood")):
        assert torch.equal(loaded.direction, vector.direction)
        assert loaded.model == vector.model
        assert loaded.strength == calibrated.strength
    card = hub.files("user/mood")["README.md"].decode()
    assert "at scale 1.5, which costs 0.1 nats per token" in card
    assert "all positions, without the first 4" in card
    assert sorted(hub.files("user/mood")) == ["README.md", "vector.safetensors"]


def test_a_probe_loads_by_its_hub_id_and_branch(hub: Hub, probe: LinearProbe) -> None:
    probe.push_to_hub("user/cat", revision="trial")
    loaded = LinearProbe.load("user/cat", revision="trial")
    assert torch.equal(loaded.weight, probe.weight)
    assert loaded.classes == probe.classes
    with pytest.raises(FileFormatError, match=r"no probe in 'user/cat': .* has no file"):
        LinearProbe.load("user/cat")


def test_a_concept_map_comes_back(hub: Hub, pair: Any, passages: list[str], tmp_path: Path) -> None:
    contrast = lrt.ContrastSet(passages[:24:2], passages[1:24:2], name="odd")
    concepts = ConceptMap.fit(
        pair,
        contrast,
        source_hook="blocks.0.hook_resid_post",
        target_hook="blocks.1.hook_resid_post",
        method="ridge",
    )
    concepts.push_to_hub("user/concepts")
    loaded = ConceptMap.load(downloaded_file("user/concepts", "concept_map.safetensors", "map"))
    assert torch.equal(loaded.layers[0].map.weight, concepts.layers[0].map.weight)
    assert "interpolates" in hub.files("user/concepts")["README.md"].decode()


def test_the_code_on_a_card_loads_the_artefact(
    hub: Hub, probe: LinearProbe, vector: SteeringVector, owned_stitch: Stitch, capsys: Any
) -> None:
    for artefact in (vector, probe, owned_stitch):
        push_to_hub(artefact, "user/artefact")
        exec(python_of(hub.files("user/artefact")["README.md"].decode()), {})
        assert capsys.readouterr().out.startswith(f"{type(artefact).__name__}(")


def test_an_earlier_upload_is_replaced_by_one_commit(
    hub: Hub, vector: SteeringVector, tmp_path: Path
) -> None:
    push_to_hub(vector, "user/mood")
    push_to_hub(2.0 * vector, "user/mood", commit_message="twice as long")
    folder = Path(snapshot_download("user/mood"))
    assert torch.equal(
        SteeringVector.load(folder / "vector.safetensors").direction, 2.0 * vector.direction
    )
    assert len(hub.repositories["user/mood"].commits) == 3  # the empty one, and two uploads


@pytest.mark.slow
def test_another_process_uploads_and_this_one_loads(
    running_hub: Hub, hub: Hub, vector: SteeringVector, tmp_path: Path
) -> None:
    vector.save(tmp_path / "v.safetensors")
    code = (
        "import lrt_lens as lrt; v = lrt.SteeringVector.load('v.safetensors'); "
        "print(lrt.push_to_hub(v, 'user/other'))"
    )
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(lrt.__file__).parent.parent),
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{hub.url}/user/other/commit/")
    path = downloaded_file("user/other", "vector.safetensors", "steering vector")
    assert torch.equal(SteeringVector.load(path).direction, vector.direction)


# -------------------------------------------------------------------------------------- refusals


def test_a_wrong_id_is_refused_before_anything_is_sent(hub: Hub, vector: SteeringVector) -> None:
    for wrong in ("a/b/c", "user/with space", "-bad", ""):
        with pytest.raises(HubError, match=r"is no id of a repository .*; give 'owner/name'"):
            push_to_hub(vector, wrong)
    assert hub.requests == []


def test_without_a_token_nothing_is_sent(
    hub: Hub, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for token in (None, False, True):
        with pytest.raises(HubError, match=r"there is no token of the hub; run `hf auth login`"):
            push_to_hub(vector, "user/mood", token=token)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repository", "token", "remedy"),
    [
        ("user/mood", "hf_wrong", "the token is wrong or has expired: run `hf auth login`"),
        ("somebody/mood", TOKEN, "the token may not write there"),
    ],
)
def test_a_token_that_may_not_write_is_one_error(
    hub: Hub, vector: SteeringVector, repository: str, token: str, remedy: str
) -> None:
    with pytest.raises(HubError, match=remedy) as refusal:
        push_to_hub(vector, repository, token=token)
    assert "\n" not in str(refusal.value)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("address", "status", "remedy"),
    [
        ("/preupload/", 404, "no such owner, repository or branch"),
        ("/commit/", 412, "nothing was committed: try again later"),
        ("/storage/", 403, "nothing was committed"),
    ],
)
def test_a_failure_on_the_way_leaves_no_file_behind(
    hub: Hub, vector: SteeringVector, address: str, status: int, remedy: str
) -> None:
    push_to_hub(vector, "user/mood")
    before = hub.files("user/mood")
    hub.fails_with[address] = status
    with pytest.raises(HubError, match=rf"the hub did not take 'user/mood' .*{remedy}"):
        push_to_hub(2.0 * vector, "user/mood")
    assert hub.files("user/mood") == before


def test_a_hub_that_cannot_be_reached_is_one_error(
    hub: Hub, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="check the connection and HF_ENDPOINT"):
        push_to_hub(vector, "user/mood")


def test_offline_is_one_error(
    hub: Hub, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="check the connection and HF_ENDPOINT"):
        push_to_hub(vector, "user/mood")


@pytest.mark.parametrize(
    ("option", "value"),
    [("base_model", "/data/models/x"), ("base_model", ["a/b\n"]), ("license", "mit\n---\nevil: 1")],
)
def test_front_matter_that_the_hub_would_refuse_is_not_sent(
    hub: Hub, vector: SteeringVector, option: str, value: Any
) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{option} is .*; give"):
        push_to_hub(vector, "user/mood", **options)
    assert hub.requests == []


def test_a_repository_that_is_not_there_is_one_error(hub: Hub) -> None:
    for load in (Stitch.from_pretrained, LinearProbe.load):
        with pytest.raises(FileFormatError, match=r"at 'user/nothing': it is neither a local"):
            load("user/nothing")


def test_paths_are_not_taken_for_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("user/name")
    for path in ("name", "a/b/c", "/a/b", "./a/b", "runs/probe.safetensors", "a/b.gguf", "a/"):
        assert not is_hub_id(path), path
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert not is_hub_id("user/name"), "a folder of that name takes precedence"


def test_other_objects_and_options_are_refused_by_name(hub: Hub, vector: SteeringVector) -> None:
    with pytest.raises(TypeError, match="a dict cannot be shared; expected a Stitch"):
        push_to_hub({}, "user/mood")
    with pytest.raises(TypeError, match="unknown option licence.*did you mean 'license'"):
        push_to_hub(vector, "user/mood", licence="mit")
    with pytest.raises(TypeError, match="evaluation is a int, which has no table"):
        push_to_hub(vector, "user/mood", evaluation=3)
    assert hub.requests == []


# ------------------------------------------------------------------------------------------ cards


def test_a_card_says_what_was_measured_and_under_which_licence(vector: SteeringVector) -> None:
    table = pd.DataFrame(
        {"arm": ["transferred", "null"], "effect": [0.4312, -0.01], "effect_low": [0.4, -0.05],
         "effect_high": [0.46, 0.03], "n": [1200, 1200], "flag": ["", ""]}
    )  # fmt: skip
    card = lrt.model_card(vector, "user/mood", evaluation=table, base_model="org/large")
    assert front_matter(card) == {
        "base_model": ["org/large"],
        "base_model_relation": "adapter",
        "library_name": "lrt_lens",
        "tags": ["lrt_lens", "steering-vector", "activation-steering", "interpretability"],
    }
    assert "| arm | effect | 95% of effect | n |\n" in card
    assert "| `transferred` | 0.431 | 0.400 to 0.460 | 1,200 |" in card
    assert "| `null` | −0.010 | −0.050 to 0.030 | 1,200 |" in card
    assert "No evaluation was given" not in card
    assert "Not stated. The licences of the base models apply" in card
    assert "No evaluation was given" in lrt.model_card(vector)


def test_a_probes_card_says_how_it_reads(probe: LinearProbe) -> None:
    card = lrt.model_card(probe, "user/cat")
    assert "| `row` | the mean over the unmasked tokens of a text |" in card
    assert "| `hidden_states_index` | 2 |" in card
    assert "| `masked_first_positions` | 4 |" in card


def test_names_cannot_change_the_front_matter_or_the_layout(pair: Any) -> None:
    from dataclasses import replace

    model = replace(pair.target.identity, name="a/b\n---\n# c|d`<img>")
    vector = SteeringVector(torch.ones(24), "blocks.1.hook_resid_post", model, name="x`\n---\ny")
    card = lrt.model_card(vector)
    assert front_matter(card)["library_name"] == "lrt_lens"
    assert "base_model" not in front_matter(card)
    assert "\n# c" not in card


def test_the_card_of_a_hub_repository_is_json_and_yaml_free_of_nan(
    hub: Hub, owned_stitch: Stitch
) -> None:
    push_to_hub(owned_stitch.reversed(), "user/back")  # without null and token identity
    config = json.loads(hub.files("user/back")["stitch_config.json"])
    assert config["has_null"] in (True, False)
    assert "nan" not in hub.files("user/back")["README.md"].decode().lower()
