r"""Transfer what is learnt inside a small language model to a large one, and test it there.

    import lrt_lens as lrt

    pair = lrt.demo_pair()
    documents = lrt.demo_documents()
    grid = lrt.fit_stitches(pair, documents, n_tokens=100_000, progress=False)
    stitch = grid.best(source=2)
    contrast = lrt.demo_contrast("sentiment")
    vector = lrt.SteeringVector.mean_difference(pair.source, contrast, at=stitch.source_hook)
    transferred = stitch.transfer(vector)
    strength = lrt.calibrate_scale(pair.target, transferred, lrt.demo_neutral(), damage=0.1)
    with transferred.apply(pair.target, scale=strength.scale):
        text = pair.target.generate("This film was", max_new_tokens=24)
    print(stitch, transferred, sep="\n")
    print(f"scale {strength.scale:.2f}", f"This film was{text}", sep="\n")

The names that most users need are here; the packages hold the others, and ``lrt_lens.NAME`` finds
those too. A name is loaded when it is first used: importing this package loads neither torch nor
any model code. The lists of public names are the files ``__init__.pyi``.
"""

import difflib
from importlib import import_module
from typing import Any

import lazy_loader

from lrt_lens._late import provide

__version__ = "0.1.0"

_PACKAGES = (
    "models",
    "data",
    "moments",
    "moments.states",
    "stitching",
    "stitching.solvers",
    "adapters.vectors",
    "adapters.probes",
    "adapters.labels",
    "adapters.saes",
    "adapters.concepts",
    "adapters.lenses",
    "adapters.layers",
    "diffing",
    "updates",
    "domains",
    "serving",
    "baselines",
    "bundled",
    "statistics",
    "figures",
    "report",
    "exploration",
    "reproduction",
    "demo",
    "errors",
)
"""Packages in which `lrt_lens.NAME` is searched, in this order, if this package does not list
it."""

# Methods of lower packages whose functions live in higher ones; see `lrt_lens/_late.py`.
provide(
    {
        "CrossMoments.fit": "lrt_lens.stitching:fit_grid",
        "CrossMoments.from_activations": "lrt_lens.moments._from_activations:"
        "moments_of_activations",
        "CrossMoments.update": "lrt_lens.moments._from_activations:add_activations",
        "ModelDiff.read": "lrt_lens.diffing:read_diff",
        "StitchGrid.compare": "lrt_lens.stitching:compare_solvers",
        "Stitch.transfer SteeringVector": "lrt_lens.adapters.vectors._transfer:transfer_vector",
        "Stitch.transfer SteeringSubspace": "lrt_lens.adapters.vectors._subspace_transfer:"
        "transfer_subspace",
        "Stitch.transfer JacobianLens": "lrt_lens.adapters.lenses._lens:transfer_foreign_lens",
        "Stitch.transfer TunedLens": "lrt_lens.adapters.lenses._lens:transfer_foreign_lens",
        "Stitch.transfer sae_lens": "lrt_lens.adapters.saes:transfer_sae",
        "SteeringVector.load": "lrt_lens.serving:import_vector",
        "SteeringVector.export": "lrt_lens.serving:export_vectors",
        "SteeringVector.bake": "lrt_lens.serving:bake_vector",
        "SteeringVector.push_to_hub": "lrt_lens.serving:push_to_hub",
        "Stitch.push_to_hub": "lrt_lens.serving:push_to_hub",
        "ConceptMap.push_to_hub": "lrt_lens.serving:push_to_hub",
        "LinearProbe.export": "lrt_lens.serving:export_probe",
        "LinearProbe.load": "lrt_lens.serving:load_probe",
        "LinearProbe.push_to_hub": "lrt_lens.serving:push_to_hub",
        "LinearProbe.to_sklearn": "lrt_lens.serving:probe_to_sklearn",
    }
)

_own, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _own(name)
    known = list(__all__)
    # Private names are asked for by tools (copy, doctest); a search would import every package.
    for package in _PACKAGES if not name.startswith("_") else ():
        module = import_module(f"{__name__}.{package}")
        if name in module.__all__:
            # As for the names of the stub, the next use finds the value without a search.
            return globals().setdefault(name, getattr(module, name))
        known += module.__all__
    near = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see dir(lrt_lens)"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
