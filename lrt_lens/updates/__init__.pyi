from ._update import update as update
from ._update_report import UpdateReport as UpdateReport
from ._update_settings import UpdateSettings as UpdateSettings
