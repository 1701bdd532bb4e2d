from ._report import demo_tables as demo_tables
from ._report import write_demo as write_demo
from ._result import DemoResult as DemoResult
from ._run import run_demo as run_demo
