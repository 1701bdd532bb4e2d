from ._run import DemoResult as DemoResult
from ._run import run_demo as run_demo
from ._run import write_demo as write_demo
