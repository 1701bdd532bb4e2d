"""Carry what is learnt inside a small language model to a large one, and find out whether it still
works there.

    import lrt_lens as lrt

    pair = lrt.demo_pair() grid = lrt.fit_stitches(pair, lrt.demo_documents()) stitch =
    grid.best(source="blocks.2.hook_resid_post") vector =
    lrt.SteeringVector.mean_difference(pair.source, lrt.demo_contrast("sentiment"),
    at=stitch.source_hook) moved = stitch.transfer(vector)

This module is the whole public surface. Names load when they are first used: importing it loads
neither torch nor any model code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrt_lens._late import provide

__version__ = "0.1.0"

_HOME = {
    "HookedModel": "lrt_lens.models._hooked_model",
    "ModelPair": "lrt_lens.models._pair",
    "demo_pair": "lrt_lens.bundled._models",
    "demo_documents": "lrt_lens.bundled._texts",
    "demo_contrast": "lrt_lens.bundled._texts",
    "demo_items": "lrt_lens.bundled._texts",
    "demo_neutral": "lrt_lens.bundled._texts",
    "ContrastSet": "lrt_lens.data._contrast",
    "ChoiceItems": "lrt_lens.data._contrast",
    "CrossMoments": "lrt_lens.moments._cross_moments",
    "harvest": "lrt_lens.moments._harvesting",
    "fit_stitches": "lrt_lens.moments._harvesting",
    "Ridge": "lrt_lens.stitching.solvers._ridge",
    "LeastSquares": "lrt_lens.stitching.solvers._least_squares",
    "ReducedRank": "lrt_lens.stitching.solvers._reduced_rank",
    "Procrustes": "lrt_lens.stitching.solvers._procrustes",
    "AxisScaling": "lrt_lens.stitching.solvers._coordinates",
    "Translation": "lrt_lens.stitching.solvers._coordinates",
    "Mean": "lrt_lens.stitching.solvers._coordinates",
    "Identity": "lrt_lens.stitching.solvers._coordinates",
    "TwoWay": "lrt_lens.stitching.solvers._two_way",
    "ManyToOne": "lrt_lens.stitching.solvers._many_to_one",
    "layer_contributions": "lrt_lens.stitching.solvers._many_to_one",
    "FixedMaps": "lrt_lens.stitching.solvers._fixed",
    "shared_embedding_maps": "lrt_lens.stitching.solvers._shared_embeddings",
    "SolverComparison": "lrt_lens.stitching._comparison",
    "Fidelity": "lrt_lens.stitching._fidelity",
    "similarities": "lrt_lens.stitching._similarity",
    "MapDiagnostics": "lrt_lens.stitching._diagnostics",
    "map_diagnostics": "lrt_lens.stitching._diagnostics",
    "score_intervals": "lrt_lens.stitching._diagnostics",
    "StitchLoss": "lrt_lens.stitching._stitch_loss",
    "evaluate_stitch_loss": "lrt_lens.stitching._stitch_loss",
    "token_identity_map": "lrt_lens.stitching._stitch_loss",
    "steering_agreement": "lrt_lens.adapters.vectors._agreement",
    "merge_shards": "lrt_lens.moments._scale_out",
    "remove_checkpoints": "lrt_lens.moments._checkpoint",
    "ModelShape": "lrt_lens.moments._plan",
    "HarvestPlan": "lrt_lens.moments._plan",
    "plan_harvest": "lrt_lens.moments._plan",
    "ActivationCache": "lrt_lens.moments.cache._activation_cache",
    "AdamFit": "lrt_lens.stitching.recipes._adam",
    "Mlp": "lrt_lens.stitching.recipes._mlp",
    "RowsInMemory": "lrt_lens.stitching.recipes._rows",
    "AffineMap": "lrt_lens.stitching._affine",
    "Stitch": "lrt_lens.stitching._stitch",
    "StitchGrid": "lrt_lens.stitching._grid",
    "SteeringVector": "lrt_lens.adapters.vectors._steering_vector",
    "Calibration": "lrt_lens.adapters.vectors._calibration",
    "calibrate_scale": "lrt_lens.adapters.vectors._calibration",
    "predict_scale": "lrt_lens.adapters.vectors._scale_prediction",
    "Intervention": "lrt_lens.adapters.vectors._intervention",
    "SteeringEvaluation": "lrt_lens.adapters.vectors._evaluation",
    "evaluate_steering": "lrt_lens.adapters.vectors._evaluation",
    "ComparedContinuations": "lrt_lens.adapters.vectors._compared_continuations",
    "compare_continuations": "lrt_lens.adapters.vectors._compared_continuations",
    "explore": "lrt_lens.exploration._explore",
    "LinearProbe": "lrt_lens.adapters.probes._linear_probe",
    "ProbeEvaluation": "lrt_lens.adapters.probes._evaluation",
    "evaluate_probe": "lrt_lens.adapters.probes._evaluation",
    "Anchors": "lrt_lens.baselines._anchors",
    "anchor_stitch": "lrt_lens.baselines._anchors",
    "RelativeRepresentation": "lrt_lens.baselines._anchor_methods",
    "AnchorProjection": "lrt_lens.baselines._anchor_methods",
    "AnchorProcrustes": "lrt_lens.baselines._anchor_methods",
    "AnchorLinear": "lrt_lens.baselines._anchor_methods",
    "AnchorRidge": "lrt_lens.baselines._anchor_methods",
    "embedding_stitch": "lrt_lens.baselines._shared_vocabulary",
    "MiniVec2Vec": "lrt_lens.baselines._unpaired",
    "unpaired_stitch": "lrt_lens.baselines._unpaired",
    "FamilyBaselines": "lrt_lens.baselines._evaluation",
    "evaluate_family_baselines": "lrt_lens.baselines._evaluation",
    "fitting_texts": "lrt_lens.baselines._evaluation",
    "SparseProbeEvaluation": "lrt_lens.adapters.saes._sparse_probing",
    "evaluate_sparse_probes": "lrt_lens.adapters.saes._sparse_probing",
    "FeatureEvaluation": "lrt_lens.adapters.saes.features._result",
    "evaluate_features": "lrt_lens.adapters.saes.features._evaluate",
    "SAEEvaluation": "lrt_lens.adapters.saes._evaluation",
    "evaluate_sae": "lrt_lens.adapters.saes._evaluation",
    "demo_sae": "lrt_lens.bundled._saes",
    "demo_texts": "lrt_lens.bundled._texts",
    "train_sae": "lrt_lens.adapters.saes._training",
    "CodeMap": "lrt_lens.adapters.saes.codes._code_map",
    "fit_code_map": "lrt_lens.adapters.saes.codes._code_map",
    "CodeMapEvaluation": "lrt_lens.adapters.saes.codes._evaluation",
    "evaluate_code_map": "lrt_lens.adapters.saes.codes._evaluation",
    "FeatureMatches": "lrt_lens.adapters.saes._feature_matching",
    "match_features": "lrt_lens.adapters.saes._feature_matching",
    "DecoderGeometry": "lrt_lens.adapters.saes._decoder_geometry",
    "decoder_geometry": "lrt_lens.adapters.saes._decoder_geometry",
    "SAETraining": "lrt_lens.adapters.saes._training",
    "SAERows": "lrt_lens.adapters.saes._rows",
    "SAEInitialisation": "lrt_lens.adapters.saes._initialisation",
    "study_sae_initialisation": "lrt_lens.adapters.saes._initialisation",
    "SAEScaling": "lrt_lens.adapters.saes._scaling",
    "study_sae_scaling": "lrt_lens.adapters.saes._scaling",
    "behaviour_items": "lrt_lens.data._behaviours",
    "answer_contrast": "lrt_lens.data._behaviours",
    "PropensityEvaluation": "lrt_lens.adapters.vectors._propensity",
    "evaluate_propensity": "lrt_lens.adapters.vectors._propensity",
    "ClampEvaluation": "lrt_lens.adapters.vectors._clamping",
    "evaluate_clamping": "lrt_lens.adapters.vectors._clamping",
    "AblationEvaluation": "lrt_lens.adapters.vectors._ablation",
    "evaluate_ablation": "lrt_lens.adapters.vectors._ablation",
    "ablation_hooks": "lrt_lens.adapters.vectors._ablation",
    "unit_norm_decoder": "lrt_lens.adapters.saes._unit_norm",
    "load_sparsify": "lrt_lens.adapters.saes._sparsify",
    "ConceptMap": "lrt_lens.adapters.concepts._concept_map",
    "apply_together": "lrt_lens.adapters.concepts._concept_map",
    "Concept": "lrt_lens.adapters.concepts._evaluation",
    "ConceptTransfer": "lrt_lens.adapters.concepts._evaluation",
    "evaluate_concept_transfer": "lrt_lens.adapters.concepts._evaluation",
    "ConceptInterpolation": "lrt_lens.adapters.concepts._concept_interpolation",
    "evaluate_interpolation": "lrt_lens.adapters.concepts._concept_interpolation",
    "Alignment": "lrt_lens.data._alignment",
    "Aligner": "lrt_lens.data._alignment",
    "align": "lrt_lens.data._alignment",
    "aligned_share": "lrt_lens.data._alignment",
    "with_fewer_merges": "lrt_lens.data._retokenizing",
    "token_boundaries": "lrt_lens.data._boundaries",
    "HookPointError": "lrt_lens.errors",
    "MismatchError": "lrt_lens.errors",
    "FileFormatError": "lrt_lens.errors",
    "NonFiniteError": "lrt_lens.errors",
    "TooFewDocumentsError": "lrt_lens.errors",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll] (names load lazily, from _HOME)


provide(
    {
        "CrossMoments.fit": "lrt_lens.stitching._fit:fit_grid",
        "StitchGrid.compare": "lrt_lens.stitching._comparison:compare_solvers",
        "Stitch.transfer sae_lens": "lrt_lens.adapters.saes._transfer:transfer_sae",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lrt_lens' has no attribute {name!r}; it has {sorted(_HOME)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from lrt_lens.adapters.concepts._concept_interpolation import (
        ConceptInterpolation,
        evaluate_interpolation,
    )
    from lrt_lens.adapters.concepts._concept_map import ConceptMap, apply_together
    from lrt_lens.adapters.concepts._evaluation import (
        Concept,
        ConceptTransfer,
        evaluate_concept_transfer,
    )
    from lrt_lens.adapters.probes._evaluation import ProbeEvaluation, evaluate_probe
    from lrt_lens.adapters.probes._linear_probe import LinearProbe
    from lrt_lens.adapters.saes._decoder_geometry import DecoderGeometry, decoder_geometry
    from lrt_lens.adapters.saes._evaluation import SAEEvaluation, evaluate_sae
    from lrt_lens.adapters.saes._feature_matching import FeatureMatches, match_features
    from lrt_lens.adapters.saes._initialisation import SAEInitialisation, study_sae_initialisation
    from lrt_lens.adapters.saes._rows import SAERows
    from lrt_lens.adapters.saes._scaling import SAEScaling, study_sae_scaling
    from lrt_lens.adapters.saes._sparse_probing import SparseProbeEvaluation, evaluate_sparse_probes
    from lrt_lens.adapters.saes._sparsify import load_sparsify
    from lrt_lens.adapters.saes._training import SAETraining, train_sae
    from lrt_lens.adapters.saes._unit_norm import unit_norm_decoder
    from lrt_lens.adapters.saes.codes._code_map import CodeMap, fit_code_map
    from lrt_lens.adapters.saes.codes._evaluation import CodeMapEvaluation, evaluate_code_map
    from lrt_lens.adapters.saes.features._evaluate import evaluate_features
    from lrt_lens.adapters.saes.features._result import FeatureEvaluation
    from lrt_lens.adapters.vectors._ablation import (
        AblationEvaluation,
        ablation_hooks,
        evaluate_ablation,
    )
    from lrt_lens.adapters.vectors._agreement import steering_agreement
    from lrt_lens.adapters.vectors._calibration import Calibration, calibrate_scale
    from lrt_lens.adapters.vectors._clamping import ClampEvaluation, evaluate_clamping
    from lrt_lens.adapters.vectors._compared_continuations import (
        ComparedContinuations,
        compare_continuations,
    )
    from lrt_lens.adapters.vectors._evaluation import SteeringEvaluation, evaluate_steering
    from lrt_lens.adapters.vectors._intervention import Intervention
    from lrt_lens.adapters.vectors._propensity import PropensityEvaluation, evaluate_propensity
    from lrt_lens.adapters.vectors._scale_prediction import predict_scale
    from lrt_lens.adapters.vectors._steering_vector import SteeringVector
    from lrt_lens.baselines._anchor_methods import (
        AnchorLinear,
        AnchorProcrustes,
        AnchorProjection,
        AnchorRidge,
        RelativeRepresentation,
    )
    from lrt_lens.baselines._anchors import Anchors, anchor_stitch
    from lrt_lens.baselines._evaluation import (
        FamilyBaselines,
        evaluate_family_baselines,
        fitting_texts,
    )
    from lrt_lens.baselines._shared_vocabulary import embedding_stitch
    from lrt_lens.baselines._unpaired import MiniVec2Vec, unpaired_stitch
    from lrt_lens.bundled._models import demo_pair
    from lrt_lens.bundled._saes import demo_sae
    from lrt_lens.bundled._texts import (
        demo_contrast,
        demo_documents,
        demo_items,
        demo_neutral,
        demo_texts,
    )
    from lrt_lens.data._alignment import Aligner, Alignment, align, aligned_share
    from lrt_lens.data._behaviours import answer_contrast, behaviour_items
    from lrt_lens.data._boundaries import token_boundaries
    from lrt_lens.data._contrast import ChoiceItems, ContrastSet
    from lrt_lens.data._retokenizing import with_fewer_merges
    from lrt_lens.errors import (
        FileFormatError,
        HookPointError,
        MismatchError,
        NonFiniteError,
        TooFewDocumentsError,
    )
    from lrt_lens.exploration._explore import explore
    from lrt_lens.models._hooked_model import HookedModel
    from lrt_lens.models._pair import ModelPair
    from lrt_lens.moments._checkpoint import remove_checkpoints
    from lrt_lens.moments._cross_moments import CrossMoments
    from lrt_lens.moments._harvesting import harvest
    from lrt_lens.moments._plan import HarvestPlan, ModelShape, plan_harvest
    from lrt_lens.moments._scale_out import merge_shards
    from lrt_lens.moments.cache._activation_cache import ActivationCache
    from lrt_lens.stitching._affine import AffineMap
    from lrt_lens.stitching._comparison import SolverComparison
    from lrt_lens.stitching._diagnostics import MapDiagnostics, map_diagnostics, score_intervals
    from lrt_lens.stitching._fidelity import Fidelity
    from lrt_lens.stitching._fit import fit_stitches
    from lrt_lens.stitching._grid import StitchGrid
    from lrt_lens.stitching._similarity import similarities
    from lrt_lens.stitching._stitch import Stitch
    from lrt_lens.stitching._stitch_loss import StitchLoss, evaluate_stitch_loss, token_identity_map
    from lrt_lens.stitching.recipes._adam import AdamFit
    from lrt_lens.stitching.recipes._mlp import Mlp
    from lrt_lens.stitching.recipes._rows import RowsInMemory
    from lrt_lens.stitching.solvers._coordinates import AxisScaling, Identity, Mean, Translation
    from lrt_lens.stitching.solvers._fixed import FixedMaps
    from lrt_lens.stitching.solvers._least_squares import LeastSquares
    from lrt_lens.stitching.solvers._many_to_one import ManyToOne, layer_contributions
    from lrt_lens.stitching.solvers._procrustes import Procrustes
    from lrt_lens.stitching.solvers._reduced_rank import ReducedRank
    from lrt_lens.stitching.solvers._ridge import Ridge
    from lrt_lens.stitching.solvers._shared_embeddings import shared_embedding_maps
    from lrt_lens.stitching.solvers._two_way import TwoWay
