"""Connector of vLLM that writes hidden states on a CPU; ``run_vllm.py`` uses it there.

The stock connector copies to pinned memory on a CUDA stream. This one copies at once.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOptionalCall=false, reportGeneralTypeIssues=false

from pathlib import Path

import torch

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
        ExampleHiddenStatesConnector,
        extract_from_kv_cache,
    )
except ImportError:  # read by tools that have no vLLM
    ExampleHiddenStatesConnector, extract_from_kv_cache = object, None


class Finished:
    """Stands for a CUDA event: the copy is done."""

    def query(self):
        """Return True."""
        return True

    def synchronize(self):
        """Do nothing."""


class CpuHiddenStatesConnector(ExampleHiddenStatesConnector):
    """`ExampleHiddenStatesConnector` without CUDA."""

    def _submit_async_write(self, pending):
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        offsets = torch.arange(self._block_size)
        slots = (offsets[None] + blocks[:, None] * self._block_size).flatten()
        states = extract_from_kv_cache(self._kv_cache, slots, pending.token_ids.shape[0])
        tensors = {"hidden_states": states.clone(), "token_ids": pending.token_ids.clone()}
        Path(pending.filename).parent.mkdir(parents=True, exist_ok=True)
        lock, event = self._lock_fds.pop(pending.req_id, None), Finished()
        future = self._executor.submit(self._write_tensors, tensors, event, pending.filename, lock)
        self._req_copy_events[pending.req_id] = event
        self._req_futures[pending.req_id] = future
        future.add_done_callback(lambda done: self._on_write_done(pending.req_id, done))
