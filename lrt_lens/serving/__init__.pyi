from ._cards import CardSettings as CardSettings
from ._cards import model_card as model_card
from ._hub_upload import push_to_hub as push_to_hub
from ._probe_files import export_probe as export_probe
from ._probe_files import load_probe as load_probe
from ._probe_sklearn import probe_from_sklearn as probe_from_sklearn
from ._probe_sklearn import probe_to_sklearn as probe_to_sklearn
from ._sae_folder import export_sae as export_sae
