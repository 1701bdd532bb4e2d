"""How often a model's continuations show a concept, by a classifier of texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrt_lens.models._hooked_model import Handle, HookedModel

Classifier = Callable[[str], Any]
"""Whether a text shows the concept: returns True or False, nothing between."""


@dataclass(frozen=True)
class Continuations:
    """Prompts to continue, and who judges."""

    prompts: Sequence[str]
    classifier: Classifier
    n_samples: int = 4
    """Continuations of each prompt."""
    max_new_tokens: int = 40
    temperature: float = 0.8
    top_k: int | None = 40
    seed: int = 0
    """The same draws for all arms."""

    def __post_init__(self) -> None:
        if not len(self.prompts) or isinstance(self.prompts, str):
            raise ValueError(
                f"prompts is {self.prompts!r}; expected a list of at least one text to continue"
            )
        if self.n_samples < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"n_samples is {self.n_samples}, max_new_tokens {self.max_new_tokens}; both must be at least 1"
            )

    def generate(
        self, model: HookedModel, intervene: Callable[[], Handle] | None = None
    ) -> list[str]:
        """[prompt × sample]: continuations under an intervention, sample by sample; hooks are off
        again afterwards.
        """
        handle = intervene() if intervene else Handle([])
        with handle:
            return [
                text
                for sample in range(self.n_samples)
                for text in model.generate(
                    list(self.prompts),
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    seed=self.seed + sample,
                )
            ]

    def judge(self, texts: Sequence[str]) -> np.ndarray:
        """[text], True where the classifier says so; TypeError unless it answers with a bool."""
        return np.array([self._verdict(text) for text in texts], dtype=bool)

    def _verdict(self, text: str) -> bool:
        verdict = self.classifier(text)
        if not isinstance(verdict, bool | np.bool_):
            raise TypeError(
                f"the classifier returned {verdict!r} ({type(verdict).__name__}) for {text[:40]!r}; expected True or False: "
                "compare its score with a threshold, as in lambda text: score(text) > 0.5"
            )
        return bool(verdict)

    def by_prompt(self, verdicts: np.ndarray) -> np.ndarray:
        """[prompt], share of a prompt's samples: samples of one prompt are not independent, so
        bootstraps draw prompts.
        """
        return verdicts.reshape(self.n_samples, len(self.prompts)).mean(0)
