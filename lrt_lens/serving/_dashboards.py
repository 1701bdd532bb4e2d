"""Dashboards of SAE features in the files of SAEDashboard, which Neuronpedia imports.

    about = {"model_id": "large", "layer": 3, "sae_set": "res-lrt"}
    write_dashboards(sae, model, documents, folder, about)
    # folder/batch-0.json, batch-1.json, …, skipped_indexes.json

Problem: Neuronpedia shows for each feature the texts on which it fires most, a sample of weaker
ones, histograms, and the output tokens that it promotes; the numbers of all features on all tokens
do not fit into memory. Mechanism: one pass over the text stores the activations that are not 0,
which are few. From these the fields of SAEDashboard's schema (version 0.8.0,
``NeuronpediaDashboardBatch``) are filled:

- ``frac_nonzero``, ``freq_hist_data_*``: share of unmasked tokens at which the feature fires, and
  the histogram of its activations there (50 bins);
- ``activations``: the windows with the largest activations (``bin_min`` −1), and windows drawn from
  five equal intervals between 0 and the maximum, with the share of tokens in each;
- ``pos_*``, ``neg_*``, ``logits_hist_data_*``: effect of the decoder row on the logits;
- ``neuron_alignment_*``: the largest entries of the decoder row.

Limits: correlated neurons and features are left empty, as SAEDashboard allows. Effects on logits
have the gain of the final norm folded in and are centred over the vocabulary
(`lrt_lens.adapters.saes.features._unembedding`), where SAEDashboard multiplies by the plain
unembedding. Masked positions count as 0. Features that fire nowhere are listed in
``skipped_indexes.json`` and have no dashboard.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrt_lens._files import write_atomically
from lrt_lens._settings import Settings
from lrt_lens.adapters.saes.features._coder import FeatureCoder
from lrt_lens.adapters.saes.features._unembedding import Unembedding
from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._documents import Documents
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.errors import TooFewDocumentsError
from lrt_lens.models._hooked_model import HookedModel

_BINS = 50
"""Bars of each histogram, as in SAEDashboard."""
_BATCH_WINDOWS = 16
"""Windows per forward pass."""
_DIGITS = 3
"""Decimals of all numbers, as in SAEDashboard."""
_TOP = -1.0
"""Lower end, and share of tokens, by which SAEDashboard marks the strongest texts."""
_PIECES = {"Ġ": " ", "Ċ": "\n", "ĉ": "\t"}
"""Characters that stand for white space in the pieces of byte-level tokenizers."""


@dataclass(frozen=True)
class DashboardSettings(Settings):
    """Amount of text, and what is shown of each feature."""

    n_prompts: int = 1024
    """Windows of text that are read."""
    n_tokens_in_prompt: int = 128
    """Tokens per window, special tokens included."""
    n_top: int = 20
    """Windows with the largest activations."""
    n_intervals: int = 5
    """Intervals of equal width between 0 and the largest activation; 0 leaves them out."""
    n_per_interval: int = 5
    """Windows drawn from each interval."""
    n_output_tokens: int = 10
    """Output tokens that are raised most, and as many that are lowered most."""
    features_per_file: int = 128
    """Features per file."""
    features: tuple[int, ...] | None = None
    """Features that are shown; None shows all that fire."""
    dataset: str = ""
    """Name of the text, as Neuronpedia shows it."""
    seed: int = 0
    """Seed of the windows that are drawn from the intervals."""


def write_dashboards(
    sae: Any,
    model: HookedModel,
    documents: Documents,
    folder: Path,
    about: Mapping[str, Any],
    settings: DashboardSettings | None = None,
) -> list[Path]:
    """Write the dashboards of an SAE's features and return the paths of the batches.

    Args:
        sae: a SAELens SAE of the model, or an object with ``encode`` and ``W_dec``.
        model: the model.
        documents: text in any form that `fit_stitches` takes.
        folder: folder of the files.
        about: ``model_id``, ``layer`` and ``sae_set``, Neuronpedia's names of the source.
        settings: amount of text, and what is shown.

    Raises:
        TooFewDocumentsError: no document has an unmasked token.
        IndexError: a feature that is to be shown is none of the SAE.
    """
    run = settings or DashboardSettings()
    coder = FeatureCoder(sae)
    wanted = range(coder.n_features) if run.features is None else run.features
    outside = [i for i in wanted if not 0 <= i < coder.n_features]
    if outside:
        raise IndexError(
            f"features {outside[:5]} are none of this SAE; it has {coder.n_features}, from number 0"
        )
    outputs, decoder = Unembedding.of(model), coder.decoder
    n_outputs, hook = int(outputs.weight.shape[1]), sae.cfg.metadata.hook_name
    fired = _Activations.read(coder, model, hook, documents, run, n_outputs)
    shown = [i for i in wanted if len(fired.of(i)[0])]
    paths = []
    for number, start in enumerate(range(0, len(shown), run.features_per_file)):
        indices = shown[start : start + run.features_per_file]
        logits = outputs.logit_weights(decoder[indices])
        features = [
            fired.dashboard(i, decoder[i], row) for i, row in zip(indices, logits, strict=True)
        ]
        batch = {**about, "sae_id_suffix": None, "features": features}
        paths.append(_write_json(folder / f"batch-{number}.json", batch))
    silent = sorted(set(range(coder.n_features)) - set(shown))
    _write_json(
        folder / "skipped_indexes.json",
        {**about, "layer": str(about["layer"]), "skipped_indexes": silent},
    )
    return paths


def _write_json(path: Path, content: Any) -> Path:
    octets = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return write_atomically(path, lambda temporary: temporary.write_bytes(octets))


@dataclass(frozen=True)
class _Activations:
    """Activations that are not 0, sorted by feature, with the windows that were read."""

    windows: list[Window]
    rows: np.ndarray
    """Number of each activation's token: window · longest + position."""
    values: np.ndarray
    starts: np.ndarray
    """Position at which each feature begins in ``rows`` and ``values``, [feature + 1]."""
    longest: int
    """Tokens of the longest window."""
    n_counted: int
    """Unmasked tokens."""
    pieces: dict[int, str]
    """Text of each token of the windows and of the output, by its id."""
    n_prefix: int
    """Special tokens before every text, which are not shown."""
    settings: DashboardSettings

    @classmethod
    def read(
        cls,
        coder: FeatureCoder,
        model: HookedModel,
        hook: str,
        documents: Documents,
        settings: DashboardSettings,
        n_outputs: int,
    ) -> "_Activations":
        """Read the text once; ``n_outputs`` is the number of output tokens."""
        windows = _windows(model, documents, settings)
        longest = max(len(window.ids) for window in windows)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(windows), _BATCH_WINDOWS):
            batch = windows[start : start + _BATCH_WINDOWS]
            states = model.engine.capture(model.pad([one.ids for one in batch]), [hook])[hook]
            for offset, window in enumerate(batch):
                activations = coder.encode(states[offset, torch.from_numpy(window.rows)]).cpu()
                row, feature = activations.nonzero(as_tuple=True)
                token = (start + offset) * longest + torch.from_numpy(window.rows)[row]
                found.append((feature, token, activations[row, feature]))
        feature, rows, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = feature.argsort(stable=True)
        counts = torch.bincount(feature, minlength=coder.n_features)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        vocabulary = range(n_outputs)
        return cls(
            windows,
            rows[order].numpy(),
            values[order].double().numpy(),
            starts.numpy(),
            longest,
            sum(len(window.rows) for window in windows),
            _pieces(model.tokenizer, vocabulary),
            len(model.prefix),
            settings,
        )

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens at which a feature fires, and its activations there."""
        part = slice(self.starts[feature], self.starts[feature + 1])
        return self.rows[part], self.values[part]

    def dashboard(self, feature: int, decoder: Tensor, logits: Tensor) -> dict[str, Any]:
        """Return the dashboard of one feature in SAEDashboard's schema."""
        run, (_, values) = self.settings, self.of(feature)
        n = min(run.n_output_tokens, len(logits) // 2)
        raised, lowered = logits.topk(n), (-logits).topk(n)
        heights, middles = _histogram(values)
        logit_heights, logit_middles = _histogram(logits.double().numpy())
        aligned = decoder.topk(min(3, len(decoder)))
        return {
            "feature_index": feature,
            "neuron_alignment_indices": aligned.indices.tolist(),
            "neuron_alignment_values": _rounded(aligned.values.numpy()),
            "neuron_alignment_l1": _rounded((aligned.values / decoder.abs().sum()).numpy()),
            "neg_str": [self.pieces[i] for i in lowered.indices.tolist()],
            "neg_values": _rounded(-lowered.values.numpy()),
            "pos_str": [self.pieces[i] for i in raised.indices.tolist()],
            "pos_values": _rounded(raised.values.numpy()),
            "frac_nonzero": len(values) / self.n_counted,
            "freq_hist_data_bar_heights": heights,
            "freq_hist_data_bar_values": middles,
            "logits_hist_data_bar_heights": logit_heights,
            "logits_hist_data_bar_values": logit_middles,
            "n_prompts_total": len(self.windows),
            "n_tokens_in_prompt": self.longest,
            "dataset": run.dataset,
            "activations": self._texts(feature),
            # Fields that SAEDashboard has and Neuronpedia does not need for a residual SAE.
            **{f"correlated_{kind}": [] for kind in _CORRELATED},
            "decoder_weights_dist": [],
            "vector": [],
        }

    def _texts(self, feature: int) -> list[dict[str, Any]]:
        """Return the strongest windows, then windows drawn from each interval, strongest first."""
        run, (rows, values) = self.settings, self.of(feature)
        maximum = float(values.max())
        # The strongest token of each window, strongest window first.
        order = np.argsort(-values, kind="stable")
        _, first = np.unique(rows[order] // self.longest, return_index=True)
        top = order[np.sort(first)[: run.n_top]]
        texts = [self._text(feature, int(rows[i]), _TOP, maximum, _TOP) for i in top]
        generator = np.random.default_rng([run.seed, feature])
        edges = np.linspace(0, maximum, run.n_intervals + 1) if run.n_intervals else []
        for low, high in reversed(list(pairwise(edges))):
            # The lowest interval holds the tokens at which the feature is 0 too; they are counted.
            inside = np.flatnonzero((values > low) & (values <= high))
            silent = self.n_counted - len(values) if low == 0 else 0
            share = (len(inside) + silent) / self.n_counted
            for i in generator.permutation(inside)[: run.n_per_interval]:
                texts.append(self._text(feature, int(rows[i]), float(low), float(high), share))
        return texts

    def _text(
        self, feature: int, row: int, low: float, high: float, share: float
    ) -> dict[str, Any]:
        """Return one window with the feature's activation at each of its tokens."""
        number, position = divmod(row, self.longest)
        ids = self.windows[number].ids
        rows, values = self.of(feature)
        first = np.searchsorted(rows, number * self.longest)
        last = np.searchsorted(rows, (number + 1) * self.longest)
        dense = np.zeros(len(ids))
        dense[rows[first:last] - number * self.longest] = values[first:last]
        return {
            "bin_min": round(low, _DIGITS),
            "bin_max": round(high, _DIGITS),
            "bin_contains": share,
            "tokens": [self.pieces[i] for i in ids[self.n_prefix :]],
            "values": _rounded(dense[self.n_prefix :]),
            "qualifying_token_index": position - self.n_prefix,
        }


_CORRELATED = tuple(
    f"{what}_{value}" for what in ("neurons", "features") for value in ("indices", "l1", "pearson")
)
"""Fields of the schema that stay empty."""


def _windows(model: HookedModel, documents: Documents, run: DashboardSettings) -> list[Window]:
    """Return the first windows of the documents that have an unmasked token."""
    length = min(run.n_tokens_in_prompt, model.context_length or run.n_tokens_in_prompt)
    cutter = WindowCutter(BlockPlan(context_length=length), model)
    windows: list[Window] = []
    for document in cutter.read(documents):
        [cut] = cutter.cut([document])
        windows += [window for window in cut.windows if len(window.rows)]
        if len(windows) >= run.n_prompts:
            break
    if not windows:
        raise TooFewDocumentsError(
            "no document has four tokens after the first positions, which are masked; give longer "
            "text"
        )
    return windows[: run.n_prompts]


def _histogram(values: np.ndarray) -> tuple[list[int], list[float]]:
    """Return heights and middles of the bars between the smallest and the largest value."""
    heights, edges = np.histogram(values, bins=_BINS)
    return heights.tolist(), _rounded((edges[:-1] + edges[1:]) / 2)


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return np.round(np.asarray(values, dtype=float), _DIGITS).tolist()


def _pieces(tokenizer: Any, ids: range) -> dict[int, str]:
    """Return the text of each token as SAEDashboard writes it: pieces with their white space."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = {}
    for i, piece in zip(ids, pieces, strict=True):
        # Rows of the unembedding behind the vocabulary belong to no token.
        text = f"<unused {i}>" if piece is None else str(piece)
        for mark, space in _PIECES.items():
            text = text.replace(mark, space)
        texts[i] = text
    return texts
