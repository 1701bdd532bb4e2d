from ._choose_layers import choose_layers as choose_layers
from ._layer_choice import LayerChoice as LayerChoice
from ._settings import LayerChoiceSettings as LayerChoiceSettings
