"""The SAEs of the bundled models: `demo_sae("small")`, `demo_sae("large")`.

    sae = demo_sae("small")
    transferred = stitch.transfer(sae)

Problem: the transfer of SAEs must be shown without training one. Mechanism: one trained SAE per
model ships with the package.

Limits: one hook point per model; sae-lens must be installed.
"""

from pathlib import Path
from typing import Any

from lrt_lens.bundled._models import DEMO_FOLDER

DEMO_SAES = DEMO_FOLDER / "saes"
"""Folder of the bundled SAEs, one folder per model."""


def demo_sae(member: str = "small", folder: Path = DEMO_SAES) -> Any:
    """Return a bundled SAE as SAELens loads it, in float32 on the CPU.

    ``"small"`` reads `blocks.2.hook_resid_post` of the small model, ``"large"``
    `blocks.3.hook_resid_post` of the large one. Both are TopK SAEs with 1,024 features, 32 of them
    active per token. The ``README.md`` next to the weights describes them.

    Raises:
        ValueError: there is no such SAE; the message lists those in ``folder``.
    """
    if not (folder / member / "cfg.json").exists():
        members = sorted(path.parent.name for path in folder.glob("*/cfg.json"))
        raise ValueError(f"{member!r} is no bundled SAE; choose from {members}")
    # Imported here because sae-lens is optional and takes seconds to import.
    from sae_lens import SAE

    return (
        SAE.load_from_disk(folder / member, device="cpu", dtype="float32")
        .eval()
        .requires_grad_(requires_grad=False)
    )
