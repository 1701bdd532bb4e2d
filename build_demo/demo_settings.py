"""Settings of the measurements, of the samples and of the harvest text of the demo models."""

from dataclasses import dataclass

from train_demo_models import CONTEXT

REVIEW_HELD_OUT_SHARE = 0.08
"""Reviews with a ``position`` below this are held out of training."""
PROBE_TOKENS = CONTEXT
"""Number of tokens at the start of a review over which the features of the probe are averaged."""
SKIPPED_POSITIONS = 4
"""Positions at the start of every window that are not used: they have little context."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of C (inverse of the L2 penalty) for the cross-validation."""

ACCURACY_BARS = {"small": 0.72, "large": 0.76}
"""Required test accuracy of the sentiment probe."""
TWIN_BAR = 0.05
"""Required difference between the accuracies of a model and of its untrained twin."""
BITS_BAR = 0.05
"""Required difference between the bits per byte of the small and of the large model."""

COPY_CHARACTERS = 60
"""A sample that shares so many consecutive characters with a review counts as a copy."""
SHORTEST_SAMPLE = 200
"""Least number of characters of a sampled review."""

STORY_OPENINGS = (
    "Once upon a time, there was a little girl",
    "One day, a boy named Tom",
    "The old lighthouse keeper",
    "Deep in the forest, a small fox",
    "We sat around the fire while grandfather",
)
REVIEW_OPENINGS = (
    "I saw this film",
    "The story follows a young detective",
    "This movie was",
    "I have been a fan of the director",
    "The acting in this picture",
)
HARVEST_OPENINGS = tuple(
    opening.strip()
    for opening in """
    I saw this film|The story follows|When I first|This movie|This film|The film|The movie
    The plot|The story|The acting|The director|The first time I|I watched this|I just watched
    I rented this|I remember|I went to see|I have seen|I had heard|I was expecting|I do not know
    I think that|I thought this|I recently saw|My wife and I|My friends and I|My brother
    After watching|After reading|As a fan of|As someone who|At first|At the beginning|Before I saw
    Based on the novel|Based on a true story|Set in|Set during the war|In this film
    In the opening scene|In the end|It is|It was|It has been|It starts|Let me start|Let me say
    Like most|Many people|Most of the|Not many films|Nobody|Of all the|On the surface|One of the
    Perhaps|Some people|Someone|Sometimes a film|The camera|The cast|The characters|The dialogue
    The ending|The lead actress|The main character|The music|The premise|The script|The title
    There are|There is|There have been|This is|This documentary|This comedy|This horror film
    This was|To begin with|Two brothers|Unlike|We watched|What|What happens when|While|With a
    You have|A young woman|A group of|A man|An old
    """.strip()
    .replace("\n", "|")
    .split("|")
)


@dataclass(frozen=True)
class Recipe:
    """Settings of sampling.

    The next token is drawn from the ``top_k`` most likely tokens, and of those from the fewest that
    have the probability ``top_p`` together.
    """

    temperature: float
    new_tokens: int
    top_k: int
    top_p: float = 1.0


CARD_RECIPE = Recipe(temperature=0.8, new_tokens=80, top_k=40)
HARVEST_RECIPE = Recipe(temperature=0.95, new_tokens=240, top_k=1000, top_p=0.95)
