"""Two concepts in the words of the tests' tokenizer."""

from lrt_lens.adapters.concepts import Concept
from lrt_lens.data import ChoiceItems, ContrastSet

PLACES = ("house", "garden", "tree", "river", "stone", "bird", "dog", "king", "queen", "boy")
PROMPTS = [f"the little boy saw the {place} and he" for place in PLACES]


def small_concepts(n_pairs: int) -> tuple[Concept, Concept]:
    """Return mood and colour, with that many contrast pairs each."""
    ends = [
        f"{PLACES[i % 10]} under the {PLACES[(i // 10 + 3 * i + 1) % 10]}" for i in range(n_pairs)
    ]
    mood = ContrastSet(
        [f"the happy cat sang in the {end}" for end in ends],
        [f"the sad cat slept on the {end}" for end in ends],
        name="mood",
    )
    colour = ContrastSet(
        [f"she saw a red {end}" for end in ends],
        [f"she saw a blue {end}" for end in ends],
        name="colour",
    )
    took = ChoiceItems(PROMPTS[:6], [" took the red stone"] * 6, [" took a blue bird"] * 6)
    return Concept(mood, ChoiceItems(PROMPTS, [" sang"] * 10, [" slept"] * 10)), Concept(
        colour, took
    )
