from ._folder import StateFolder as StateFolder
from ._folder import is_state_folder as is_state_folder
from ._harvest_states import harvest_states as harvest_states
from ._manifest import ArrayFiles as ArrayFiles
from ._manifest import StateManifest as StateManifest
from ._request import StateRequest as StateRequest
from ._request import request_states as request_states
from ._stream import StateStream as StateStream
