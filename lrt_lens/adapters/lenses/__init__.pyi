from ._evaluation import LensEvaluation as LensEvaluation
from ._evaluation import LensSettings as LensSettings
from ._evaluation import evaluate_lens as evaluate_lens
from ._lens import Lens as Lens
from ._lens import TransferredLens as TransferredLens
from ._lens import transfer_lens as transfer_lens
from ._readout import readout as readout
