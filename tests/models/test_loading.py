"""Tests of `HookedModel.load`: all kinds of models give the same `HookedModel`."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel

TEXT = "the little cat slept on the old stone house"


@pytest.fixture(scope="module")
def expected(model_folder: Path, tokenizer: Any) -> torch.Tensor:
    """Logits of the Hugging Face model."""
    with torch.inference_mode():
        return (
            AutoModelForCausalLM.from_pretrained(model_folder)
            .eval()(torch.tensor(tokenizer([TEXT])["input_ids"]))
            .logits
        )


@pytest.mark.parametrize("kind", ["path", "string", "hugging face", "bridge", "hooked model"])
def test_a_folder_a_model_a_bridge_and_a_hooked_model_load_alike(
    kind: str, model_folder: Path, tokenizer: Any, expected: torch.Tensor
) -> None:
    hooked = HookedModel.load(model_folder)
    given: dict[str, Any] = {
        "path": model_folder,
        "string": str(model_folder),
        "hugging face": AutoModelForCausalLM.from_pretrained(model_folder),
        "bridge": hooked.bridge,
        "hooked model": hooked,
    }
    loaded = HookedModel.load(given[kind])
    torch.testing.assert_close(loaded.logits(TEXT), expected, atol=1e-5, rtol=1e-5)
    hooked.identity.refuse_other(loaded.identity, "the other way of loading")
    if kind in ("path", "string", "hugging face"):
        assert loaded.name == "tiny-llama"
    assert (loaded is hooked) is (kind == "hooked model")


@pytest.mark.skipif(
    version("transformer-lens").startswith("4"),
    reason="TransformerLens 4 forces eager attention on the model it is given",
)
def test_attention_is_fused_unless_the_user_brings_another(model_folder: Path) -> None:
    assert (
        HookedModel.load(model_folder).bridge.original_model.config._attn_implementation == "sdpa"
    )


def test_the_tokenizer_given_with_a_bridge_is_the_one_used(
    model: HookedModel, train_tokenizer: Any
) -> None:
    other = train_tokenizer(vocabulary=300)
    assert HookedModel.load(model.bridge, tokenizer=other).tokenizer is other


def test_a_bridge_without_a_tokenizer_is_refused_until_one_is_given(
    model: HookedModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.bridge, "tokenizer", None)
    with pytest.raises(
        ValueError, match=r"has no tokenizer; load it with tokenizer=AutoTokenizer.from_pretrained"
    ):
        HookedModel.load(model.bridge)
    assert HookedModel.load(model.bridge, tokenizer=tokenizer).tokenizer is tokenizer


def test_loading_does_not_change_the_tokenizer_it_is_given(
    build_hf: Any, train_tokenizer: Any
) -> None:
    given = train_tokenizer(bos=False)
    given.bos_token = given.pad_token = None
    before = (given("the cat")["input_ids"], given.bos_token, given.pad_token)
    model = HookedModel.load(build_hf("llama", layers=1), tokenizer=given)
    model.generate("the cat", max_new_tokens=2)
    assert model.tokenizer is given
    assert (given("the cat")["input_ids"], given.bos_token, given.pad_token) == before


def test_a_tokenizer_that_was_never_saved_will_do(build_hf: Any, tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    unsaved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token
    )
    assert (
        HookedModel.load(build_hf("llama", layers=1), tokenizer=unsaved).encode(["the cat"])
        == unsaved(["the cat"])["input_ids"]
    )


def test_the_dtype_goes_through(model_folder: Path, expected: torch.Tensor) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        model = HookedModel.load(model_folder, dtype=dtype)
        assert model.capture(TEXT, 1).dtype == torch.bfloat16
        assert {parameter.dtype for parameter in model.bridge.original_model.parameters()} == {
            torch.bfloat16
        }
        error = (model.logits(TEXT).float() - expected).abs().max()
        assert 1e-5 < error < 0.1 * expected.abs().max()
        assert isinstance(model.loss(TEXT), float)
        assert isinstance(model.generate("the cat", max_new_tokens=3), str)


def test_without_a_dtype_a_model_loads_in_float32_whatever_it_was_saved_in(
    model_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    assert HookedModel.load(tmp_path).capture(TEXT, 0).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "flaot32", torch.int64])
def test_a_dtype_that_is_none_is_refused(model_folder: Path, dtype: Any) -> None:
    with pytest.raises(
        ValueError, match="is no floating point type; use 'float32', 'bfloat16' or 'float16'"
    ):
        HookedModel.load(model_folder, dtype=dtype)


def test_the_device_map_goes_through(model_folder: Path, expected: torch.Tensor) -> None:
    model = HookedModel.load(model_folder, device_map="cpu")
    assert model.device == torch.device("cpu")
    torch.testing.assert_close(model.logits(TEXT), expected, atol=1e-5, rtol=1e-5)


def test_device_and_device_map_exclude_each_other(model_folder: Path) -> None:
    with pytest.raises(
        ValueError, match="device='cpu' and device_map='auto' exclude each other; give one"
    ):
        HookedModel.load(model_folder, device="cpu", device_map="auto")


def test_the_revision_is_asked_for_and_recorded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **options: (
            asked.append(options.get("revision")) or original(*args, **options)
        ),
    )
    model = HookedModel.load(model_folder, revision="step1000")
    assert asked == ["step1000"]
    assert model.revision == model.identity.revision == "step1000"
    assert HookedModel.load(model_folder).revision == "unknown"


def test_loading_leaves_the_number_of_threads_alone(model_folder: Path) -> None:
    before = torch.get_num_threads()
    HookedModel.load(model_folder)
    assert torch.get_num_threads() == before


def test_a_folder_without_a_tokenizer_says_what_to_pass(
    build_hf: Any, tokenizer: Any, tmp_path: Path
) -> None:
    build_hf("llama", layers=1).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)no tokenizer at .*; pass tokenizer=AutoTokenizer.from_pretrained"
    ):
        HookedModel.load(tmp_path)
    assert HookedModel.load(tmp_path, tokenizer=tokenizer).tokenizer is tokenizer


def test_a_hooked_model_is_not_given_another_bos_policy_in_passing(model: HookedModel) -> None:
    assert HookedModel.load(model, prepend_bos=True) is model
    with pytest.raises(
        MismatchError, match="was loaded with prepend_bos=True; asked for False: load it again"
    ):
        HookedModel.load(model, prepend_bos=False)


def test_a_hooked_model_is_not_given_another_tokenizer_in_passing(
    model: HookedModel, train_tokenizer: Any
) -> None:
    assert HookedModel.load(model, tokenizer=model.tokenizer) is model
    other = train_tokenizer(vocabulary=300)
    with pytest.raises(
        MismatchError, match=r"asked for another, of 300: to use that one, load its bridge again"
    ):
        HookedModel.load(model, tokenizer=other)
    assert HookedModel.load(model.bridge, tokenizer=other).tokenizer is other


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(
        TypeError,
        match="int is not a supported model; give a hub id, a folder, a Hugging Face model",
    ):
        HookedModel.load(3)


def test_a_name_that_is_nowhere_says_so_at_once() -> None:
    with pytest.raises(
        OSError,
        match="no model at 'no-such-folder/model': neither a local folder nor a hub model"
        " that can be reached",
    ):
        HookedModel.load("no-such-folder/model")


def test_a_folder_with_the_name_of_a_known_model_announces_no_download(
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # For this alias TransformerLens says that it "will now load" openai-community/gpt2.
    folder = tmp_path / "gpt2-small"
    folder.symlink_to(model_folder, target_is_directory=True)
    for given in (folder, AutoModelForCausalLM.from_pretrained(folder)):
        hooked = HookedModel.load(given)
        assert (hooked.name, hooked.bridge.cfg.model_name) == ("gpt2-small", "gpt2-small")
    printed = "".join(capfd.readouterr())
    said = [caplog.text, printed, *(str(warning.message) for warning in recwarn)]
    assert not [text for text in said if "will now load" in text or "DEPRECATED" in text]
