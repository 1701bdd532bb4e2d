"""Tests of names, which tell models apart in tables, and of identities, which are compared."""

import gc
import hashlib
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.bundled import DEMO_FOLDER, demo_pair
from lrt_lens.data import with_fewer_merges
from lrt_lens.errors import MismatchError
from lrt_lens.models import HookedModel, ModelPair
from lrt_lens.models._identity import model_name, names_apart, same_tokens, tokenizer_hash
from lrt_lens.models._pair import model_sides
from lrt_lens.models._passes import ignores_mean

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a folder below an empty working directory and returns its path."""
    monkeypatch.chdir(tmp_path)

    def make(path: str) -> str:
        (tmp_path / path).mkdir(parents=True)
        return path

    return make


@pytest.fixture
def two_folders(model_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """One model below two folders that are both called ``hf``."""
    for run in ("run-a", "run-b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "hf").symlink_to(model_folder, target_is_directory=True)
    return tmp_path / "run-a" / "hf", tmp_path / "run-b" / "hf"


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/tiny-llama", "tiny-llama"),
        ("runs/pythia-70m", "pythia-70m"),
        ("tuned/hf", "tuned/hf"),
        ("tuned/Model", "tuned/Model"),
        ("tuned/checkpoint-500", "tuned/checkpoint-500"),
        ("tuned/final_model", "tuned/final_model"),
        ("tuned/step_1000", "tuned/step_1000"),
        ("tuned/1000", "tuned/1000"),
        ("tuned/checkpoint-500/hf", "tuned/checkpoint-500/hf"),
        (f"tuned/{HASH}", f"tuned/{HASH}"),
        (f"hub/models--EleutherAI--pythia-70m/snapshots/{HASH}", "EleutherAI/pythia-70m"),
    ],
)
def test_a_generic_folder_name_shows_its_parent_too(folder: Any, path: str, name: str) -> None:
    assert model_name(folder(path)) == name
    assert model_name(str(Path(path).absolute())) == name


def test_a_hub_id_is_the_name_unchanged(folder: Any) -> None:
    assert model_name("EleutherAI/pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    assert model_name("somebody/model") == "somebody/model"


def test_the_working_directory_has_its_own_name(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder("tiny-llama"))
    assert model_name(".") == "tiny-llama"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a/small", "b/large"), ["small", "large"]),
        (("a/llama", "b/llama"), ["a/llama", "b/llama"]),
        (("run-a/hf", "run-b/hf"), ["run-a/hf", "run-b/hf"]),
        (("a/llama/hf", "b/llama/hf"), ["a/llama/hf", "b/llama/hf"]),
        (("a/x/y/hf", "b/x/y/hf"), ["a/x/y/hf", "b/x/y/hf"]),
        (
            (f"1/models--o--m/snapshots/{HASH}", f"1/models--o--m/snapshots/{HASH[::-1]}"),
            ["o/m@0123456", "o/m@7654321"],
        ),
    ],
)
def test_two_folders_get_as_many_parts_as_tell_them_apart(
    folder: Any, paths: tuple[str, str], names: list[str]
) -> None:
    assert names_apart([folder(path) for path in paths]) == names


def test_only_a_folder_gets_a_longer_name_beside_a_hub_id_or_a_given_name(folder: Any) -> None:
    local = folder("mine/gpt2")
    assert names_apart(["gpt2", local]) == ["gpt2", "mine/gpt2"]
    assert names_apart([local, local], [None, "gpt2"]) == ["mine/gpt2", "gpt2"]
    assert names_apart([local, local], ["one", "two"]) == ["one", "two"]


def test_one_model_twice_keeps_its_short_name(folder: Any) -> None:
    local = folder("mine/gpt2")
    assert names_apart([local, str(Path(local).absolute())]) == ["gpt2", "gpt2"]
    assert names_apart(["org/model", "org/model"]) == ["org/model", "org/model"]


def test_a_pair_of_folders_with_one_name_is_told_apart(two_folders: tuple[Path, Path]) -> None:
    pair = ModelPair.load(*two_folders)
    assert (pair.source.name, pair.target.name) == ("run-a/hf", "run-b/hf")
    assert (pair.source.identity.name, pair.target.identity.name) == ("run-a/hf", "run-b/hf")
    assert "run-a/hf" in pair._repr_html_()
    assert "run-b/hf" in pair._repr_html_()


def test_a_model_that_is_loaded_keeps_its_name_in_a_pair(two_folders: tuple[Path, Path]) -> None:
    source = HookedModel.load(two_folders[0], name="hf")
    pair = ModelPair.load(source, two_folders[1])
    assert pair.source is source
    assert (pair.source.name, pair.target.name) == ("hf", "run-b/hf")


def test_two_models_of_two_tokenizers_are_told_apart_too(two_folders: tuple[Path, Path]) -> None:
    assert [model.name for model in model_sides(two_folders)] == ["run-a/hf", "run-b/hf"]


def test_names_can_be_given(model_folder: Path, model: HookedModel) -> None:
    assert HookedModel.load(model_folder, name="mine").identity.name == "mine"
    assert HookedModel.load(model.bridge, name="mine").name == "mine"
    pair = ModelPair.load(model_folder, model_folder, source_name="before", target_name="after")
    assert (pair.source.name, pair.target.name) == ("before", "after")


def test_a_hooked_model_is_not_renamed_in_passing(model: HookedModel) -> None:
    assert HookedModel.load(model, name=model.name) is model
    with pytest.raises(
        MismatchError, match=r"loaded under the name 'Llama.*'; asked for 'mine': load its bridge"
    ):
        HookedModel.load(model, name="mine")


def test_the_bundled_models_are_called_small_and_large() -> None:
    pair = demo_pair()
    assert (pair.source.name, pair.target.name) == ("small", "large")


# --------------------------------------------------------------------------------------- identities


def test_names_and_revisions_are_not_compared(model: HookedModel) -> None:
    renamed = replace(model.identity, name="hf", revision="step1")
    assert renamed != model.identity
    renamed.refuse_other(model.identity, "the model")
    model.identity.refuse_other(renamed, "the model")


def test_a_file_with_the_earlier_name_still_fits_its_model(
    two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model = HookedModel.load(two_folders[0])
    vector = SteeringVector(
        torch.ones(model.d_model),
        "blocks.1.hook_resid_post",
        model=replace(model.identity, name="hf"),
    )
    loaded = SteeringVector.load(vector.save(tmp_path / "vector.safetensors"))
    assert loaded.model is not None
    assert (loaded.model.name, model.name) == ("hf", "run-a/hf")
    loaded.refuse_other_model(model)
    with loaded.apply(model, scale=1.0):
        pass


# --------------------------------------------------------------------------------------- tokenizers


class Counted:
    """A tokenizer that counts how often its vocabulary is read."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.read = tokenizer, 0

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.tokenizer(*texts, **options)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def get_vocab(self) -> dict[str, int]:
        self.read += 1
        return self.tokenizer.get_vocab()


def test_two_tokenizers_are_the_same_exactly_if_their_hashes_are() -> None:
    small, large = (AutoTokenizer.from_pretrained(DEMO_FOLDER / one) for one in ("small", "large"))
    fewer = with_fewer_merges(small, keep=0.95)
    longer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "small")
    longer.add_tokens(["qqq"])
    for other, expected in ((small, True), (large, True), (fewer, False), (longer, False)):
        assert same_tokens(small, other) is same_tokens(other, small) is expected
        assert (tokenizer_hash(small) == tokenizer_hash(other)) is expected


def test_a_tokenizer_hash_is_that_of_earlier_files() -> None:
    # Stored in every file of earlier versions, for the tokenizer of the bundled models.
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER / "small")
    vocabulary = sorted(tokenizer.get_vocab().items())
    tokens = [token for token, _ in sorted(vocabulary, key=lambda item: item[1])]
    texts = [f"a{t.replace('Ġ', ' ').replace('▁', ' ')}" for t in tokens[:: len(tokens) // 1000]]
    texts.insert(0, "The quick brown fox's 1,234 leaps: naïve café\n\tfoo_bar() 日本語 🙂")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    content = json.dumps([vocabulary, ids]).encode()
    assert tokenizer_hash(tokenizer) == hashlib.blake2b(content, digest_size=8).hexdigest()


def test_vocabularies_are_compared_once_until_they_change() -> None:
    first = Counted(AutoTokenizer.from_pretrained(DEMO_FOLDER / "small"))
    second = Counted(AutoTokenizer.from_pretrained(DEMO_FOLDER / "large"))
    assert [same_tokens(first, second) for _ in range(3)] == [True] * 3
    assert (first.read, second.read) == (1, 1)
    second.tokenizer.add_tokens(["qqq"])
    assert not same_tokens(first, second)
    assert second.read == 2
    # A remembered answer keeps no tokenizer in memory.
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None
    # Tokenizers that already split one sentence differently are told apart without a vocabulary.
    fewer = Counted(with_fewer_merges(second.tokenizer, keep=0.1))
    assert not same_tokens(fewer, second)
    assert (fewer.read, second.read) == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "ignores"),
    [
        ("Llama", False),
        ("Gemma", False),
        ("Olmo2", False),
        ("Cohere", True),
        ("Olmo", True),
        ("GPTNeoX", True),
        ("Phi", True),
        ("StableLm", True),
    ],
)
@torch.no_grad()
def test_the_norm_of_a_model_is_known_by_what_it_does(
    architecture: str, ignores: bool, dtype: torch.dtype
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    config = getattr(transformers, f"{architecture}Config")(
        **sizes, num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    hf = getattr(transformers, f"{architecture}ForCausalLM")(config).to(dtype)
    assert ignores_mean(hf, 16) is ignores
    # The norm before the first block, by itself: a shift of its input changes it, or does not.
    norm = next(module for module in hf.modules() if "norm" in type(module).__name__.lower())
    states = torch.randn(1, 3, 16, dtype=dtype)
    same = torch.allclose(norm(states).float(), norm(states + 0.5).float(), atol=0.1)
    assert same is ignores
    assert ignores_mean(hf, 17) is None
