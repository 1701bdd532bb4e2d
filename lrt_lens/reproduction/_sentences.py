"""Labelled sentences written for probes: language, topic and tense, and classes of tokens.

    task = language_sentences(("french", "spanish"), n_per_class=120)
    labels = token_labels(model, texts, token_classes()["function word"])    # one list per text

Problem: bundled texts have one language and two registers, and probes of other kinds of concepts
need labels. Mechanism: every combination of a few phrases is one sentence; a seeded draw of them is
a task. Classes of tokens are read off the tokens themselves, so any text has them.

Limits: sentences of one task share their phrases, so a probe that does well on them knows these
phrases. They show if a threshold arrives, not how hard a concept is.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.reproduction._labelled_texts import Task

_PHRASES: Mapping[str, tuple[str, str, str, str]] = {
    "english": (
        "the man|the woman|my brother|the teacher|the child|our neighbour",
        "sees|buys|finds|likes|takes",
        "the house|a book|the bread|an old car|the dog|a red flower",
        "every day|in the evening|with a friend",
    ),
    "past": (
        "the man|the woman|my brother|the teacher|the child|our neighbour",
        "saw|bought|found|liked|took",
        "the house|a book|the bread|an old car|the dog|a red flower",
        "every day|in the evening|with a friend",
    ),
    "german": (
        "der Mann|die Frau|mein Bruder|der Lehrer|das Kind|unser Nachbar",
        "sieht|kauft|findet|mag|nimmt",
        "das Haus|ein Buch|das Brot|ein altes Auto|den Hund|eine rote Blume",
        "jeden Tag|am Abend|mit einem Freund",
    ),
    "french": (
        "l'homme|la femme|mon frère|le professeur|l'enfant|notre voisin",
        "voit|achète|trouve|aime|prend",
        "la maison|un livre|le pain|une vieille voiture|le chien|une fleur rouge",
        "tous les jours|le soir|avec un ami",
    ),
    "spanish": (
        "el hombre|la mujer|mi hermano|el maestro|el niño|nuestro vecino",
        "ve|compra|encuentra|quiere|toma",
        "la casa|un libro|el pan|un coche viejo|el perro|una flor roja",
        "todos los días|por la tarde|con un amigo",
    ),
    "food": (
        "the cook|my mother|the baker|the guest|our neighbour",
        "tasted|cooked|ate|served|wanted",
        "the warm soup|fresh bread|a sweet cake|rice with beans|the fried fish",
        "for dinner|in the kitchen|with butter",
    ),
    "sport": (
        "the player|my brother|the team|the runner|our neighbour",
        "won|lost|watched|started|left",
        "the big game|the long race|the final match|a football game|the tennis match",
        "on Sunday|in the stadium|with the coach",
    ),
    "weather": (
        "the farmer|my sister|the pilot|the sailor|our neighbour",
        "saw|feared|expected|noticed|missed",
        "the heavy rain|a cold wind|the dark clouds|a sudden storm|the first snow",
        "in the morning|over the hills|before winter",
    ),
}
"""Subjects, verbs, objects and ends of the sentences of each class."""

_FUNCTION_WORDS = (
    "the a an of to in and or but is was were are be been it he she they i you his her their with "
    "for on at by from as that this"
)
"""Common English words without a meaning of their own."""


def token_classes() -> Mapping[str, Callable[[str], str]]:
    """Return functions from a token's text to its class, by the name of the task."""
    return {
        "function word": lambda token: str(token.strip().lower() in _FUNCTION_WORDS.split()),
        "letters or not": lambda token: str(token.strip().isalpha()),
    }


def language_sentences(languages: Sequence[str], n_per_class: int, seed: int = 0) -> Task:
    """Return sentences in some of English, German, French and Spanish, labelled by language."""
    return _sentences(f"language, {len(languages)}", languages, n_per_class, seed)


def topic_sentences(n_per_class: int, seed: int = 0) -> Task:
    """Return sentences about food, sport and weather, labelled by topic."""
    return _sentences("topic, 3", ("food", "sport", "weather"), n_per_class, seed)


def tense_sentences(n_per_class: int, seed: int = 0) -> Task:
    """Return sentences in the present and in the past, labelled "english" and "past"."""
    return _sentences("tense", ("english", "past"), n_per_class, seed)


def token_labels(
    model: HookedModel, texts: Sequence[str], kind: Callable[[str], str]
) -> list[list[str]]:
    """Return the class of each unmasked token of each text, as `LinearProbe` reads them.

    Args:
        model: model whose tokens are labelled.
        texts: texts within the model's context.
        kind: function from a token's text to its class, such as those of `token_classes`.
    """
    labels = []
    for row in model.encode(texts):
        mask = model.read_mask([row])[0].tolist()
        kept = [token for token, is_read in zip(row, mask, strict=True) if is_read]
        labels.append([kind(model.tokenizer.decode([token])) for token in kept])
    return labels


def _sentences(name: str, classes: Sequence[str], n_per_class: int, seed: int) -> Task:
    rows: list[tuple[str, str]] = []
    for label in classes:
        parts = itertools.product(*(part.split("|") for part in _PHRASES[label]))
        sentences = [f"{' '.join(one)}." for one in parts]
        # random.Random has a state of its own, so the caller's random numbers do not change.
        drawn = random.Random(seed).sample(sentences, min(n_per_class, len(sentences)))
        rows += [(text[0].upper() + text[1:], label) for text in drawn]
    random.Random(seed + 1).shuffle(rows)
    return Task(name, [text for text, _ in rows], [label for _, label in rows])
