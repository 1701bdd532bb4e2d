"""The explorer as an ipywidgets widget.

Problem: ipywidgets is an optional package. Mechanism: without it this module can be imported, and
`explore` refuses to build the widget. The widget stores no numbers of its own: it passes a prompt,
a strength and a seed to `Exploration.run` and shows the result. It runs when the slider is
released, on "Run" and on "Another draw"; an error of ours is shown in its status line and the last
result stays.

JupyterLab passes messages of widgets to threads of the kernel (subshells), so one may arrive during
the run of another, or of a cell. Runs of one widget take turns, and each reads the prompt and the
slider when its turn comes, so the last one shows their current state. A cell and a run do not
disturb each other, because interventions act in the thread that entered them; those that a cell has
left open on the model do not act in a run.
"""

from html import escape
from importlib.util import find_spec
from threading import RLock
from typing import TYPE_CHECKING, Any

from lrt_lens._repr_html import note
from lrt_lens.exploration._state import Exploration

if TYPE_CHECKING or find_spec("ipywidgets") is not None:
    import ipywidgets as widgets
    from ipywidgets import VBox
else:
    VBox = object

STRONGEST = 3.0
"""Upper end of the slider: multiples of the strength that costs the requested damage."""
STEP = 0.1
"""Step of the slider."""


class ExplorerWidget(VBox):
    """Prompt, slider and buttons above continuations side by side."""

    def __init__(
        self, exploration: Exploration, *, prompt: str, strength: float = 1.0, seed: int = 0
    ) -> None:
        # Reentrant: an update may be called while the same thread holds the turn.
        self.exploration, self.seed, self._turn = exploration, seed, RLock()
        self.prompt = widgets.Textarea(
            value=prompt, placeholder="Words to continue", rows=2, layout={"width": "auto"}
        )
        self.slider = _slider(strength, exploration.damage)
        self.run_button = widgets.Button(description="Run", button_style="primary")
        self.draw_button = widgets.Button(
            description="Another draw", tooltip="The same arms with other random numbers"
        )
        self.sizes = widgets.HTML()
        self.status = widgets.HTML()
        # Order of calls: widgets first, then their events, then the first run, which fills them.
        self.result = widgets.HTML()
        self.slider.observe(self._on_change, names="value")
        self.run_button.on_click(self._on_change)
        self.draw_button.on_click(self._on_draw)
        buttons = widgets.HBox(
            [self.run_button, self.draw_button, self.status],
            layout={"align_items": "center", "flex_flow": "row wrap"},
        )
        notes = widgets.HTML(_notes(exploration))
        super().__init__([self.prompt, self.slider, buttons, self.result, self.sizes, notes])
        self.add_class("lrt-lens-explorer")
        self.update()

    def update(self) -> None:
        """Run the arms at the slider's strength and show the result."""
        with self._turn:
            self._update()

    def _update(self) -> None:
        strength = float(self.slider.value)
        self._say("running …")
        try:
            compared = self.exploration.run(str(self.prompt.value), strength, seed=self.seed)
        # ValueError is how the library refuses input, such as an empty prompt.
        except ValueError as error:
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self._say("interrupted; nothing is left on the model")
            return
        self.sizes.value = note(_sizes(self.exploration, strength))
        # The result keeps its last value if an error returned above.
        self.result.value = compared._repr_html_()
        self._say(f"draw {self.seed + 1}")

    def _on_change(self, _change: Any) -> None:
        self.update()

    def _on_draw(self, _button: Any) -> None:
        self.seed += 1
        self.update()

    def _say(self, text: str) -> None:
        self.status.value = f"<span>{escape(text)}</span>"


def _sizes(exploration: Exploration, strength: float) -> str:
    """Return the sizes of the steps in words; empty if no arm has a median norm."""
    shares = {name: arm.share(strength) for name, arm in exploration.arms.items()}
    # `share == share` is False for NaN, the share of a vector whose stream is unknown.
    known = [f"{name} {share:.0%}" for name, share in shares.items() if share == share]
    return f"Step as a share of the median residual norm: {', '.join(known)}." if known else ""


def _slider(strength: float, damage: float) -> "widgets.FloatSlider":
    # Negative strengths steer away from the concept, so 0 is in the middle.
    return widgets.FloatSlider(
        value=strength,
        min=-STRONGEST,
        max=STRONGEST,
        step=STEP,
        readout_format=".1f",
        continuous_update=False,  # run on release, not at every step of a drag
        description="strength",
        layout={"width": "min(32em, 100%)"},
        tooltip=f"1: a damage of {damage:g} nats per token",
    )


def _notes(exploration: Exploration) -> str:
    usual = (
        f"Strength 1 costs {exploration.damage:g} nats per token on neutral text, for each vector; "
        "below 0 it steers away."
    )
    return "".join(note(text) for text in [usual, *exploration.notes])
