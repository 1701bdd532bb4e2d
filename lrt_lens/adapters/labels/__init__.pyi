from ._probe import combine_probe as combine_probe
from ._probe_savings import evaluate_probe_labels as evaluate_probe_labels
from ._savings import LabelSavings as LabelSavings
from ._savings import LabelSavingsSettings as LabelSavingsSettings
from ._vector import combine_vector as combine_vector
from ._vector_savings import evaluate_vector_labels as evaluate_vector_labels
