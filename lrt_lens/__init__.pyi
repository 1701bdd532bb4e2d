import typing

from . import adapters as adapters
from . import baselines as baselines
from . import data as data
from . import errors as errors
from . import models as models
from . import moments as moments
from . import serving as serving
from . import stitching as stitching
from .adapters.concepts import ConceptMap as ConceptMap
from .adapters.layers import choose_layers as choose_layers
from .adapters.probes import LinearProbe as LinearProbe
from .adapters.probes import evaluate_probe as evaluate_probe
from .adapters.saes import evaluate_sae as evaluate_sae
from .adapters.saes import train_sae as train_sae
from .adapters.vectors import SteeringVector as SteeringVector
from .adapters.vectors import calibrate_scale as calibrate_scale
from .adapters.vectors import evaluate_steering as evaluate_steering
from .bundled import demo_contrast as demo_contrast
from .bundled import demo_documents as demo_documents
from .bundled import demo_items as demo_items
from .bundled import demo_neutral as demo_neutral
from .bundled import demo_pair as demo_pair
from .bundled import demo_sae as demo_sae
from .bundled import demo_texts as demo_texts
from .data import ChoiceItems as ChoiceItems
from .data import ContrastSet as ContrastSet
from .diffing import diff as diff
from .domains import domain_matrix as domain_matrix
from .exploration import explore as explore
from .models import HookedModel as HookedModel
from .models import ModelPair as ModelPair
from .moments import CrossMoments as CrossMoments
from .moments import harvest as harvest
from .moments.states import StateFolder as StateFolder
from .moments.states import harvest_states as harvest_states
from .serving import check_export as check_export
from .stitching import Stitch as Stitch
from .stitching import StitchGrid as StitchGrid
from .stitching import evaluate_stitch_loss as evaluate_stitch_loss
from .stitching import fit_grid as fit_grid
from .stitching import fit_stitches as fit_stitches
from .stitching import solvers as solvers
from .stitching import survey as survey
from .stitching.solvers import Ridge as Ridge
from .updates import update as update

__version__: str

# Names of the packages below; `lrt_lens.NAME` finds them at run time.
def __getattr__(name: str) -> typing.Any: ...
