"""Uploads of artefacts to the Hugging Face hub, with a model card.

    push_to_hub(vector, "user/sentiment", license="apache-2.0", evaluation=result)
    probe.push_to_hub("user/honesty", private=True)         # the same, as a method

Problem: what is uploaded must be whole, must say what it is, and must load again. Mechanism: the
files are written by the artefact's own ``save`` into a temporary folder together with the card
(`lrt_lens.serving._cards`), and are uploaded as one commit, so that a repository never holds half
of them. What cannot succeed (a wrong id, no token) is refused before anything is written or sent.

Limits: earlier files of the repository with other names stay there.
"""

import tempfile
from pathlib import Path
from typing import Any

from lrt_lens._hub import refuse_upload, uploaded
from lrt_lens._settings import resolve, takes
from lrt_lens.serving._cards import CardSettings, card_of, sharing_of


@takes(CardSettings)
def push_to_hub(
    artefact: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    upload: dict[str, Any] | None = None,
    settings: CardSettings | None = None,
    **options: Any,
) -> str:
    """Upload an artefact with its model card as one commit, and return the address of the commit.

    Args:
        artefact: a stitch, steering vector, linear probe, concept map, or SAE of SAELens.
        repo_id: id of the repository, ``owner/name``; it is created if it does not exist.
        private: whether a new repository is private; None is the default of its owner.
        token: token of the hub; None takes that of ``hf auth login`` or of ``HF_TOKEN``.
        revision: branch, which is created if it does not exist; None is the default branch.
        commit_message: title of the commit.
        upload: further arguments of `huggingface_hub.HfApi.upload_folder`, such as ``create_pr``.
        settings: what is added to the card; see `CardSettings`.
        options: fields of `CardSettings` as keywords, such as ``license="mit"``.

    Raises:
        TypeError: the artefact is of another class.
        HubError: the id, the token or the right to write is wrong, or the hub cannot be reached.
    """
    sharing = sharing_of(artefact)
    added = resolve(CardSettings, settings, options)
    refuse_upload(repo_id, token)
    card = card_of(sharing, repo_id, added)
    with tempfile.TemporaryDirectory() as name:
        # Not the temporary folder itself, which a writer may exchange for another.
        folder = Path(name) / "files"
        folder.mkdir()
        sharing.write(folder)
        (folder / "README.md").write_bytes(card.encode("utf-8", errors="replace"))
        return uploaded(
            folder,
            repo_id,
            message=commit_message or f"Upload {sharing.what} with lrt_lens",
            private=private,
            token=token,
            revision=revision,
            **(upload or {}),
        )
