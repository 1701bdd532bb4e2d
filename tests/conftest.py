"""Small random models, a tokenizer and a corpus for all tests; nothing uses the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1" if os.environ.get("HF_HUB_OFFLINE", "1") == "1" else "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # without it, importing a model class of transformers sets torch's threads to all cores

import random
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

# How fast examples are drawn depends on what else the machine does, and says nothing of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

if int(version("transformer-lens").split(".")[0]) >= 4:
    # sae-lens does not import beside TransformerLens 4.
    collect_ignore = ["adapters/saes"]

pytest_plugins = ["tests.rows"]

END = "<|endoftext|>"
WORDS = [
    "the",
    "a",
    "little",
    "big",
    "cat",
    "dog",
    "bird",
    "river",
    "stone",
    "house",
    "garden",
    "tree",
    "boy",
    "girl",
    "king",
    "queen",
    "saw",
    "found",
    "made",
    "gave",
    "took",
    "ran",
    "slept",
    "sang",
    "happy",
    "sad",
    "quick",
    "slow",
    "red",
    "blue",
    "old",
    "new",
    "good",
    "bad",
    "in",
    "on",
    "under",
    "over",
    "and",
    "but",
    "then",
    "because",
    "they",
    "she",
    "he",
    "it",
    "was",
    "had",
]
ARCHITECTURES = ("llama", "gpt2", "neox", "gemma", "qwen2")


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """150 documents of 8 to 70 random words, all different: some short, some of several windows."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(8, 70))) + "." for _ in range(150)]


@pytest.fixture(scope="session")
def passages(corpus: list[str]) -> list[str]:
    """The beginnings of the documents, all within the context of the small models."""
    return [" ".join(text.split()[:18]) for text in corpus]


@pytest.fixture(scope="session")
def train_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[str]
) -> Callable[..., Any]:
    """A function that trains, saves and reloads a byte-level BPE tokenizer.

    With ``bos=False`` its template does not add BOS.
    """

    def train(*, bos: bool = True, vocabulary: int = 340) -> Any:
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus[:40], trainer)
        if bos:
            special = [(END, tokenizer.token_to_id(END))]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{END} $A", special_tokens=special
            )
        folder = tmp_path_factory.mktemp("tokenizer")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
        ).save_pretrained(folder)
        return transformers.AutoTokenizer.from_pretrained(folder)

    return train


@pytest.fixture(scope="session")
def tokenizer(train_tokenizer: Callable[..., Any]) -> Any:
    """The tokenizer of all small models, which adds ``<|endoftext|>`` as BOS."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def build_hf(tokenizer: Any) -> Callable[..., Any]:
    """A function that builds a random model: ``build_hf("llama", d=16, layers=2, seed=0)``."""

    def build(architecture: str, *, d: int = 16, layers: int = 3, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        end = tokenizer.bos_token_id
        # A wide initialisation: with the usual 0.02, all blocks together change the stream by less
        # than the rounding of the embedding.
        shared = {
            "vocab_size": len(tokenizer),
            "initializer_range": 0.2,
            "bos_token_id": end,
            "eos_token_id": end,
        }
        llama = {
            **shared,
            "hidden_size": d,
            "intermediate_size": 2 * d,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "pad_token_id": end,
        }
        neox = {
            key: value
            for key, value in llama.items()
            if key not in ("num_key_value_heads", "pad_token_id")
        }
        models = {
            "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama)),
            "gpt2": lambda: transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    **shared,
                    n_embd=d,
                    n_layer=layers,
                    n_head=2,
                    n_positions=64,
                    architectures=["GPT2LMHeadModel"],
                )
            ),
            "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**neox)),
            "gemma": lambda: transformers.GemmaForCausalLM(
                transformers.GemmaConfig(**llama, head_dim=d // 2)
            ),
            "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**llama)),
        }
        return models[architecture]().eval()

    return build


@pytest.fixture(scope="session")
def load(build_hf: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    """A function that loads such a model: ``load("llama", d=16, layers=2, seed=0)``.

    Other options are passed to `HookedModel.load`.
    """

    def make(
        architecture: str = "llama", *, d: int = 16, layers: int = 3, seed: int = 0, **options: Any
    ) -> Any:
        from lrt_lens.models import HookedModel

        return HookedModel.load(
            build_hf(architecture, d=d, layers=layers, seed=seed),
            **{"tokenizer": tokenizer} | options,
        )

    return make


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture, one per test."""
    return request.param


@pytest.fixture(scope="session")
def models(load: Callable[..., Any]) -> dict[str, Any]:
    """A small `HookedModel` of every architecture: d 16, three layers."""
    return {name: load(name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def model(models: dict[str, Any]) -> Any:
    """The Llama among `models`."""
    return models["llama"]


@pytest.fixture(scope="session")
def pair(load: Callable[..., Any]) -> Any:
    """A source of d 16 and two layers and a target of d 24 and three layers."""
    from lrt_lens.models import ModelPair

    return ModelPair(load("llama", d=16, layers=2, seed=1), load("llama", d=24, layers=3, seed=2))


@pytest.fixture(scope="session")
def model_folder(
    build_hf: Callable[..., Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A Llama saved as an ordinary Hugging Face folder, tokenizer included."""
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    build_hf("llama", seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch runtime type checks off, as for users, so that our own message is raised."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The headless Chromium of this machine, one for all tests; nothing is downloaded."""
    # A process can run only one playwright.
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `make docs-check` brings it"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(
            f"no Chromium (looked for {', '.join(names)}): `apt-get install chromium`,"
            " or set CHROMIUM=/path/to/chromium"
        )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
