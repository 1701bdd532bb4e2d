"""The stitch: fitted maps between two hook points, with their evidence and their uses.

Problem: an artefact (a steering vector, a probe, an SAE) of one model should be used in another.
Mechanism: `Stitch.transfer` maps each kind of artefact by the rule that its adapter registers, and
refuses artefacts of other models or hook points. `score_rows` scores the map on any texts, which
also gives the papers' cosine, a mean over tokens that moments do not contain.

    stitch = grid.best(source="blocks.3.hook_resid_post")
    stitch.up.directions(v)                   # [d_source] → [d_target]
    transferred = stitch.transfer(vector)     # one method for every kind of artefact
    stitch.save_pretrained("my-stitch")
    Stitch.from_pretrained("my-stitch")
    score_rows(stitch, pair, texts).r2

A stitch is saved as a folder (safetensors, JSON, a model card), which is also the content of a hub
repository. Nothing is pickled.

Limits: a stitch is one hook pair of one pair of models; a `StitchGrid` has all of them.
`score_rows` holds all rows in memory in float64 and gives no interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from lrt_lens._files import make_folder
from lrt_lens._late import implementation
from lrt_lens._repr_html import card, facts, note, table
from lrt_lens.data._blocks import WindowCutter
from lrt_lens.data._windows import BlockPlan, Window
from lrt_lens.figures._stitch import stitch_figure
from lrt_lens.models._belonging import identity_of, refuse_other_models
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._pair import ModelPair
from lrt_lens.moments._scatter import r2_of
from lrt_lens.stitching._card import stitch_card
from lrt_lens.stitching._fidelity import Fidelity, fidelity
from lrt_lens.stitching._folder import load_stitch, save_stitch
from lrt_lens.stitching._stitch_data import StitchData, transfer_artefact
from lrt_lens.typing import ArrayLike

_OF_UPLOADS = ("create_pr", "allow_patterns", "ignore_patterns", "delete_patterns")
"""Arguments of `ModelHubMixin.push_to_hub` that it gives to the upload as they are."""


_COUNTERPARTS = {
    "source_hook": "target_hook",
    "alpha": "alpha_down",
    "rank": "rank_down",
    "r2": "r2_down",
    "r2_uniform": "r2_uniform_down",
    "r2_cv": "r2_down_cv",
    "r2_uniform_cv": "r2_uniform_down_cv",
    "gain_cv": "gain_down_cv",
    "cosine": "cosine_down",
    "r2_null": "r2_null_down",
    "r2_token": "r2_token_down",
    "r2_uniform_token": "r2_uniform_token_down",
}
"""Score of the map down that corresponds to each score of the map up."""
_REVERSED = _COUNTERPARTS | {down: up for up, down in _COUNTERPARTS.items()}
"""Name of each score in the reversed stitch; other scores are those of both directions."""


@dataclass(frozen=True, eq=False)
class Stitch(StitchData, ModelHubMixin):
    """Maps between one hook point of the source and one hook point of the target."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "Stitch":
        # ModelHubMixin.__new__ requires JSON arguments, from which it writes a configuration. A
        # stitch writes its own (`save_stitch`).
        return object.__new__(cls)

    def transfer(self, artefact: Any, **options: Any) -> Any:
        """Return the artefact transferred to the target model.

        Args:
            artefact: a steering vector, a probe, an SAE, or another class with a rule of transfer.
            **options: options of that rule.

        Raises:
            MismatchError: the artefact belongs to another model or hook point.
            TypeError: no rule of transfer is registered for its class.
        """
        return transfer_artefact(artefact, self, **options)

    def fidelity(
        self,
        direction: ArrayLike,
        kind: Literal["write", "read"] = "write",
        *,
        n_random: int = 100,
        seed: int = 0,
    ) -> Fidelity:
        """Return the predicted fidelity of a direction [d_source], without running a model.

        Args:
            direction: [d_source], of any length: a tensor, an array or a list.
            kind: ``"write"`` for a direction that is added to the stream (steering vectors, decoder
                rows), ``"read"`` for one on which the stream is projected (probe weights, encoder
                columns).
            n_random: number of random directions of the null.
            seed: seed of the random directions.

        Raises:
            ValueError: the direction is zero or not finite, or the stitch has no held-out moments.
            MismatchError: the direction has another width.

        `lrt_lens.stitching._fidelity` has the formulas.
        """
        return fidelity(self, direction, kind, n_random=n_random, seed=seed)

    def check(self, source: HookedModel | None = None, target: HookedModel | None = None) -> None:
        """Raise `MismatchError` if a model is not the one on which this stitch was fitted.

        Of a `ModelPair` give both models: ``stitch.check(pair.source, pair.target)``.
        """
        models = [identity_of("source", source), identity_of("target", target)]
        refuse_other_models("", models, (self.source, self.target))

    def reversed(self) -> "Stitch":
        """Return this stitch with source and target exchanged.

        Every score takes the name of its counterpart in the other direction, so that reversing
        twice is the same stitch. The score of the reversed null is known if the moments had
        shuffled pairs, and that of the reversed token identity if the target's ``hook_embed`` was
        one of the target hook points; neither is known for stitches saved before these scores.
        """
        return Stitch(
            maps=self.maps.reversed(),
            source_statistics=self.target_statistics,
            target_statistics=self.source_statistics,
            scores={_REVERSED.get(key, key): value for key, value in self.scores.items()},
            provenance=self.provenance.swapped(),
            null=self.null.reversed() if self.null else None,
            refits=tuple(maps.reversed() for maps in self.refits),
            held_out=tuple(group.swapped() for group in self.held_out),
        )

    def __repr__(self) -> str:
        names = [model.name if model else "unknown" for model in (self.source, self.target)]
        values = {
            label: self.scores.get(name, math.nan)
            for label, name in {
                "r2": "r2",
                "r2_uniform": "r2_uniform",
                "null": "r2_null",
                "tokens alone": "r2_token",
            }.items()
        }
        scores = ", ".join(
            f"{label} {'unknown' if math.isnan(value) else f'{value:.2f}'}"
            for label, value in values.items()
        )
        return f"Stitch({names[0]} {self.source_hook} → {names[1]} {self.target_hook}, {scores})"

    def figure(self) -> Any:
        """Return a plotly figure of the R² of both maps, the null and token identity."""
        return stitch_figure(
            {"source_hook": self.source_hook, "target_hook": self.target_hook} | self.scores
        )

    def _repr_html_(self) -> str:
        ends = {"source": (self.source, self.up), "target": (self.target, self.down)}
        where = {
            role: f"{model.name if model else 'unknown model'}, "
            f"{side.source_hook} [{len(side.weight)}]"
            for role, (model, side) in ends.items()
        }
        n = self.scores.get("n_tokens")
        about = where | {
            "solver": self.scores.get("solver"),
            "tokens that fitted": None if n is None else int(n),
        }
        # Scores can be missing (no null, no token hook, an older file): `get` leaves a gap.
        scores = pd.DataFrame(
            {
                "": ["up", "down"],
                "alpha": [self.scores.get("alpha"), self.scores.get("alpha_down")],
                **{
                    name + end: [self.scores.get(name + end), self.scores.get(f"{name}_down{end}")]
                    for end in ("", "_cv")
                    for name in ("r2", "r2_uniform")
                },
                **{
                    name: [self.scores.get(name), self.scores.get(f"{name}_down")]
                    for name in ("r2_null", "r2_token", "r2_uniform_token")
                },
            }
        )
        legend = (
            "Columns without _cv are scores on the test fold. r2_null: the map of shuffled pairs. "
            "r2_token: the same target predicted from the source's embedding alone."
        )
        return card("Stitch", facts(about), table(scores), note(legend))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the stitch folder; ``push_to_hub=True`` with ``repo_id`` also uploads it.

        Args:
            save_directory: folder to write; it is created if it does not exist.
            **options: options of `ModelHubMixin.save_pretrained`.

        Raises:
            FileExistsError: the folder has a README.md that is no model card of this package.
        """
        return super().save_pretrained(make_folder(Path(save_directory)), **options)

    def push_to_hub(self, repo_id: str, *, branch: str | None = None, **options: Any) -> str:
        """Upload the stitch with its model card to the hub and return the address of the commit.

        Args:
            repo_id: id of the repository, ``owner/name``; it is created if it does not exist.
            branch: another name of ``revision=``, as in `ModelHubMixin.push_to_hub`.
            **options: options of `lrt_lens.serving.push_to_hub` (``license=``, ``evaluation=``,
                ``private=``, …) and of `ModelHubMixin.push_to_hub`.
        """
        # A stitch writes its own configuration and card.
        for name in ("config", "model_card_kwargs"):
            options.pop(name, None)
        upload = dict(options.pop("upload", None) or {})
        upload |= {name: options.pop(name) for name in _OF_UPLOADS if name in options}
        options = {"revision": branch, "upload": upload} | options
        return implementation("Stitch.push_to_hub")(self, repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_stitch(self, save_directory, stitch_card(self))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> "Stitch":
        """Return the stitch in a folder or a hub repository.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            **hub: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only`` of `huggingface_hub`.

        Raises:
            FileFormatError: there is no complete stitch.
        """
        # ModelHubMixin.from_pretrained looks for a config.json and warns if there is none.
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **hub)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> "Stitch":
        hub = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        data = load_stitch(model_id, **{key: kwargs.get(key) for key in hub})
        return cls(**{field.name: getattr(data, field.name) for field in fields(data)})


_BATCH_WINDOWS = 16


@dataclass(frozen=True)
class RowScore:
    """Scores of the map up of a stitch on some texts."""

    r2: float
    """Explained share of the variance, ``variance_weighted`` R² of scikit-learn."""
    r2_uniform: float
    """Mean R² over output dimensions, ``uniform_average`` of scikit-learn."""
    cosine_per_token: float
    """Mean over tokens of cos(ŷ − ȳ, y − ȳ), with ȳ the mean of these texts."""
    n_tokens: int


def score_rows(
    stitch: Stitch, pair: ModelPair, texts: Sequence[str], *, context_length: int = 256
) -> RowScore:
    """Return scores of ``stitch.up`` on the unmasked tokens of ``texts``.

    With two tokenizers, only aligned tokens count.

    Raises:
        ValueError: no text has such a token.
        MismatchError: ``pair`` has other models than the stitch.
    """
    stitch.check(pair.source, pair.target)
    plan = BlockPlan(
        context_length=min(context_length, pair.context_length), skip_first=stitch.skip_first
    )
    windows = [
        window
        for document in WindowCutter(plan, pair.source, pair.target).cut(texts)
        for window in document.windows
    ]
    if not windows:
        raise ValueError(
            f"none of {len(texts)} texts has a token after the first {plan.skip_first}; give "
            "longer texts"
        )
    # Windows of similar length share a batch, so that little is padded.
    windows.sort(key=lambda window: len(window.ids))
    batches = [windows[i : i + _BATCH_WINDOWS] for i in range(0, len(windows), _BATCH_WINDOWS)]
    x = torch.cat([_rows(pair.source, stitch.source_hook, batch) for batch in batches])
    y = torch.cat(
        [
            # Row i of x and of y is the same position, also with two tokenizers.
            _rows(pair.target, stitch.target_hook, [window.read_by("target") for window in batch])
            for batch in batches
        ]
    )
    # R² about the mean of these texts, not of the harvest: scikit-learn's definition.
    predicted = stitch.up.points(x)
    r2, r2_uniform, _ = r2_of(((y - predicted) ** 2).sum(0), ((y - y.mean(0)) ** 2).sum(0))
    cosine = torch.nn.functional.cosine_similarity(
        predicted - y.mean(0), y - y.mean(0), dim=1
    ).mean()
    return RowScore(r2=r2, r2_uniform=r2_uniform, cosine_per_token=float(cosine), n_tokens=len(x))


def _rows(model: HookedModel, hook: str, batch: list[Window]) -> Tensor:
    """Return the activations of the windows' rows [row, d] in float64, on the CPU."""
    activations = model.engine.capture(model.pad([window.ids for window in batch]), [hook])[hook]
    return (
        torch.cat([activations[i, torch.from_numpy(window.rows)] for i, window in enumerate(batch)])
        .double()
        .cpu()
    )
