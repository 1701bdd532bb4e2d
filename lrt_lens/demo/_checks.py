"""Ranges of the numbers that the demo takes, checked before any work.

checked_numbers(damage=0.1, n_tokens=120_000, n_random=20)
"""

from lrt_lens._numbers import checked_number, checked_whole


def checked_numbers(
    damage: float, n_tokens: int, n_random: int, loss_tokens: int = 1, seed: int = 0
) -> None:
    """Raise ValueError if a number of the demo is out of its range."""
    checked_number("damage", damage, above=0.0)
    for name, value in (
        ("n_tokens", n_tokens),
        ("n_random", n_random),
        ("loss_tokens", loss_tokens),
    ):
        checked_whole(name, value, least=1)
    checked_whole("seed", seed, least=0)
