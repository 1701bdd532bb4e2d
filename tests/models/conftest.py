"""Fixtures of the tests of models."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def from_gpt2(build_hf: Any, tokenizer: Any) -> Any:
    """Return a ``HookedTransformer`` with the weights of the small GPT-2, processed by options."""
    lens = pytest.importorskip("transformer_lens")
    try:
        _ = lens.HookedTransformer
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer")
    import transformer_lens.loading_from_pretrained as loading

    def build(**processing: bool) -> Any:
        gpt2 = build_hf("gpt2")
        gpt2.config.n_ctx = 64

        class LocalConfig:
            """Replacement of AutoConfig, which would ask the hub for the shape of GPT-2."""

            from_pretrained = staticmethod(lambda *args, **kwargs: gpt2.config)

        options = {
            "fold_ln": False,
            "center_writing_weights": False,
            "center_unembed": False,
            "fold_value_biases": False,
        } | processing
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "AutoConfig", LocalConfig)
            return lens.HookedTransformer.from_pretrained(
                "gpt2", hf_model=gpt2, tokenizer=tokenizer, **options
            )

    return build
