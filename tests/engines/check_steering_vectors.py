"""steering-vectors: it has no file format, so a dictionary of tensors is read from safetensors."""
# pyright: reportMissingImports=false

from _consumer import Case, Reading, consume, hugging_face, plain_log_probabilities, steered_reading
from safetensors import safe_open
from steering_vectors import SteeringVector


def read(case: Case) -> Reading:
    """Return what the patched model computes.

    With ``min_token_index`` above 0 the library does not steer tokens that are decoded with a
    cache, because each is position 0 of its call; whole texts are read then.
    """
    plain = plain_log_probabilities(case)
    model = hugging_face(case.model)
    with safe_open(case.file, "pt") as file:
        scale = float(file.metadata()["scale"])
        directions = {int(block): file.get_tensor(block) for block in file.keys()}  # noqa: SIM118
    vector = SteeringVector(layer_activations=directions)
    with vector.apply(model, multiplier=scale, min_token_index=case.skip_first):
        return steered_reading(model, case, plain, cached=case.skip_first == 0)


if __name__ == "__main__":
    consume(
        "steering-vectors",
        read,
        packages=("steering-vectors", "transformers", "torch"),
        how="SteeringVector(…).apply(model, multiplier=scale, min_token_index=…)",
    )
