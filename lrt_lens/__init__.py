"""Carry what is learnt inside a small language model to a large one, and find out whether it still works there.

    import lrt_lens as lrt

    pair = lrt.demo_pair()
    grid = lrt.fit_stitches(pair, lrt.demo_documents())
    stitch = grid.best(source="blocks.2.hook_resid_post")
    vector = lrt.SteeringVector.mean_difference(pair.source, lrt.demo_contrast("sentiment"), at=stitch.source_hook)
    moved = stitch.transfer(vector)

This module is the whole public surface. Names load when they are first used: importing it loads neither torch nor any model code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "HookedModel": "lrt_lens.models.hooked_model",
    "ModelPair": "lrt_lens.models.pair",
    "demo_pair": "lrt_lens.models.pair",
    "demo_documents": "lrt_lens.data.demo",
    "demo_contrast": "lrt_lens.data.demo",
    "demo_items": "lrt_lens.data.demo",
    "demo_neutral": "lrt_lens.data.demo",
    "ContrastSet": "lrt_lens.data.contrast",
    "ChoiceItems": "lrt_lens.data.contrast",
    "CrossMoments": "lrt_lens.stitching.moments",
    "harvest": "lrt_lens.stitching.harvest",
    "fit_stitches": "lrt_lens.stitching.harvest",
    "Ridge": "lrt_lens.stitching.solvers.ridge",
    "LeastSquares": "lrt_lens.stitching.solvers.least_squares",
    "ReducedRank": "lrt_lens.stitching.solvers.reduced_rank",
    "Procrustes": "lrt_lens.stitching.solvers.procrustes",
    "AxisScaling": "lrt_lens.stitching.solvers.coordinates",
    "Translation": "lrt_lens.stitching.solvers.coordinates",
    "Mean": "lrt_lens.stitching.solvers.coordinates",
    "Identity": "lrt_lens.stitching.solvers.coordinates",
    "TwoWay": "lrt_lens.stitching.solvers.two_way",
    "ManyToOne": "lrt_lens.stitching.solvers.many_to_one",
    "layer_contributions": "lrt_lens.stitching.solvers.many_to_one",
    "FixedMaps": "lrt_lens.stitching.solvers.fixed",
    "shared_embedding_maps": "lrt_lens.stitching.solvers.shared_embeddings",
    "SolverComparison": "lrt_lens.stitching.comparison",
    "Fidelity": "lrt_lens.stitching.fidelity",
    "similarities": "lrt_lens.stitching.similarity",
    "MapDiagnostics": "lrt_lens.stitching.diagnostics",
    "map_diagnostics": "lrt_lens.stitching.diagnostics",
    "score_intervals": "lrt_lens.stitching.diagnostics",
    "StitchLoss": "lrt_lens.evaluation.stitch_loss",
    "evaluate_stitch_loss": "lrt_lens.evaluation.stitch_loss",
    "token_identity_map": "lrt_lens.evaluation.stitch_loss",
    "steering_agreement": "lrt_lens.evaluation.agreement",
    "merge_shards": "lrt_lens.stitching.scale_out",
    "remove_checkpoints": "lrt_lens.stitching.checkpoint",
    "ModelShape": "lrt_lens.stitching.plan",
    "HarvestPlan": "lrt_lens.stitching.plan",
    "plan_harvest": "lrt_lens.stitching.plan",
    "ActivationCache": "lrt_lens.stitching.cache.activation_cache",
    "AdamFit": "lrt_lens.stitching.recipes.adam",
    "Mlp": "lrt_lens.stitching.recipes.mlp",
    "RowsInMemory": "lrt_lens.stitching.recipes.rows",
    "AffineMap": "lrt_lens.stitching.affine",
    "Stitch": "lrt_lens.stitching.stitch",
    "StitchGrid": "lrt_lens.stitching.grid",
    "SteeringVector": "lrt_lens.adapters.steering",
    "Calibration": "lrt_lens.adapters.calibration",
    "calibrate_scale": "lrt_lens.adapters.calibration",
    "predict_scale": "lrt_lens.adapters.scale_prediction",
    "Intervention": "lrt_lens.adapters.intervention",
    "SteeringEvaluation": "lrt_lens.evaluation.steering",
    "evaluate_steering": "lrt_lens.evaluation.steering",
    "ComparedContinuations": "lrt_lens.evaluation.compared_continuations",
    "compare_continuations": "lrt_lens.evaluation.compared_continuations",
    "explore": "lrt_lens.exploration.explore",
    "LinearProbe": "lrt_lens.adapters.probe",
    "ProbeEvaluation": "lrt_lens.evaluation.probes",
    "evaluate_probe": "lrt_lens.evaluation.probes",
    "Anchors": "lrt_lens.adapters.baselines.anchors",
    "anchor_stitch": "lrt_lens.adapters.baselines.anchors",
    "RelativeRepresentation": "lrt_lens.adapters.baselines.anchor_methods",
    "AnchorProjection": "lrt_lens.adapters.baselines.anchor_methods",
    "AnchorProcrustes": "lrt_lens.adapters.baselines.anchor_methods",
    "AnchorLinear": "lrt_lens.adapters.baselines.anchor_methods",
    "AnchorRidge": "lrt_lens.adapters.baselines.anchor_methods",
    "embedding_stitch": "lrt_lens.adapters.baselines.shared_vocabulary",
    "MiniVec2Vec": "lrt_lens.adapters.baselines.unpaired",
    "unpaired_stitch": "lrt_lens.adapters.baselines.unpaired",
    "FamilyBaselines": "lrt_lens.evaluation.family_baselines",
    "evaluate_family_baselines": "lrt_lens.evaluation.family_baselines",
    "fitting_texts": "lrt_lens.evaluation.family_baselines",
    "SparseProbeEvaluation": "lrt_lens.evaluation.sparse_probing",
    "evaluate_sparse_probes": "lrt_lens.evaluation.sparse_probing",
    "FeatureEvaluation": "lrt_lens.evaluation.features.result",
    "evaluate_features": "lrt_lens.evaluation.features.evaluate",
    "SAEEvaluation": "lrt_lens.evaluation.sae",
    "evaluate_sae": "lrt_lens.evaluation.sae",
    "demo_sae": "lrt_lens.adapters.sae.bundled",
    "demo_texts": "lrt_lens.data.demo",
    "train_sae": "lrt_lens.adapters.sae.training",
    "CodeMap": "lrt_lens.adapters.codes.code_map",
    "fit_code_map": "lrt_lens.adapters.codes.code_map",
    "CodeMapEvaluation": "lrt_lens.evaluation.code_map",
    "evaluate_code_map": "lrt_lens.evaluation.code_map",
    "FeatureMatches": "lrt_lens.evaluation.feature_matching",
    "match_features": "lrt_lens.evaluation.feature_matching",
    "DecoderGeometry": "lrt_lens.evaluation.decoder_geometry",
    "decoder_geometry": "lrt_lens.evaluation.decoder_geometry",
    "SAETraining": "lrt_lens.adapters.sae.training",
    "SAERows": "lrt_lens.adapters.sae.rows",
    "SAEInitialisation": "lrt_lens.evaluation.sae_initialisation",
    "study_sae_initialisation": "lrt_lens.evaluation.sae_initialisation",
    "SAEScaling": "lrt_lens.evaluation.sae_scaling",
    "study_sae_scaling": "lrt_lens.evaluation.sae_scaling",
    "behaviour_items": "lrt_lens.data.behaviours",
    "answer_contrast": "lrt_lens.data.behaviours",
    "PropensityEvaluation": "lrt_lens.evaluation.propensity",
    "evaluate_propensity": "lrt_lens.evaluation.propensity",
    "ClampEvaluation": "lrt_lens.evaluation.clamping",
    "evaluate_clamping": "lrt_lens.evaluation.clamping",
    "AblationEvaluation": "lrt_lens.evaluation.ablation",
    "evaluate_ablation": "lrt_lens.evaluation.ablation",
    "ablation_hooks": "lrt_lens.evaluation.ablation",
    "unit_norm_decoder": "lrt_lens.adapters.sae.unit_norm",
    "load_sparsify": "lrt_lens.adapters.sae.sparsify",
    "ConceptMap": "lrt_lens.adapters.concept_map",
    "apply_together": "lrt_lens.adapters.concept_map",
    "Concept": "lrt_lens.evaluation.concept_transfer",
    "ConceptTransfer": "lrt_lens.evaluation.concept_transfer",
    "evaluate_concept_transfer": "lrt_lens.evaluation.concept_transfer",
    "ConceptInterpolation": "lrt_lens.evaluation.concept_interpolation",
    "evaluate_interpolation": "lrt_lens.evaluation.concept_interpolation",
    "Alignment": "lrt_lens.data.alignment",
    "Aligner": "lrt_lens.data.alignment",
    "align": "lrt_lens.data.alignment",
    "aligned_share": "lrt_lens.data.alignment",
    "with_fewer_merges": "lrt_lens.data.retokenizing",
    "token_boundaries": "lrt_lens.data.boundaries",
    "HookPointError": "lrt_lens.errors",
    "MismatchError": "lrt_lens.errors",
    "FileFormatError": "lrt_lens.errors",
    "NonFiniteError": "lrt_lens.errors",
    "TooFewDocumentsError": "lrt_lens.errors",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll] (names load lazily, from _HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lrt_lens' has no attribute {name!r}; it has {sorted(_HOME)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from lrt_lens.adapters.baselines.anchor_methods import (
        AnchorLinear,
        AnchorProcrustes,
        AnchorProjection,
        AnchorRidge,
        RelativeRepresentation,
    )
    from lrt_lens.adapters.baselines.anchors import Anchors, anchor_stitch
    from lrt_lens.adapters.baselines.shared_vocabulary import embedding_stitch
    from lrt_lens.adapters.baselines.unpaired import MiniVec2Vec, unpaired_stitch
    from lrt_lens.adapters.calibration import Calibration, calibrate_scale
    from lrt_lens.adapters.codes.code_map import CodeMap, fit_code_map
    from lrt_lens.adapters.concept_map import ConceptMap, apply_together
    from lrt_lens.adapters.intervention import Intervention
    from lrt_lens.adapters.probe import LinearProbe
    from lrt_lens.adapters.sae.bundled import demo_sae
    from lrt_lens.adapters.sae.rows import SAERows
    from lrt_lens.adapters.sae.sparsify import load_sparsify
    from lrt_lens.adapters.sae.training import SAETraining, train_sae
    from lrt_lens.adapters.sae.unit_norm import unit_norm_decoder
    from lrt_lens.adapters.scale_prediction import predict_scale
    from lrt_lens.adapters.steering import SteeringVector
    from lrt_lens.data.alignment import Aligner, Alignment, align, aligned_share
    from lrt_lens.data.behaviours import answer_contrast, behaviour_items
    from lrt_lens.data.boundaries import token_boundaries
    from lrt_lens.data.contrast import ChoiceItems, ContrastSet
    from lrt_lens.data.demo import demo_contrast, demo_documents, demo_items, demo_neutral, demo_texts
    from lrt_lens.data.retokenizing import with_fewer_merges
    from lrt_lens.errors import FileFormatError, HookPointError, MismatchError, NonFiniteError, TooFewDocumentsError
    from lrt_lens.evaluation.ablation import AblationEvaluation, ablation_hooks, evaluate_ablation
    from lrt_lens.evaluation.agreement import steering_agreement
    from lrt_lens.evaluation.clamping import ClampEvaluation, evaluate_clamping
    from lrt_lens.evaluation.code_map import CodeMapEvaluation, evaluate_code_map
    from lrt_lens.evaluation.compared_continuations import ComparedContinuations, compare_continuations
    from lrt_lens.evaluation.concept_interpolation import ConceptInterpolation, evaluate_interpolation
    from lrt_lens.evaluation.concept_transfer import Concept, ConceptTransfer, evaluate_concept_transfer
    from lrt_lens.evaluation.decoder_geometry import DecoderGeometry, decoder_geometry
    from lrt_lens.evaluation.family_baselines import FamilyBaselines, evaluate_family_baselines, fitting_texts
    from lrt_lens.evaluation.feature_matching import FeatureMatches, match_features
    from lrt_lens.evaluation.features.evaluate import evaluate_features
    from lrt_lens.evaluation.features.result import FeatureEvaluation
    from lrt_lens.evaluation.probes import ProbeEvaluation, evaluate_probe
    from lrt_lens.evaluation.propensity import PropensityEvaluation, evaluate_propensity
    from lrt_lens.evaluation.sae import SAEEvaluation, evaluate_sae
    from lrt_lens.evaluation.sae_initialisation import SAEInitialisation, study_sae_initialisation
    from lrt_lens.evaluation.sae_scaling import SAEScaling, study_sae_scaling
    from lrt_lens.evaluation.sparse_probing import SparseProbeEvaluation, evaluate_sparse_probes
    from lrt_lens.evaluation.steering import SteeringEvaluation, evaluate_steering
    from lrt_lens.evaluation.stitch_loss import StitchLoss, evaluate_stitch_loss, token_identity_map
    from lrt_lens.exploration.explore import explore
    from lrt_lens.models.hooked_model import HookedModel
    from lrt_lens.models.pair import ModelPair, demo_pair
    from lrt_lens.stitching.affine import AffineMap
    from lrt_lens.stitching.cache.activation_cache import ActivationCache
    from lrt_lens.stitching.checkpoint import remove_checkpoints
    from lrt_lens.stitching.comparison import SolverComparison
    from lrt_lens.stitching.diagnostics import MapDiagnostics, map_diagnostics, score_intervals
    from lrt_lens.stitching.fidelity import Fidelity
    from lrt_lens.stitching.grid import StitchGrid
    from lrt_lens.stitching.harvest import fit_stitches, harvest
    from lrt_lens.stitching.moments import CrossMoments
    from lrt_lens.stitching.plan import HarvestPlan, ModelShape, plan_harvest
    from lrt_lens.stitching.recipes.adam import AdamFit
    from lrt_lens.stitching.recipes.mlp import Mlp
    from lrt_lens.stitching.recipes.rows import RowsInMemory
    from lrt_lens.stitching.scale_out import merge_shards
    from lrt_lens.stitching.similarity import similarities
    from lrt_lens.stitching.solvers.coordinates import AxisScaling, Identity, Mean, Translation
    from lrt_lens.stitching.solvers.fixed import FixedMaps
    from lrt_lens.stitching.solvers.least_squares import LeastSquares
    from lrt_lens.stitching.solvers.many_to_one import ManyToOne, layer_contributions
    from lrt_lens.stitching.solvers.procrustes import Procrustes
    from lrt_lens.stitching.solvers.reduced_rank import ReducedRank
    from lrt_lens.stitching.solvers.ridge import Ridge
    from lrt_lens.stitching.solvers.shared_embeddings import shared_embedding_maps
    from lrt_lens.stitching.solvers.two_way import TwoWay
    from lrt_lens.stitching.stitch import Stitch
