"""Stitches, vectors, probes and SAEs from paths, with one error for what is none.

    load_artefact("learnt")              # SteeringVector, LinearProbe or SAELens SAE
    load_stitch("stitches")              # the stitch of a run of `lrt-lens fit`

Limits: an SAE of SAELens is read in float32 on the CPU.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrt_lens.cli._kinds import artefact_at, kind_at, stitch_at

if TYPE_CHECKING:
    from lrt_lens.adapters.probes._linear_probe import LinearProbe
    from lrt_lens.adapters.vectors._steering_vector import SteeringVector
    from lrt_lens.models._hooked_model import HookedModel
    from lrt_lens.stitching._stitch import Stitch


def load_stitch(path: str) -> "Stitch":
    """Return the stitch in a folder, in the folder of a fit, or in a hub repository."""
    from lrt_lens.stitching import Stitch

    place = Path(stitch_at(path))
    if place.exists() and (kind := kind_at(place)) != "stitch":
        raise ValueError(f"{path!r} is {_a(kind)}; expected a stitch, such as stitches/stitch")
    return Stitch.from_pretrained(str(place))


def load_artefact(
    path: str, *, at: int | str | None = None, sae_id: str | None = None, model: Any = None
) -> Any:
    """Return the vector, probe or SAE of a path; its kind is recognised from the file.

    Args:
        path: file or folder of ours, of SAELens or of a program with vectors, the folder of a run,
            or a hub id of a vector.
        at: hook point of a file of several vectors, or of a tensor alone.
        sae_id: SAE of the release of SAELens, or of the folder of several SAEs, that ``path`` is.
        model: the model of a vector.

    Raises:
        ValueError: it is something else.
    """
    if sae_id is not None:
        return load_sae(path, sae_id)
    place = artefact_at(path)
    kind = kind_at(place) if place.exists() else "vector"
    if kind in ("probe", "exported probe"):
        return load_probe(path)
    if kind == "SAE":
        return load_sae(path)
    return load_vector(path, at=at, model=model)


def load_vector(
    path: str, *, at: int | str | None = None, model: "HookedModel | None" = None
) -> "SteeringVector":
    """Return a steering vector of a file of ours, of another program, or of a hub repository."""
    from lrt_lens.adapters.vectors import SteeringVector

    place = _of_kind(path, ("vector", "foreign vector"), "a steering vector")
    return SteeringVector.load(place, at=at, model=model)


def load_probe(path: str) -> "LinearProbe":
    """Return a linear probe of a file, of an exported folder, or of a hub repository."""
    from lrt_lens.serving import load_probe as load

    place = _of_kind(path, ("probe", "exported probe"), "a linear probe")
    return load(place.parent if place.name == "probe.json" else place)


def load_sae(path: str, sae_id: str | None = None) -> Any:
    """Return an SAE of SAELens, in float32 on the CPU.

    Args:
        path: a folder of SAELens; with ``sae_id`` a release or hub repository of SAELens, or a
            folder of several SAEs.
        sae_id: name of the SAE in the release, or of its folder.

    Raises:
        ValueError: it is something else, or the release has no such SAE.
        OSError: the hub cannot be reached, and the cache has no copy.
    """
    if sae_id is not None:
        if not Path(path).is_dir():
            return _released_sae(path, sae_id)
        path = str(Path(path) / sae_id)
    place = _of_kind(path, ("SAE",), "an SAE (a folder of SAELens with cfg.json)")
    if not place.is_dir():
        raise ValueError(f"{path!r} is no folder; expected a folder of SAELens with cfg.json")
    # Imported late, because it takes seconds.
    from sae_lens import SAE

    sae = SAE.load_from_disk(place, device="cpu", dtype="float32")
    return sae.eval().requires_grad_(requires_grad=False)


def _released_sae(release: str, sae_id: str) -> Any:
    """Return an SAE of a release of SAELens, or of a hub repository in its layout."""
    # Imported late, because it takes seconds.
    from sae_lens import SAE

    try:
        sae: Any = SAE.from_pretrained(release, sae_id, device="cpu")
    except OSError as error:
        raise OSError(
            f"the SAE {sae_id!r} of {release!r} is not in the cache, and the hub has no such file "
            f"or cannot be reached ({str(error).partition('. ')[0]}); check both names and the "
            "connection, or give a local folder of SAELens (SAE.save_model writes one)"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"SAELens has no SAE {sae_id!r} of {release!r} ({error}); give the release and the id "
            "of its list of pretrained SAEs, or OWNER/NAME of a hub repository"
        ) from error
    return sae.float().eval().requires_grad_(requires_grad=False)


def _of_kind(path: str, kinds: tuple[str, ...], expected: str) -> Path:
    """Return the path of an artefact, which may be a hub id.

    Raises:
        ValueError: it is of another kind.
    """
    place = artefact_at(path)
    if place.exists() and (kind := kind_at(place)) not in kinds:
        raise ValueError(f"{str(place)!r} is {_a(kind)}; expected {expected}")
    return place


def _a(kind: str) -> str:
    """Return a kind with its article."""
    if kind in ("moments", "results", "documents", "options of a run"):
        return kind
    article = "an" if kind[0] in "aeioS" else "a"
    return f"{article} {kind}"
