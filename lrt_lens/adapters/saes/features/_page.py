"""HTML page of one SAE feature: scores, strongest contexts in both models, output tokens.

    page = features.page(17)
    page                              # shown in Jupyter
    page.save("feature-17.html")      # a file that loads nothing from the network

Problem: scores do not show the meaning of a feature. Mechanism: its strongest contexts, printed
for a reader. Every context is printed twice, shaded by the activation on the source and on the
target, each model on one scale for all contexts. The token at which the feature is strongest is
framed. Markup inside a token is escaped, line ends are printed as ↵, and bidirectional text is
isolated in its token.

Limits: shades are relative to the strongest activation on the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens._short_repr import ShortRepr
from lrt_lens.figures._single_features import activation_figure
from lrt_lens.report._html import (
    KeyNumbers,
    Paragraph,
    Section,
    Table,
    render_block,
    render_html,
    write_html,
)

_ROLES = ("source", "target")
"""Order of the two models in every list of the page."""
# Vermilion and blue of Okabe and Ito, which colour-blind readers can tell apart.
_COLOURS = {"source": (213, 94, 0), "target": (0, 114, 178)}
_LABEL_STYLE = "display:inline-block;min-width:9rem;color:#767676;font-size:.8rem"
# Columns of the evaluation's table that the page lists, with their labels.
_SCORES = {
    "density_source": "density on the source (share of positions where it is active)",
    "density_target": "density on the target",
    "rho_write": "ρ_write, from moments",
    "rho_read": "ρ_read, from moments",
    "activation_r": "correlation of activations",
    "attribution_r_random": "attribution correlation, random SAE",
    "attribution_r_shuffled": "attribution correlation, map of shuffled pairs",
    "attribution_r_other": "attribution correlation with a different feature",
    "semantic_score": "semantic score",
    "semantic_score_chance": "semantic score expected by chance",
    "n_sentences": "sentences of the semantic score",
    "kind_target": "kind on the target",
    "entropy_share_source": "share of the decoder row in the null space of W_U, source",
    "entropy_share_target": "share of the decoder row in the null space of W_U, target",
    "max_activation_source": "largest activation, source",
    "max_activation_target": "largest activation, target",
}


@dataclass(frozen=True)
class TokenContext:
    """Tokens around a strong position of a feature, with the activations of both models."""

    tokens: list[str]
    """Texts of the tokens."""
    source: list[float]
    """Activation at each token on the source."""
    target: list[float]
    """Activation at each token on the target."""
    peak: int
    """Index of the strong position in ``tokens``."""


@dataclass(frozen=True)
class TokenContexts(Paragraph):
    """Contexts shaded token by token; a plain-text report prints only their ``text``."""

    contexts: Sequence[TokenContext] = ()
    """Contexts in descending order of the peak."""
    names: tuple[str, ...] = ("source", "target")
    """Names of the source and the target model; a single name prints every context once."""


@render_block.register(TokenContexts)
def _render_contexts(block: TokenContexts) -> str:
    # One scale per model for all contexts, so that shades can be compared between contexts.
    highest = {
        role: max(
            (value for context in block.contexts for value in getattr(context, role)), default=0.0
        )
        for role in _ROLES
    }
    items = []
    for context in block.contexts:
        lines = (
            _render_line(context, role, name, highest[role])
            for role, name in zip(_ROLES, block.names, strict=False)
        )
        items.append(f"<li style='margin:.6rem 0'>{''.join(lines)}</li>")
    return f"<p>{escape(block.text)}</p><ol style='padding-left:1.4rem'>{''.join(items)}</ol>"


def _render_line(context: TokenContext, role: str, name: str, highest: float) -> str:
    values = getattr(context, role)
    tokens = "".join(
        _render_token(
            token,
            value,
            value / highest if highest > 0 else 0.0,
            _COLOURS[role],
            framed=index == context.peak,
        )
        for index, (token, value) in enumerate(zip(context.tokens, values, strict=True))
    )
    label = f"<span style='{_LABEL_STYLE}'>{escape(name)} {values[context.peak]:.2f}</span>"
    return f"<div style='line-height:1.9;overflow-wrap:anywhere'>{label}{tokens}</div>"


def _render_token(
    token: str, value: float, share: float, colour: tuple[int, int, int], *, framed: bool
) -> str:
    # Line ends and tabs get visible signs; an empty token would have no width.
    text = escape(token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")) or "∅"
    # The opacity is at most 0.55: text stays legible on the darkest token, on white and on black.
    red, green, blue = colour
    opacity = 0.55 * min(1.0, max(0.0, share))
    paint = f"background:rgba({red},{green},{blue},{opacity:.3f})" if share > 0 else ""
    frame = "outline:1.5px solid #767676" if framed else ""
    parts = ("white-space:pre-wrap;border-radius:.2rem;padding:.05rem 0", paint, frame)
    style = ";".join(part for part in parts if part)
    # <bdi> isolates bidirectional text, which would otherwise reorder the neighbouring tokens.
    return f'<bdi style="{style}" title="{value:.3g}">{text}</bdi>'


@dataclass(frozen=True, repr=False)
class FeaturePage(ShortRepr):
    """Scores, contexts, output tokens and attention heads of one feature, ready to be shown."""

    index: int
    """Index of the feature in the SAE."""
    names: tuple[str, str]
    """Names of the source and the target model."""
    hooks: tuple[str, str]
    """Hook points in the source and the target model."""
    scores: dict[str, Any]
    """Row of the feature in the table of the evaluation."""
    contexts: dict[str, list[TokenContext]]
    """Contexts in which the feature is strongest on a model, by ``"source"`` and ``"target"``."""
    output_tokens: dict[str, list[tuple[str, float]]]
    """Pairs (token, weight), first raised then lowered tokens, by ``"source"`` and ``"target"``."""
    heads: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Effects on attention heads; empty if they were not measured."""

    @property
    def sections(self) -> list[Section]:
        """Sections of the page, which a larger report can contain too."""
        score = self.scores
        rows = [
            {"score": label, "value": score[name]}
            for name, label in _SCORES.items()
            if name in score
        ]
        # Scores are numbers and words, so the column needs the type object.
        table = Table(pd.DataFrame(rows).astype({"value": object}), "All scores", open_rows=20)
        sections = [Section(f"Feature {self.index}", [self._key_numbers(), table])]
        sections += [
            self._context_section(role, name) for role, name in zip(_ROLES, self.names, strict=True)
        ]
        sections.append(Section("Output tokens", [self._token_table()]))
        if len(self.heads):
            heads = self.heads.drop(columns="feature")
            title = "Change of p(BOS) when the feature is removed"
            sections.append(Section("Attention heads", [Table(heads, title)]))
        return sections

    def _key_numbers(self) -> KeyNumbers:
        score = self.scores
        # Columns that the table lacks are None here and shown as "n/a".
        low, high = (
            _number(score.get("attribution_r_low")),
            _number(score.get("attribution_r_high")),
        )
        kind = str(score.get("kind", "unknown"))
        density_target = _number(score.get("density_target"))
        return KeyNumbers(
            [
                (
                    "Attribution correlation",
                    _value(score.get("attribution_r")),
                    f"95% {low} to {high}",
                ),
                ("Kind", kind, f"semantic score {_number(score.get('semantic_score'))}"),
                ("ρ_write", _value(score.get("rho_write")), "predicted from moments"),
                (
                    "Density",
                    _value(score.get("density_source")),
                    f"share of positions; on the target {density_target}",
                ),
            ]
        )

    def _context_section(self, role: str, name: str) -> Section:
        contexts = self.contexts.get(role, [])
        text = (
            f"Strongest contexts on {name}, each shaded by the activations of both models."
            if contexts
            else f"Never active on {name}."
        )
        return Section(f"Strongest contexts on {name}", [TokenContexts(text, contexts, self.names)])

    def _token_table(self) -> Table:
        columns: dict[str, list[object]] = {}
        for role, name in zip(_ROLES, self.names, strict=True):
            tokens = self.output_tokens[role]
            # Raised tokens come first, then equally many lowered ones.
            half = len(tokens) // 2
            for verb, part in (("raises", tokens[:half]), ("lowers", tokens[half:])):
                columns[f"{name} {verb}"] = [_quoted(token) for token, _ in part]
                columns[f"{name} {verb}, weight"] = [weight for _, weight in part]
        return Table(
            pd.DataFrame(columns),
            "Tokens whose logits one unit of the feature raises and lowers most (direct path)",
        )

    def figure(self) -> Any:
        """Figure of activations on the target against the source, one point per token (plotly).

        The tokens are those of the contexts on this page.
        """
        return activation_figure(
            {role: list(contexts) for role, contexts in self.contexts.items()},
            names=self.names,
            index=self.index,
        )

    @property
    def html(self) -> str:
        """The whole page as HTML."""
        subtitle = f"{self.names[0]} {self.hooks[0]} → {self.names[1]} {self.hooks[1]}"
        return render_html(f"Feature {self.index}", self.sections, subtitle=subtitle)

    def save(self, path: str | Path) -> Path:
        """Write the page to ``path`` and return the path."""
        return write_html(path, self.html)

    def _repr_html_(self) -> str:
        parts = [
            f"<h4>{escape(section.title)}</h4>"
            + "".join(render_block(block) for block in section.body)
            for section in self.sections
        ]
        return f'<div class="lrt-feature" style="max-width:72rem">{"".join(parts)}</div>'


def _quoted(token: str) -> str:
    """A token in quotation marks, which make its spaces visible."""
    return "'" + token.replace("\n", "↵").replace("\t", "⇥") + "'"


def _value(score: object) -> float:
    # Undefined scores are NaN or None.
    return float(score) if isinstance(score, int | float) else math.nan


def _number(score: object) -> str:
    value = _value(score)
    return "n/a" if math.isnan(value) else f"{value:.2f}"
