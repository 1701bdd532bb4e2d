"""Plain transformers: a forward hook on the block, as a user would write it."""

import torch
from _consumer import Case, Reading, consume, hugging_face, plain_log_probabilities, steered_reading
from safetensors import safe_open


def read(case: Case) -> Reading:
    """Return what the hooked model computes."""
    plain = plain_log_probabilities(case)
    model = hugging_face(case.model)
    with safe_open(case.file, "pt") as file:
        (block,) = file.keys()
        step = float(file.metadata()["scale"]) * file.get_tensor(block)

    def add(_module: torch.nn.Module, _args: tuple, hidden: torch.Tensor) -> torch.Tensor:
        # Only a call with several positions holds the first ones of a text.
        first = case.skip_first if hidden.shape[1] > 1 else 0
        steered = hidden.clone()
        steered[:, first:] += step
        return steered

    handle = model.model.layers[int(block)].register_forward_hook(add)
    try:
        return steered_reading(model, case, plain)
    finally:
        handle.remove()


if __name__ == "__main__":
    consume(
        "transformers",
        read,
        packages=("transformers", "torch"),
        how="forward hook on model.model.layers[k]",
    )
