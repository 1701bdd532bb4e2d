"""Folders of the Hugging Face hub, on disk.

    folder = downloaded("user/my-stitch", "stitch", ["*.json"], revision="main")

Problem: a repository that does not exist, a wrong name and a missing connection are different
errors of the hub's library. Mechanism: all of them become one that names the repository and the
remedy.

Limits: what is downloaded is checked by whoever reads it.
"""

from pathlib import Path
from typing import Any

from lrt_lens.errors import FileFormatError


def downloaded(repository: str, what: str, patterns: list[str] | None, **options: Any) -> Path:
    """Return the local folder of a repository, with the files of these patterns.

    Args:
        repository: its id, ``owner/name``.
        what: what it should hold, such as ``"stitch"``, for the message.
        patterns: names of the files; None takes all.
        **options: arguments of `huggingface_hub.snapshot_download`; None is left out.

    Raises:
        FileFormatError: there is no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        return Path(snapshot_download(repository, allow_patterns=patterns, **given))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileFormatError(
            f"no {what} at {repository!r}: it is neither a local folder nor a hub repository that "
            f"can be reached ({error}); check the path or the hub id"
        ) from error
