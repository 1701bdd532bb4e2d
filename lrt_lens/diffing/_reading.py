"""Meaning of the directions of a comparison: promoted tokens, strongest contexts, density.

    reading = result.read(pair, documents, n_tokens=20_000)
    reading.table                       # tokens that each direction raises and lowers, density
    reading["gained", 1].contexts       # texts around its strongest positions
    reading.save("diff.html")

Problem: a direction is a list of numbers. Mechanism: its component is read from both streams on the
same text (for ``"gained"`` what the source does not predict, ``u·(y − ȳ) − u·W(x − x̄)``; for a
difference ``u·(y − x)``). Its strongest positions are printed with the tokens around them, and the
unembedding says which tokens it raises and lowers. ``density`` is the share of tokens with more
than three standard deviations: .0027 for a normal component, more for one that is mostly silent.

Limits: the unembedding leaves out the layers in between, so that tokens of early layers say little.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from lrt_lens._progress import tqdm
from lrt_lens._repr_html import card, table
from lrt_lens._settings import Settings, resolve, takes
from lrt_lens._short_repr import ShortRepr
from lrt_lens.adapters.saes.features._contexts import TopContexts
from lrt_lens.adapters.saes.features._page import TokenContext, TokenContexts
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import Window
from lrt_lens.diffing._model_diff import KIND_MEANINGS, DiffDirections, Kind, ModelDiff
from lrt_lens.figures._template import rows_where
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.models._text_reader import SKIP_FIRST
from lrt_lens.report._html import Paragraph, Plot, Section, Table, render_html, write_html
from lrt_lens.stitching._held_out import read_windows

_BATCH_WINDOWS = 16
"""Windows that run through the models together."""
Role = Literal["source", "target"]
"""Side of a pair."""
_STRONG = 3.0
"""Standard deviations from which a position counts for the density."""


@dataclass(frozen=True)
class DiffReadingSettings(Settings):
    """Settings of `read_diff`: amount of text, of tokens and of contexts."""

    n_tokens: int = 20_000
    """Number of positions that are read."""
    context_length: int = 128
    """Number of tokens per window, BOS included."""
    n_contexts: int = 5
    """Number of contexts of each direction, from different windows."""
    reach: int = 12
    """Number of tokens before and behind a strongest position."""
    n_promoted: int = 8
    """Number of tokens that a direction raises most, and lowers most."""


@dataclass(frozen=True)
class DirectionReading:
    """Tokens that one direction raises, positions where it is strongest, and its density."""

    kind: Kind
    """Kind of direction, see `ModelDiff`."""
    index: int
    """Number of the direction, from 1."""
    raises: list[str]
    """Tokens whose logits a positive component raises most, the first most."""
    lowers: list[str]
    """Tokens whose logits it lowers most."""
    contexts: list[TokenContext]
    """Strongest positions; both lists of activations of a context are its component."""
    density: float
    """Share of tokens whose component is more than three standard deviations from its mean."""


@dataclass(frozen=True, eq=False, repr=False)
class DiffReading(ShortRepr):
    """Promoted tokens, contexts and density of the directions of a `ModelDiff`."""

    table: pd.DataFrame
    """One row per direction: kind, index, eigenvalue, above_noise, density, raises, lowers."""
    directions: dict[tuple[Kind, int], DirectionReading] = field(repr=False)
    """One reading per direction; ``reading["gained", 1]`` is short for it."""
    result: ModelDiff = field(repr=False)
    """The comparison that was read."""
    names: tuple[str, str]
    """Names of source and target."""
    n_tokens: int
    """Number of positions that were read."""

    def __getitem__(self, key: tuple[Kind, int]) -> DirectionReading:
        if key not in self.directions:
            raise KeyError(f"no direction {key}; there are {list(self.directions)}")
        return self.directions[key]

    def __iter__(self) -> Iterator[tuple[Kind, int]]:
        """Yield the keys of the readings, as ``reading["gained", 1]`` takes them."""
        return iter(self.directions)

    @property
    def html(self) -> str:
        """Self-contained page with the eigenvalues, and each direction with its contexts."""
        result = self.result
        sections = [
            Section("Eigenvalues", [Plot(result.figure()), Table(result.table)]),
            *(
                Section(
                    f"{kind[0].upper()}{kind[1:]}",
                    [Paragraph(KIND_MEANINGS[kind]), *self._blocks(kind)],
                )
                for kind in result.kinds
            ),
        ]
        subtitle = (
            f"{self.names[0]} {result.source_hook} → {self.names[1]} {result.target_hook}, "
            f"{result.n_tokens:,} tokens; contexts from {self.n_tokens:,}"
        )
        return render_html("What two models do not share", sections, subtitle=subtitle)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file that loads nothing from the network, and return its path."""
        return write_html(path, self.html)

    def _blocks(self, kind: Kind) -> list[Any]:
        rows = rows_where(self.table, "kind", kind).drop(columns="kind")
        read = [one for one in self.directions.values() if one.kind == kind]
        return [
            Table(rows),
            *(
                TokenContexts(f"Direction {one.index}", one.contexts, ("component",))
                for one in read
            ),
        ]

    def _repr_html_(self) -> str:
        return card("DiffReading", table(self.table))


@takes(DiffReadingSettings)
def read_diff(
    result: ModelDiff,
    pair: ModelPair,
    documents: Documents,
    *,
    progress: bool = True,
    settings: DiffReadingSettings | None = None,
    **options: Any,
) -> DiffReading:
    """Return promoted tokens, strongest contexts and density of each direction.

    Args:
        result: comparison of the two models.
        pair: the two models.
        documents: text on which the directions are read.
        progress: show a progress bar.
        settings: a `DiffReadingSettings`, whose fields may also be keywords.

    Raises:
        MismatchError: the pair is not the one that was compared.
        TooFewDocumentsError: no document offers a position.
    """
    chosen = resolve(DiffReadingSettings, settings, options)
    result.refuse_other_models(pair)
    origin = result.provenance
    skip = SKIP_FIRST if origin.skip_first is None else origin.skip_first
    context = min(chosen.context_length, pair.context_length)
    windows = read_windows(pair, origin, skip, documents, chosen.n_tokens, context, "all")
    readers = [_KindReader(kind, of, chosen) for kind, of in result.directions.items()]
    starts = range(0, len(windows), _BATCH_WINDOWS)
    for start in tqdm(starts, desc="read", disable=not progress, leave=False):
        _read_batch(pair, result, windows[start : start + _BATCH_WINDOWS], readers)
    models = {"source": pair.source, "target": pair.target}
    weights = {role: Unembedding.of(model) for role, model in models.items()}
    read = [
        one
        for reader in readers
        for one in reader.readings(models[reader.role], weights[reader.role])
    ]
    keys = result.table.set_index(["kind", "index"])
    rows = [
        {
            "kind": one.kind,
            "index": one.index,
            "eigenvalue": float(keys.loc[(one.kind, one.index), "eigenvalue"]),
            "above_noise": bool(keys.loc[(one.kind, one.index), "above_noise"]),
            "density": one.density,
            "raises": " ".join(one.raises),
            "lowers": " ".join(one.lowers),
        }
        for one in read
    ]
    return DiffReading(
        table=pd.DataFrame(rows),
        directions={(one.kind, one.index): one for one in read},
        result=result,
        names=(pair.source.name, pair.target.name),
        n_tokens=readers[0].n if readers else 0,
    )


class _KindReader:
    """Running contexts and densities of the directions of one kind."""

    def __init__(self, kind: Kind, of: DiffDirections, settings: DiffReadingSettings) -> None:
        self.kind: Kind = kind
        self.of, self.settings = of, settings
        self.role: Role = "source" if kind == "lost" else "target"
        n = len(of.unit)
        self.contexts = TopContexts(n, settings.n_contexts, settings.reach)
        self.strong, self.n = torch.zeros(n), 0

    def add(
        self, rows: tuple[Tensor, Tensor], places: tuple[Tensor, Tensor], tokens: Tensor, sizes: Any
    ) -> None:
        """Add the paired states [row, d] of a batch, with their window and position."""
        source, target = (one.float().cpu() for one in rows)
        component = source @ self.of.read_source.T + target @ self.of.read_target.T - self.of.offset
        self.strong += (component.abs() > _STRONG * self.of.deviation).sum(0)
        self.n += len(component)
        grid = torch.zeros(*tokens.shape, component.shape[1])
        grid[places] = component.clamp_min(0)
        self.contexts.add(grid, grid, tokens, sizes)

    def readings(self, model: HookedModel, weights: Unembedding) -> list[DirectionReading]:
        """Return one reading per direction."""
        n = self.settings.n_promoted
        promoted = weights.top_tokens(self.of.unit, n)[0]
        density = (self.strong / max(1, self.n)).tolist()
        found = []
        for i, ids in enumerate(promoted.tolist()):
            words = [repr(str(model.tokenizer.decode([token]))) for token in ids]
            contexts = [
                self._context(model, i, slot)
                for slot in range(self.settings.n_contexts)
                if float(self.contexts.peaks[i, slot]) > 0
            ]
            half = len(words) // 2
            found.append(
                DirectionReading(self.kind, i + 1, words[:half], words[half:], contexts, density[i])
            )
        return found

    def _context(self, model: HookedModel, index: int, slot: int) -> TokenContext:
        ids = self.contexts.tokens[index, slot]
        inside = (ids >= 0).nonzero()[:, 0]
        values = self.contexts.ranked[index, slot, inside].tolist()
        words = [str(model.tokenizer.decode([int(token)])) for token in ids[inside]]
        return TokenContext(words, values, values, int((inside < self.contexts.reach).sum()))


def _read_batch(
    pair: ModelPair, result: ModelDiff, windows: list[Window], readers: list[_KindReader]
) -> None:
    """Run both models on some windows, and add the states of paired positions."""
    states, places, tokens = {}, {}, {}
    sides: dict[Role, tuple[HookedModel, str]] = {
        "source": (pair.source, result.source_hook),
        "target": (pair.target, result.target_hook),
    }
    for role, (model, hook) in sides.items():
        read = [window.read_by(role) for window in windows]
        tokens[role] = model.pad([one.ids for one in read])
        places[role] = (
            torch.cat([torch.full((len(one.rows),), i) for i, one in enumerate(read)]),
            torch.cat([torch.from_numpy(one.rows) for one in read]).long(),
        )
        stream = model.capture(tokens[role], [hook])
        states[role] = next(iter(stream.values())).cpu()[places[role]]
    sizes = {
        role: torch.tensor([len(window.read_by(role).ids) for window in windows]) for role in sides
    }
    for reader in readers:
        role = reader.role
        both = (states["source"], states["target"])
        reader.add(both, places[role], tokens[role].cpu(), sizes[role])
