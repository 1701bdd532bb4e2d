"""Plain transformers: the exported folder has the few lines that register the hook."""

from _consumer import (
    Case,
    Reading,
    consume,
    hugging_face,
    plain_log_probabilities,
    script_of,
    steered_reading,
)


def read(case: Case) -> Reading:
    """Return what the hooked model computes."""
    plain = plain_log_probabilities(case)
    model = hugging_face(case.model)
    handles = script_of(case).steer(model)
    try:
        return steered_reading(model, case, plain)
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    consume(
        "transformers",
        read,
        packages=("transformers", "torch"),
        how="steer(model) of the exported steer.py",
    )
