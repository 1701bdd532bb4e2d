"""Folders and files of the Hugging Face hub: downloads to the disk, uploads as one commit.

    folder = downloaded("user/my-stitch", "stitch", ["*.json"], revision="main")
    path = downloaded_file("user/my-vector", "vector.safetensors", "steering vector")
    url = uploaded(folder, "user/my-vector", message="Upload a vector")

Problem: a repository that does not exist, a wrong name, a wrong token and a missing connection are
different errors of the hub's library. Mechanism: all errors of a download become one
`FileFormatError` that names the repository and the remedy, and all errors of an upload one
`HubError`. An upload is one commit: the hub has all files of it or none.

Limits: what is downloaded is checked by whoever reads it. If an upload fails after its repository
was created, the new repository stays there, empty.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrt_lens._messages import one_line
from lrt_lens.errors import FileFormatError, HubError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]")
"""Form of the id of a repository, ``owner/name``."""


def is_hub_id(path: str | Path) -> bool:
    """Return whether a path can only be a hub id: of that form, no file's name, and not there."""
    text = str(path)
    is_file = Path(text).suffix in (".safetensors", ".json", ".gguf", ".pt")
    return bool(HUB_ID.fullmatch(text)) and not is_file and not Path(text).exists()


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

    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with _download_errors(repository, what):
        return Path(snapshot_download(repository, allow_patterns=patterns, **given))


def downloaded_file(repository: str, name: str, what: str, **options: Any) -> Path:
    """Return the local path of one file of a repository.

    Args:
        repository: its id, ``owner/name``.
        name: name of the file in the repository.
        what: what it should hold, such as ``"probe"``, for the message.
        **options: arguments of `huggingface_hub.hf_hub_download`; None is left out.

    Raises:
        FileFormatError: there is no such repository or file, or it cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with _download_errors(repository, what):
        try:
            return Path(hf_hub_download(repository, name, **given))
        except LocalEntryNotFoundError:  # no connection, which is another problem
            raise
        except EntryNotFoundError as error:
            raise FileFormatError(
                f"no {what} in {repository!r}: the repository has no file {name!r}; check the hub "
                "id and the revision"
            ) from error


@contextmanager
def _download_errors(repository: str, what: str) -> Iterator[None]:
    """Turn every error of a download into one that names the repository."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileFormatError(
            f"no {what} at {repository!r}: it is neither a local folder nor a hub repository that "
            f"can be reached ({error}); check the path or the hub id"
        ) from error


# ----------------------------------------------------------------------------------------- uploads


def refuse_upload(repository: str, token: str | bool | None) -> None:
    """Raise `HubError` if an upload cannot succeed: a wrong id, or no token.

    Nothing is sent, so that it can be asked before any file is written.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise HubError(
            f"{repository!r} is no id of a repository ({one_line(error)}); give 'owner/name'"
        ) from error
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise HubError(
            f"nothing was sent to {repository!r}, because there is no token of the hub; run "
            "`hf auth login`, set HF_TOKEN, or give token="
        )


def uploaded(
    folder: Path,
    repository: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    **options: Any,
) -> str:
    """Return the address of the commit that adds a folder's files to a repository of the hub.

    Args:
        folder: the files.
        repository: its id, ``owner/name``; it is created if it does not exist.
        message: title of the commit.
        private: whether a new repository is private; None is the default of the owner.
        token: token of the hub; None takes that of `hf auth login` or of HF_TOKEN.
        revision: branch, which is created if it does not exist; None is the default branch.
        **options: arguments of `huggingface_hub.HfApi.upload_folder`; None is left out.

    Raises:
        HubError: the id, the token or the right to write is wrong, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    refuse_upload(repository, token)
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with _upload_errors(repository):
        api = HfApi(token=token)
        whole = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(whole, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=whole, folder_path=folder, commit_message=message, revision=revision, **given
        )
    return str(commit.commit_url)


@contextmanager
def _upload_errors(repository: str) -> Iterator[None]:
    """Turn every error of an upload into one that names the repository and the remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # The library passes on the errors of its HTTP client, whose package differs between versions.
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        raise HubError(
            f"the hub did not take {repository!r} ({one_line(error)}); {_remedy(status)}"
        ) from error


def _remedy(status: int | None) -> str:
    """Return what to do after an upload was answered with an HTTP status (None: no answer)."""
    if status == 401:
        return "the token is wrong or has expired: run `hf auth login`, or give token="
    if status == 403:
        return "the token may not write there: check the owner's name and the token's permissions"
    if status == 404:
        return "there is no such owner, repository or branch: check the id and the revision"
    if status == 409:
        return "somebody else changed it meanwhile: try again"
    if status is None:
        return "nothing was committed: check the connection and HF_ENDPOINT, and try again"
    return "nothing was committed: try again later"
