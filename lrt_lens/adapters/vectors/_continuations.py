"""Continuations of prompts and the share of them that show a concept, by a classifier of texts.

Problem: some behaviours show only in text that the model writes itself. Mechanism: every prompt is
continued several times with fixed seeds, with or without an intervention, and a function of the
caller says of each continuation whether it shows the concept.

    outcome = Continuations(["I think that"], lambda text: "happy" in text)
    outcome.by_prompt(outcome.judge(outcome.generate(model)))    # share of samples, [prompt]

Limits: the classifier must return a bool; a score needs a threshold first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from lrt_lens.models._hooked_model import Handle, HookedModel
from lrt_lens.models._ownership import entering
from lrt_lens.models._text_codec import text_list

Classifier = Callable[[str], Any]
"""Function of a text that returns True if it shows the concept and False otherwise."""


def prompt_list(prompts: Any) -> list[str]:
    """Return prompts as a list, by position.

    Raises:
        TypeError: they are a table, a dict or a set, or one of them is no text.
        ValueError: there is none, or they are one text.
    """
    if isinstance(prompts, str) or (hasattr(prompts, "__len__") and not len(prompts)):
        raise ValueError(
            f"prompts is {prompts!r}; expected a list of at least one text to continue"
        )
    return text_list(prompts)


@dataclass(frozen=True)
class Continuations:
    """Prompts, settings of sampling, and the classifier of the continuations."""

    prompts: Iterable[str]
    """Texts to continue; kept as a list."""
    classifier: Classifier
    """Function of a continuation (without its prompt) that returns True or False."""
    n_samples: int = 4
    """Number of continuations per prompt."""
    max_new_tokens: int = 40
    """Number of tokens per continuation."""
    temperature: float = 0.8
    """Temperature of sampling."""
    top_k: int | None = 40
    """Number of most probable tokens to sample from; None for all."""
    seed: int = 0
    """Seed of sampling, the same for all arms."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", prompt_list(self.prompts))
        if self.n_samples < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"n_samples is {self.n_samples}, max_new_tokens {self.max_new_tokens}; "
                "both must be at least 1"
            )

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(list(self.prompts))

    def generate(
        self, model: HookedModel, intervene: Callable[[], Handle] | None = None
    ) -> list[str]:
        """Return the continuations under an intervention, all prompts of sample 0 first.

        ``intervene`` registers hooks and returns their handle; the hooks are removed afterwards.
        """
        # Sample k of every arm has seed + k, so that arms differ by their intervention alone.
        # An empty handle registers nothing, so that both cases share one `with`.
        with entering(), intervene() if intervene else Handle([]):
            return [
                text
                for sample in range(self.n_samples)
                for text in model.generate(
                    self.prompts,
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    seed=self.seed + sample,
                )
            ]

    def judge(self, texts: Sequence[str]) -> np.ndarray:
        """Return the classifier's answers as an array of bool, [text].

        Raises:
            TypeError: the classifier returns anything but a bool.
        """
        return np.array([self._shows(text) for text in texts], dtype=bool)

    def _shows(self, text: str) -> bool:
        shows = self.classifier(text)
        # A score such as 0.3 would count as True, so only a bool is accepted.
        if not isinstance(shows, bool | np.bool_):
            raise TypeError(
                f"the classifier returned {shows!r} ({type(shows).__name__}) for {text[:40]!r}; "
                "expected True or False: compare its score with a threshold, "
                "as in lambda text: score(text) > 0.5"
            )
        return bool(shows)

    def by_prompt(self, shows: np.ndarray) -> np.ndarray:
        """Return the share of each prompt's samples that show the concept, [prompt].

        Samples of one prompt are not independent, so bootstraps resample prompts.
        """
        # The order of `generate`: all prompts of one sample, then the next sample.
        samples = rearrange(shows, "(sample prompt) -> sample prompt", sample=self.n_samples)
        return samples.mean(0)
