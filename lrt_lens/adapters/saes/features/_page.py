"""One feature on a page: its scores, the places where it is strongest in both models, the tokens
that it raises and lowers.

    page = features.page(17)
    page                              # in Jupyter
    page.save("feature-17.html")      # a file that loads nothing from the network

Every context stands there twice, shaded by the activation on the source and on the target, on one
scale each; the token at which the feature is strongest is framed. Tokens are shown as they are:
markup in a token is escaped, line ends are drawn as ↵, bidirectional text keeps to its token.

Limits: shades are relative to the strongest place shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from lrt_lens.report._html import (
    KeyNumbers,
    Paragraph,
    Section,
    Table,
    render_block,
    render_html,
    write_html,
)

_COLOURS = {"source": (213, 94, 0), "target": (0, 114, 178)}
_SCORES = {
    "density_source": "active on the source (share of positions)",
    "density_target": "active on the target",
    "rho_write": "ρ_write, from moments",
    "rho_read": "ρ_read, from moments",
    "activation_r": "correlation of activations",
    "attribution_r_random": "attribution r of the random SAE's feature of this number",
    "attribution_r_shuffled": "attribution r, shuffled map",
    "attribution_r_other": "attribution r with another feature",
    "semantic_score": "semantic score",
    "semantic_score_chance": "semantic score by chance",
    "n_sentences": "sentences behind it",
    "kind_target": "kind on the target",
    "entropy_share_source": "decoder in the null space of W_U, source",
    "entropy_share_target": "decoder in the null space of W_U, target",
    "max_activation_source": "largest activation, source",
    "max_activation_target": "largest activation, target",
}


@dataclass(frozen=True)
class TokenContext:
    """A place where a feature is strong, with what both models make of the tokens around it."""

    tokens: list[str]
    source: list[float]
    """Activation at each token on the source."""
    target: list[float]
    peak: int
    """Which token is the place."""


@dataclass(frozen=True)
class TokenContexts(Paragraph):
    """Contexts shaded token by token; as a paragraph, their plain text."""

    contexts: Sequence[TokenContext] = ()
    names: tuple[str, str] = ("source", "target")


@render_block.register(TokenContexts)
def _render_contexts(block: TokenContexts) -> str:
    highest = {
        role: max(
            (value for context in block.contexts for value in getattr(context, role)), default=0.0
        )
        for role in ("source", "target")
    }
    rows = "".join(
        "<li style='margin:.6rem 0'>"
        + "".join(
            _render_line(context, role, name, highest[role])
            for role, name in zip(("source", "target"), block.names, strict=True)
        )
        + "</li>"
        for context in block.contexts
    )
    return f"<p>{escape(block.text)}</p><ol style='padding-left:1.4rem'>{rows}</ol>"


def _render_line(context: TokenContext, role: str, name: str, highest: float) -> str:
    values = getattr(context, role)
    tokens = "".join(
        _render_token(
            token,
            value,
            value / highest if highest > 0 else 0.0,
            _COLOURS[role],
            framed=place == context.peak,
        )
        for place, (token, value) in enumerate(zip(context.tokens, values, strict=True))
    )
    strength = f"{values[context.peak]:.2f}"
    label = f"<span style='display:inline-block;min-width:9rem;color:#767676;font-size:.8rem'>{escape(name)} {strength}</span>"
    return f"<div style='line-height:1.9;overflow-wrap:anywhere'>{label}{tokens}</div>"


def _render_token(
    token: str, value: float, share: float, colour: tuple[int, int, int], *, framed: bool
) -> str:
    shown = escape(token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")) or "∅"
    # A quarter of the colour's strength stays: text must be legible on the darkest token, on white
    # and on black.
    paint = (
        f"background:rgba({colour[0]},{colour[1]},{colour[2]},{0.55 * min(1.0, max(0.0, share)):.3f})"
        if share > 0
        else ""
    )
    frame = "outline:1.5px solid #767676" if framed else ""
    style = ";".join(
        part
        for part in ("white-space:pre-wrap;border-radius:.2rem;padding:.05rem 0", paint, frame)
        if part
    )
    return f'<bdi style="{style}" title="{value:.3g}">{shown}</bdi>'


@dataclass(frozen=True)
class FeaturePage:
    """Everything that is known of one feature, ready to be shown."""

    index: int
    names: tuple[str, str]
    """Of the source and of the target model."""
    hooks: tuple[str, str]
    scores: dict[str, Any]
    """Its row of the table."""
    contexts: dict[str, list[TokenContext]]
    """``"source"`` and ``"target"``: where the feature is strongest there."""
    output_tokens: dict[str, list[tuple[str, float]]]
    """``"source"`` and ``"target"``: (token, weight), the raised ones first, the lowered ones
    behind.
    """
    heads: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Effects on attention heads, where they were measured."""

    @property
    def sections(self) -> list[Section]:
        """The page's parts, to be put into a larger report too."""
        score = self.scores
        interval = f"95% {_number(score.get('attribution_r_low'))} to {_number(score.get('attribution_r_high'))}"
        numbers = KeyNumbers(
            [
                ("Attribution correlation", _value(score.get("attribution_r")), interval),
                (
                    "Kind",
                    str(score.get("kind", "unknown")),
                    f"semantic score {_number(score.get('semantic_score'))}",
                ),
                ("ρ_write", _value(score.get("rho_write")), "foretold from moments"),
                (
                    "Active",
                    _value(score.get("density_source")),
                    f"of positions; on the target {_number(score.get('density_target'))}",
                ),
            ]
        )
        rows = [
            {"score": label, "value": score[name]}
            for name, label in _SCORES.items()
            if name in score
        ]
        table = Table(pd.DataFrame(rows).astype({"value": object}), "All scores", open_rows=20)
        found = [Section(f"Feature {self.index}", [numbers, table])]
        found += [
            self._places(role, name)
            for role, name in zip(("source", "target"), self.names, strict=True)
        ]
        found.append(Section("Output tokens", [self._tokens()]))
        if len(self.heads):
            found.append(
                Section(
                    "Attention heads",
                    [Table(self.heads.drop(columns="feature"), "p(BOS) that rests on the feature")],
                )
            )
        return found

    def _places(self, role: str, name: str) -> Section:
        contexts = self.contexts.get(role, [])
        text = (
            f"Strongest places on {name}, each shaded by both models' activations."
            if contexts
            else f"Never active on {name}."
        )
        return Section(f"Where it fires on {name}", [TokenContexts(text, contexts, self.names)])

    def _tokens(self) -> Table:
        columns: dict[str, list[object]] = {}
        for role, name in zip(("source", "target"), self.names, strict=True):
            found = self.output_tokens[role]
            half = len(found) // 2
            for verb, part in (("raises", found[:half]), ("lowers", found[half:])):
                columns[f"{name} {verb}"] = [_quoted(token) for token, _ in part]
                columns[f"{name} {verb}, weight"] = [weight for _, weight in part]
        return Table(
            pd.DataFrame(columns),
            "Tokens that one unit of the feature raises and lowers most (direct way to the logits)",
        )

    def figure(self) -> Any:
        """Its activation on the target against that on the source, a point a token of the contexts
        shown (plotly).
        """
        from lrt_lens.figures._single_features import activation_figure

        return activation_figure(
            {role: list(found) for role, found in self.contexts.items()},
            names=self.names,
            index=self.index,
        )

    @property
    def html(self) -> str:
        """The whole page."""
        subtitle = f"{self.names[0]} {self.hooks[0]} → {self.names[1]} {self.hooks[1]}"
        return render_html(f"Feature {self.index}", self.sections, subtitle=subtitle)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns the path."""
        return write_html(path, self.html)

    def _repr_html_(self) -> str:
        parts = [
            f"<h4>{escape(section.title)}</h4>"
            + "".join(render_block(block) for block in section.body)
            for section in self.sections
        ]
        return f'<div class="lrt-feature" style="max-width:72rem">{"".join(parts)}</div>'


def _quoted(token: str) -> str:
    """A token with its spaces made visible."""
    return "'" + token.replace("\n", "↵").replace("\t", "⇥") + "'"


def _value(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _number(value: object) -> str:
    found = _value(value)
    return "n/a" if math.isnan(found) else f"{found:.2f}"
