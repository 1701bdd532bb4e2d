"""A checkpoint that is to be written: class, config and tensors of a model that is in memory.

Problem: saving a model writes its class and config into the model's own config, and a bias that the
config does not name is left out without a word. Mechanism: tensors are changed in a dictionary that
shares the unchanged ones with the model; a second model of the wanted class is built without memory
(on the device ``meta``), takes these tensors and is saved.

    checkpoint = BakedCheckpoint.of(hf_model)
    checkpoint.shift("model.layers.3.mlp.down_proj.bias", delta)
    checkpoint.save(folder)

Limits: every tensor of the wanted class that the model lacks must be a bias, which is zero.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class BakedCheckpoint:
    """Class, config and tensors of a model, with notes of what was changed."""

    kind: type
    config: Any
    generation_config: Any
    state: dict[str, Tensor]
    changes: dict[str, str] = field(default_factory=dict)
    """Description of each change, by the name of the tensor or config field."""

    @classmethod
    def of(cls, hf_model: Any, dtype: torch.dtype | None = None) -> "BakedCheckpoint":
        """Return the checkpoint of a model; ``dtype`` is that of its floating point tensors."""
        state = {
            name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
            for name, tensor in hf_model.state_dict().items()
        }
        # One tensor for both of tied weights, as in the model.
        firsts: dict[int, str] = {}
        for name, parameter in hf_model.named_parameters(remove_duplicate=False):
            first = firsts.setdefault(id(parameter), name)
            if name in state and first in state:
                state[name] = state[first]
        return cls(
            kind=type(hf_model),
            config=copy.deepcopy(hf_model.config),
            generation_config=copy.deepcopy(getattr(hf_model, "generation_config", None)),
            state=state,
        )

    def replace(self, name: str, value: Tensor, change: str) -> None:
        """Put another tensor in the place of one, in the same dtype and on the same device."""
        self.state[name] = value.to(self.state[name])
        self.changes[name] = change

    def shift(self, name: str, delta: Float[Tensor, " d"], change: str) -> None:
        """Add a vector to a tensor, to each of its rows if it has several."""
        tensor = self.state[name]
        # In float64, so that the sum is rounded once.
        self.replace(name, tensor.double() + delta.double().to(tensor.device), change)

    def untie(self, hf_model: Any) -> None:
        """Give the unembedding a copy of the embedding's table, if both are one."""
        head = hf_model.get_output_embeddings()
        table = hf_model.get_input_embeddings().weight
        if head is None or head.weight is not table:
            return
        names = [n for n, p in hf_model.named_parameters(remove_duplicate=False) if p is table]
        for name in names:
            self.state[name] = self.state[name].clone()
        text_config = self.config.get_text_config()
        for config in (self.config, text_config):
            config.tie_word_embeddings = False
        self.changes["config.tie_word_embeddings"] = (
            "false: the unembedding keeps the unchanged table"
        )

    def skeleton(self) -> Any:
        """Return a model of this class and config without memory."""
        with torch.device("meta"):
            return self.kind(copy.deepcopy(self.config))

    def save(self, folder: Path) -> None:
        """Write config, weights and generation config as an ordinary Hugging Face folder.

        Raises:
            ValueError: the class has tensors that this checkpoint lacks.
        """
        model = self.skeleton()
        self._fill_biases(model)
        model.load_state_dict(self.state, strict=True, assign=True)
        model.tie_weights()
        if self.generation_config is not None:
            model.generation_config = copy.deepcopy(self.generation_config)
        # A path of this machine, which says nothing elsewhere.
        model.config._name_or_path = ""
        model.save_pretrained(folder)

    def add_zero_biases(self) -> list[str]:
        """Add zeros for the biases that the config asks for, and return their names."""
        return self._fill_biases(self.skeleton())

    def _fill_biases(self, model: nn.Module) -> list[str]:
        wanted = model.state_dict()
        missing = [name for name in wanted if name not in self.state]
        for name in missing:
            weight = self.state.get(f"{name.removesuffix('bias')}weight")
            if not name.endswith(".bias") or weight is None:
                raise ValueError(f"{type(model).__name__} has {name!r}, which the model lacks")
            self.state[name] = torch.zeros(
                wanted[name].shape, dtype=weight.dtype, device=weight.device
            )
        return missing
