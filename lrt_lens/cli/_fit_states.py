"""The command ``lrt-lens fit-states``: like ``fit``, of models that were run elsewhere.

    lrt-lens fit-states --source gpt2 --target states --documents corpus.jsonl

Limits: one process, and no survey.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrt_lens.cli._outputs import refuse_foreign, write_outputs
from lrt_lens.cli._pair_command import PairCommand


@dataclass(frozen=True, kw_only=True)
class FitStates(PairCommand):
    """Fit a map for every hook pair, from hidden states that an engine has kept.

    --source and --target are folders of hidden states, or models that run here (one of them at
    most). Folders hold files of vLLM, parquet or .npy, and states.json says what they are;
    `lrt-lens states` writes it. Writes what `lrt-lens fit` writes.

        lrt-lens fit-states --source gpt2 --target states --documents corpus.jsonl --wait 600

    Without --documents each sequence is one window. Next: as after `lrt-lens fit`.
    """

    words: ClassVar[str] = "fit-states"

    documents: str | None = None  # type: ignore[assignment]
    """The documents whose windows the engine has read, as for `lrt-lens fit`."""
    tokenizer: str | None = None
    """Tokenizer of the kept states, if neither states.json nor the other model has it."""
    verify_source: str | None = None
    """Model that computed the states of the source, to compare some and to know its identity."""
    verify_target: str | None = None
    """Model that computed the states of the target, likewise."""
    consume: bool = False
    """Delete files that are in the moments, after each checkpoint."""
    wait: float = 0.0
    """Seconds without a new file after which a missing one is an error: for a running engine."""

    def run(self) -> None:
        """Harvest the states, fit and write the results."""
        from lrt_lens._files import refuse_unwritable
        from lrt_lens.moments import remove_checkpoints
        from lrt_lens.moments.states import harvest_states
        from lrt_lens.stitching import fit_grid

        self.check()
        checkpoint = self.out / "checkpoint"
        refuse_foreign(self.out, self)
        refuse_unwritable(self.out)
        if self.restart:
            remove_checkpoints(checkpoint)
        source, target = self._side("source"), self._side("target")
        verify = {"source": self.verify_source, "target": self.verify_target}
        moments = harvest_states(
            source,
            target,
            self.documents,
            tokenizers=self.tokenizer,
            verify=verify,
            consume=self.consume,
            wait=self.wait,
            checkpoint=checkpoint,
            checkpoint_every=self.checkpoint_every,
            progress=self.progress,
            **self.fields,
        )
        moments.save(self.out / "moments.safetensors")
        grid = fit_grid(moments, self.solver, progress=self.progress)
        # Checkpoints go only after the moments are saved.
        remove_checkpoints(checkpoint)
        write_outputs(self.out, self, grid, (self._name(source), self._name(target)))

    def _side(self, role: str) -> Any:
        """Return a model that runs here, or the path of a folder of states."""
        from lrt_lens.models import HookedModel
        from lrt_lens.moments.states import StateFolder, is_state_folder

        given, name = getattr(self, role), getattr(self, f"{role}_name")
        if is_state_folder(Path(given)):
            return StateFolder(given, name=name, prepend_bos=self.prepend_bos)
        return HookedModel.load(
            given,
            name=name,
            device=self.device,
            device_map=self.device_map,
            dtype=self.dtype,
            revision=getattr(self, f"{role}_revision"),
            prepend_bos=self.prepend_bos,
        )

    @staticmethod
    def _name(side: Any) -> str:
        from lrt_lens.moments.states import StateFolder

        if isinstance(side, StateFolder):
            return side.manifest.model or Path(side.path).name
        return side.name
