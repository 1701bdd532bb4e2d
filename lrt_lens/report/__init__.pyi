from ._html import render_html as render_html
from ._html import write_html as write_html
from ._results import write_results as write_results
