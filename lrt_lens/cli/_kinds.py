"""Recognition of files and folders: ours, and those of other programs.

    kind_at(Path("stitches/stitch"))      # "stitch"
    artefact_at("learnt")                 # Path("learnt/vector.safetensors")

Problem: a command takes vectors, probes and SAEs, in our files and in those of others, and the
user should not have to say which. Mechanism: a folder is known by a file in it, a file by its first
bytes and the schema in its header.

Limits: a file of a newer version is known, but not read.
"""

import json
from pathlib import Path

IN_FOLDERS = {
    "states.json": "hidden states",
    "stitch_config.json": "stitch",
    "lrt_lens_bake.json": "baked model",
    "probe.json": "exported probe",
    "cfg.json": "SAE",
    "directions.safetensors": "foreign vector",
    "manifest.json": "activation cache",
    "run.safetensors": "checkpoint",
    "config.json": "model",
    "results.json": "run",
    "run.toml": "run",
}
"""Kind of a folder, by the first of these files that is in it."""
BY_SCHEMA = {
    "moments": "moments",
    "survey": "survey",
    "vector": "vector",
    "probe": "probe",
    "probe-export": "exported probe",
    "concept_map": "concept map",
    "codes": "code map",
    "checkpoint": "checkpoint",
    "stitch": "part of a stitch",
    "results": "results",
    "export": "export record",
    "bake": "record of a baked model",
    "cache": "part of an activation cache",
}
"""Kind of a file of ours, by its schema without the start and the version."""
WRITTEN = "# Written by `lrt-lens"
"""Start of every file of options that a run wrote."""
_OURS = "lrt_lens."
"""Start of every schema of ours."""
_PARTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files that are not documents either, although they are JSON."""
_ALONE = ("results.json", "run.toml", "directions.safetensors", "probe.json")
"""Files by which a folder is known, and which have facts of their own."""
_LARGEST_RECORD = 10**8
"""Most bytes of a file of ours in JSON; what is larger holds documents."""
ARTEFACTS = ("vector.safetensors", "probe.safetensors", "sae")
"""Names of the artefacts that the folder of a run may hold."""


def kind_at(path: Path) -> str:
    """Return what a file or folder is, in a few words.

    Raises:
        ValueError: there is no such path, or it is nothing that is known.
    """
    if path.is_dir():
        for name, kind in IN_FOLDERS.items():
            if (path / name).is_file():
                return kind
        if any(path.glob("moments-*-of-*.safetensors")):
            return "shards"
        if any(path.glob("checkpoint*/run.safetensors")):
            return "interrupted run"
        if _has_documents(path):
            return "documents"
        held = sorted(one.name for one in path.iterdir() if not one.name.startswith("."))
        if not held:
            raise _unknown(path, "an empty folder")
        more = ", …" if len(held) > 6 else ""
        raise _unknown(path, f"a folder of no known kind (it holds {', '.join(held[:6])}{more})")
    if not path.is_file():
        raise ValueError(f"no file or folder at {str(path)!r}; check the path")
    return _kind_of_file(path)


def _kind_of_file(path: Path) -> str:
    from lrt_lens.adapters.vectors._served_file import kind_of

    kind = kind_of(path)
    if kind == "safetensors":
        return _of_schema(path, _safetensors_schema(path)) or _foreign(path)
    if kind == "gguf":
        return "foreign vector" if _is_control_vector(path) else "GGUF model"
    if kind in ("numpy", "torch"):
        return _foreign(path)
    if path.name in (*_PARTS, *(name for name in IN_FOLDERS if name not in _ALONE)):
        whole = str(path.parent)
        raise _unknown(path, f"a part of a folder (lrt-lens inspect {whole} describes it)")
    if kind == "json":
        return _of_schema(path, _json_schema(path)) or _document_or_foreign(path)
    if words_of_options(path):
        return "options of a run"
    return _document_or_foreign(path)


def words_of_options(path: Path) -> str:
    """Return the words of the command that wrote a file of options; empty if none did."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(200)
    if not first.startswith(WRITTEN):
        return ""
    return first.removeprefix(WRITTEN).partition("`")[0].strip()


def _of_schema(path: Path, schema: str) -> str:
    """Return the kind of a file of ours; empty if it is not ours."""
    if not schema.startswith(_OURS):
        return ""
    name = schema.removeprefix(_OURS).partition("/")[0]
    if name not in BY_SCHEMA:
        raise _unknown(path, f"a file of the schema {schema!r}")
    return BY_SCHEMA[name]


def _safetensors_schema(path: Path) -> str:
    from lrt_lens._tensor_files import mapped_tensors

    return mapped_tensors(path, None).metadata.get("schema_version", "")


def _json_schema(path: Path) -> str:
    if path.stat().st_size > _LARGEST_RECORD:
        return ""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:  # several lines of JSON are documents
        return ""
    return str(content.get("schema_version", "")) if isinstance(content, dict) else ""


def _is_control_vector(path: Path) -> bool:
    # The architecture is the first key, near the start of the file.
    with path.open("rb") as file:
        return b"controlvector" in file.read(4096)


def _document_or_foreign(path: Path) -> str:
    from lrt_lens.data._document_files import kind_of

    if kind_of(path) not in (None, ".json"):
        return "documents"
    try:
        return _foreign(path)
    except ValueError:
        if kind_of(path) == ".json":
            return "documents"
        raise


def _foreign(path: Path) -> str:
    from lrt_lens.errors import FileFormatError
    from lrt_lens.serving import format_of

    try:
        format_of(path)
    except FileFormatError as error:
        raise _unknown(path, "a file of no known kind") from error
    return "foreign vector"


def _has_documents(folder: Path) -> bool:
    """Return whether all files of a folder, except hidden ones, are documents of one kind."""
    from lrt_lens.data._document_files import kind_of

    files = [one for one in folder.iterdir() if not one.name.startswith(".")]
    kinds = {kind_of(one) if one.is_file() else None for one in files}
    return len(kinds) == 1 and None not in kinds


def _unknown(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is {found}; expected a file or folder that lrt-lens wrote, a vector of "
        "another program, a folder of SAELens or of a Hugging Face model, or documents"
    )


# ------------------------------------------------------------------------------- folders of runs


def stitch_at(path: str) -> str:
    """Return the stitch in the folder of a run of `lrt-lens fit`; any other path as it is."""
    inner = Path(path) / "stitch"
    has_own = (Path(path) / "stitch_config.json").is_file()
    return str(inner) if inner.is_dir() and not has_own else path


def artefact_at(path: str) -> Path:
    """Return the artefact in the folder of a run; any other path as it is.

    Raises:
        ValueError: the folder holds several.
    """
    folder = Path(path)
    if not folder.is_dir() or kind_at(folder) != "run":
        return folder
    held = [folder / name for name in ARTEFACTS if (folder / name).exists()]
    if len(held) > 1:
        raise ValueError(
            f"{path!r} holds {[one.name for one in held]}; give the path of one of them"
        )
    return held[0] if held else folder
