"""Methods of a steering vector that leave the notebook: export, bake, upload.

Problem: the functions behind them stand above all artefacts, because they calibrate, load models
and know the formats of other programs. Mechanism: the methods call them by name
(`lrt_lens/_late.py`), and this class keeps the names out of the module of the vector itself.

    vector.export("mood.gguf", "llama.cpp", damage=0.1, model=model, neutral=texts)
    vector.bake(model, "model-with-mood", scale=2.3)
    vector.push_to_hub("user/mood")

A subspace is exported by `SpanExport`: what it adds as one vector, an ablation as its rows.

Limits: one vector; `lrt_lens.serving` has the functions for several at once.
"""

from pathlib import Path
from typing import Any, Literal

from lrt_lens._late import implementation
from lrt_lens.adapters.vectors._steering_hook import Mode
from lrt_lens.models._loading import ModelLike


class ServingMethods:
    """Export, bake and upload of a steering vector."""

    def export(
        self,
        path: str | Path,
        to: str,
        *,
        scale: float | None = None,
        damage: float | None = None,
        neutral: Any = None,
        model: ModelLike = None,
        mode: Mode | None = None,
        level: float | None = None,
    ) -> Path:
        """Write the vector as a file of another program, and return its path.

        A file ``….export.json`` beside it says what was written and at which positions the program
        steers; `lrt_lens.check_export` adds what it measures there.

        Args:
            path: the file, or the folder for ``"transformers"``.
            to: a format of `lrt_lens.serving.FORMATS`: ``"llama.cpp"``, ``"glp"``, ``"repeng"``,
                ``"vllm-lens"``, ``"lm-eval"``, ``"steering-vectors"``, ``"aisteer360"``,
                ``"neuronpedia"`` or ``"transformers"``.
            scale: multiple of the vector that the program adds, or the share of an ablation; by
                default that of ``strength``, else 1.
            damage: damage in nats per token on ``neutral``, for which the scale is calibrated at
                the positions that the program steers; excludes ``scale``.
            neutral: neutral texts, see `lrt_lens.calibrate_scale`.
            model: the model of the vector; needed for ``damage``, and for a vector that does not
                know it.
            mode: ``"add"``, ``"clamp"`` or ``"ablate"``; by default that of ``strength``, else
                ``"add"``.
            level: component along the unit vector that a clamp sets; by default that of
                ``strength``.

        Raises:
            ValueError: the format cannot express the vector; the message names one that can.
            MismatchError: the vector belongs to another model.
        """
        export = implementation("SteeringVector.export")
        strength: dict[str, Any] = {"scale": scale, "damage": damage, "mode": mode, "level": level}
        return export(self, path, to, neutral=neutral, model=model, **strength)

    def bake(
        self,
        model: ModelLike,
        folder: str | Path,
        *,
        scale: float | None = None,
        mode: Literal["add", "ablate"] | None = None,
        form: Literal["weights", "lora"] = "weights",
        dtype: Any = None,
    ) -> Path:
        """Write a model that is steered by its weights alone, and return its folder.

        Args:
            model: the model that the vector belongs to; it is not changed.
            folder: folder of Hugging Face that is written.
            scale: multiple of the vector that is added; 1 for ``"ablate"``. Default: that of
                ``strength``, else 1.
            mode: ``"add"`` or ``"ablate"``. Default: that of ``strength``, else ``"add"``.
            form: ``"weights"``, or ``"lora"`` for an adapter of rank 1 (needs ``lrt-lens[peft]``).
            dtype: dtype of the weights that are written; see `lrt_lens.serving.bake_vector`.

        Raises:
            HookPointError: the architecture has no place for the vector.
            ValueError: a wrong scale, mode or form, or a model whose weights cannot be changed.
        """
        options: dict[str, Any] = {"scale": scale, "mode": mode, "form": form, "dtype": dtype}
        return implementation("SteeringVector.bake")(self, model, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the vector with a model card to the hub, and return the address of the commit.

        Args:
            repo_id: repository, ``owner/name``; it is made if there is none.
            **options: ``license``, ``evaluation`` and others of `lrt_lens.serving.push_to_hub`.

        Raises:
            HubError: the hub refuses the upload, or cannot be reached.
        """
        return implementation("SteeringVector.push_to_hub")(self, repo_id, **options)


class SpanExport:
    """Export of a steering subspace."""

    vector: Any
    """Vector that scale 1 adds."""
    vectors: Any
    """Rows of the basis as unit vectors."""

    def export(
        self,
        path: str | Path,
        to: str,
        *,
        mode: Literal["add", "ablate"] = "add",
        scale: float | None = None,
        damage: float | None = None,
        neutral: Any = None,
        model: ModelLike = None,
    ) -> Path:
        """Write the subspace as a file of another program, and return its path.

        Every format holds what scale 1 adds, as one vector. An ablation of several directions at
        one block is held by the format ``"glp"`` alone.

        Args:
            path: the file, or the folder for ``"transformers"``.
            to: a format of `lrt_lens.serving.FORMATS`.
            mode: ``"add"`` or ``"ablate"``; no format keeps or clamps a span.
            scale: multiple of the vector that the program adds, or the share of an ablation; by
                default 1.
            damage: damage in nats per token on ``neutral`` for which the scale of ``"add"`` is
                calibrated, see `SteeringVector.export`.
            neutral: neutral texts, see `lrt_lens.calibrate_scale`.
            model: the model that it belongs to.

        Raises:
            ValueError: another mode, a damage with ``"ablate"``, or a format that cannot express
                it; the message names one that can.
            MismatchError: it belongs to another model.
        """
        if mode not in ("add", "ablate") or (mode == "ablate" and damage is not None):
            raise ValueError(
                f"mode is {mode!r} with damage={damage}; files hold what a subspace adds, with a"
                " scale or a damage, or its ablation with a scale: use subspace.apply for the"
                " others, and calibrate_scale(model, subspace, texts, mode='ablate') for a scale"
            )
        export = implementation("SteeringVector.export")
        options: dict[str, Any] = {"scale": scale, "damage": damage, "neutral": neutral}
        exported = self.vector if mode == "add" else self.vectors
        return export(exported, path, to, mode=mode, model=model, **options)
