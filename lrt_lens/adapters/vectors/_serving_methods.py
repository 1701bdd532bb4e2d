"""Methods of a steering vector that leave the notebook: export, bake, upload.

Problem: the functions behind them stand above all artefacts, because they calibrate, load models
and know the formats of other programs. Mechanism: the methods call them by name
(`lrt_lens/_late.py`), and this class keeps the names out of the module of the vector itself.

    vector.export("mood.gguf", "llama.cpp", damage=0.1, model=model, neutral=texts)
    vector.bake(model, "model-with-mood", scale=2.3)
    vector.push_to_hub("user/mood")

Limits: one vector; `lrt_lens.serving` has the functions for several at once.
"""

from pathlib import Path
from typing import Any

from lrt_lens._late import implementation


class ServingMethods:
    """Export, bake and upload of a steering vector."""

    def export(self, path: str | Path, to: str, **options: Any) -> Path:
        """Write the vector as a file of another program, and return its path.

        A file ``….export.json`` beside it says what was written and at which positions the program
        steers; `lrt_lens.check_export` adds what it measures there.

        Args:
            path: the file, or the folder for ``"transformers"``.
            to: a format of `lrt_lens.serving.FORMATS`: ``"llama.cpp"``, ``"glp"``, ``"repeng"``,
                ``"vllm-lens"``, ``"lm-eval"``, ``"steering-vectors"``, ``"aisteer360"``,
                ``"neuronpedia"`` or ``"transformers"``.
            **options: ``scale``, ``damage``, ``neutral``, ``model``, ``mode`` and ``level`` of
                `lrt_lens.serving.export_vectors`.

        Raises:
            ValueError: the format cannot express the vector; the message names one that can.
        """
        return implementation("SteeringVector.export")(self, path, to, **options)

    def bake(self, model: Any, folder: str | Path, **options: Any) -> Path:
        """Write a model that is steered by its weights alone, and return its folder.

        Args:
            model: the model that the vector belongs to; it is not changed.
            folder: folder of Hugging Face that is written.
            **options: ``scale``, ``mode``, ``form`` and ``dtype`` of
                `lrt_lens.serving.bake_vector`.

        Raises:
            ValueError: the architecture has no place for the vector.
        """
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
