from ._abstention import Abstains as Abstains
from ._evaluation import ProbeEvaluation as ProbeEvaluation
from ._evaluation import ProbeEvaluationSettings as ProbeEvaluationSettings
from ._evaluation import evaluate_probe as evaluate_probe
from ._linear_probe import LinearProbe as LinearProbe
from ._probe_fits import ProbeSettings as ProbeSettings
from ._recentring import Recentring as Recentring
from ._recentring import recentre_probe as recentre_probe
