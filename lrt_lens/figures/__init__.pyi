from ._similarity import similarity_figure as similarity_figure
from ._similarity import similarity_lines_figure as similarity_lines_figure
from ._template import HIGHLIGHT as HIGHLIGHT
from ._template import TEMPLATE_NAME as TEMPLATE_NAME
from ._template import arm_style as arm_style
