"""Rows of labelled texts, read once per model for all probes that read by the same rules.

    rows = SharedRows(probes)
    rows.of(probe, model, texts)        # [text, d], float64

Problem: a dozen probes at several hook points read the same texts, and a pass over them costs more
than everything else. Mechanism: the first request of a text reads it at the hook points of all
probes with the same rules (position, masked tokens, truncation); later ones find it, also within
another list of texts.

Limits: all rows are held in memory. A probe behind a map that is applied before the pooling reads
for itself.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.models._hooked_model import HookedModel
from lrt_lens.models._reading import read_at_hooks, row_rule


class SharedRows:
    """Rows of texts by model, rules and hook point, each read once."""

    def __init__(self, probes: Sequence[LinearProbe]) -> None:
        """Note the hook points at which the ``probes`` read, by their rules."""
        self._hooks: dict[tuple[Any, ...], set[str]] = {}
        for probe in probes:
            self._hooks.setdefault(_rules(probe), set()).add(probe.hook)
        self._rows: dict[tuple[Any, ...], dict[str, dict[str, Tensor]]] = {}

    def of(self, probe: LinearProbe, model: HookedModel, texts: Sequence[str]) -> Tensor:
        """Return the rows [text, d] that the probe reads of the texts, in float64.

        Raises:
            MismatchError: the probe belongs to another model.
        """
        rules = _rules(probe)
        alone = probe.before is not None or probe.hook not in self._hooks.get(rules, ())
        if alone or probe.read == "every":
            return probe.rows(model, texts)[0]
        probe.refuse_other_model(model)
        # Two revisions may have one name; the caller holds both while it reads.
        known = self._rows.setdefault((id(model), *rules), {})
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            read = read_at_hooks(
                model,
                missing,
                sorted(self._hooks[rules]),
                probe.read,
                skip_first=probe.skip_first,
                short_texts=row_rule(probe.short_texts),
                truncation=probe.truncation,
            )
            for number, text in enumerate(missing):
                known[text] = {hook: rows[number] for hook, rows in read.items()}
        return torch.stack([known[text][probe.hook] for text in texts]).double()


def _rules(probe: LinearProbe) -> tuple[Any, ...]:
    return probe.read, probe.skip_first, probe.short_texts, probe.truncation
