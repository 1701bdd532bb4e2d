"""steering-vectors: it has no file format; the file holds the arguments of its class."""
# pyright: reportMissingImports=false

import torch
from _consumer import Case, Reading, consume, hugging_face, plain_log_probabilities, steered_reading
from steering_vectors import SteeringVector


def read(case: Case) -> Reading:
    """Return what the patched model computes.

    With ``min_token_index`` above 0 the library does not steer tokens that are decoded with a
    cache, because each is position 0 of its call; whole texts are read then.
    """
    plain = plain_log_probabilities(case)
    model = hugging_face(case.model)
    vector = SteeringVector(**torch.load(case.file, weights_only=True))
    with vector.apply(model, min_token_index=case.skip_first):
        return steered_reading(model, case, plain, cached=case.skip_first == 0)


if __name__ == "__main__":
    consume(
        "steering-vectors",
        read,
        packages=("steering-vectors", "transformers", "torch"),
        how="SteeringVector(**torch.load(file)).apply(model, min_token_index=…)",
    )
