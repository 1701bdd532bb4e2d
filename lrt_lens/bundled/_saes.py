"""The SAEs that travel with the bundled models: `demo_sae("small")`, `demo_sae("large")`."""

from pathlib import Path
from typing import Any

from lrt_lens.bundled._models import DEMO_FOLDER

DEMO_SAES = DEMO_FOLDER / "saes"


def demo_sae(member: str = "small", folder: Path = DEMO_SAES) -> Any:
    """A bundled SAE as SAELens loads it, float32, on the CPU; ValueError names the ones that there
    are.

    ``"small"`` reads `blocks.2.hook_resid_post` of the small model, ``"large"``
    `blocks.3.hook_resid_post` of the large one: TopK SAEs of 1,024 features, 32 active a token. Its
    card is ``README.md`` beside the weights.
    """
    if not (folder / member / "cfg.json").exists():
        raise ValueError(
            f"{member!r} is no bundled SAE; choose from {sorted(path.parent.name for path in folder.glob('*/cfg.json'))}"
        )
    from sae_lens import SAE

    return (
        SAE.load_from_disk(folder / member, device="cpu", dtype="float32")
        .eval()
        .requires_grad_(requires_grad=False)
    )
