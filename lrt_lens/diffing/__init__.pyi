from ._diff import DiffSettings as DiffSettings
from ._diff import diff as diff
from ._model_diff import DiffDirections as DiffDirections
from ._model_diff import ModelDiff as ModelDiff
from ._reading import DiffReading as DiffReading
from ._reading import DiffReadingSettings as DiffReadingSettings
from ._reading import DirectionReading as DirectionReading
from ._reading import read_diff as read_diff
