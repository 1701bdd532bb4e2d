"""repeng: its own reader of control vectors, and its wrapper of a transformers model."""
# pyright: reportMissingImports=false

from _consumer import Case, Reading, consume, hugging_face, plain_log_probabilities, steered_reading
from repeng import ControlModel, ControlVector


def read(case: Case) -> Reading:
    """Return what the wrapped model computes."""
    plain = plain_log_probabilities(case)
    vector = ControlVector.import_gguf(str(case.file))
    model = ControlModel(hugging_face(case.model), list(vector.directions))
    try:
        model.set_control(vector, 1.0)
        return steered_reading(model, case, plain)
    finally:
        model.unwrap()


if __name__ == "__main__":
    consume(
        "repeng",
        read,
        packages=("repeng", "numpy", "transformers", "torch"),
        how="ControlVector.import_gguf, ControlModel.set_control(vector, 1.0)",
    )
