from . import concepts as concepts
from . import labels as labels
from . import layers as layers
from . import lenses as lenses
from . import probes as probes
from . import saes as saes
from . import vectors as vectors
