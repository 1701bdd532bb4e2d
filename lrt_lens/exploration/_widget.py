"""The explorer as an ipywidgets widget; imported only when `explore` is called, because ipywidgets
is an extra.

The widget holds no numbers of its own: it hands a prompt, a strength and a seed to
`lrt_lens.exploration._state.Exploration` and shows what comes back. It runs when the slider is let
go, on "Run" and on "Another draw"; an error of ours is shown in its status line and leaves the last
result.

JupyterLab hands messages of widgets to threads of the kernel (subshells), so one may arrive while
another is worked on: they take turns, because hooks of two runs on one model would add up, and each
reads the prompt and the slider when its turn comes, so that the last one shows what they say.
"""

from html import escape
from threading import RLock
from typing import Any

import ipywidgets as widgets

from lrt_lens._repr_html import note
from lrt_lens.exploration._state import Exploration

STRONGEST = 3.0
"""End of the slider, in multiples of the strength at which the damage is the one asked for."""
STEP = 0.1


class ExplorerWidget(widgets.VBox):
    """Prompt, slider and buttons over continuations side by side."""

    def __init__(
        self, exploration: Exploration, *, prompt: str, strength: float = 1.0, seed: int = 0
    ) -> None:
        self.exploration, self.seed, self._turn = exploration, seed, RLock()
        self.prompt = widgets.Textarea(
            value=prompt, placeholder="Words to continue", rows=2, layout={"width": "auto"}
        )
        self.slider = widgets.FloatSlider(
            value=strength,
            min=-STRONGEST,
            max=STRONGEST,
            step=STEP,
            readout_format=".1f",
            continuous_update=False,
            description="strength",
            layout={"width": "min(32em, 100%)"},
            tooltip=f"1: a damage of {exploration.damage:g} nats per token",
        )
        self.run_button = widgets.Button(description="Run", button_style="primary")
        self.draw_button = widgets.Button(
            description="Another draw", tooltip="The same arms with other random numbers"
        )
        self.sizes = widgets.HTML()
        self.status = widgets.HTML()
        self.result = widgets.HTML()
        self.slider.observe(self._on_change, names="value")
        self.run_button.on_click(self._on_change)
        self.draw_button.on_click(self._on_draw)
        buttons = widgets.HBox(
            [self.run_button, self.draw_button, self.status],
            layout={"align_items": "center", "flex_flow": "row wrap"},
        )
        super().__init__(
            [
                self.prompt,
                self.slider,
                buttons,
                self.result,
                self.sizes,
                widgets.HTML(_notes(exploration)),
            ]
        )
        self.add_class("lrt-lens-explorer")
        self.update()

    def update(self) -> None:
        """Run the arms at the slider's strength and show them."""
        with self._turn:
            self._update()

    def _update(self) -> None:
        strength = float(self.slider.value)
        self._say("running …")
        try:
            compared = self.exploration.run(str(self.prompt.value), strength, seed=self.seed)
        except ValueError as error:
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self._say("interrupted; nothing is left on the model")
            return
        self.sizes.value = note(_sizes(self.exploration, strength))
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
    """How large the steps are, in words; empty where no arm knows the size of its stream."""
    shares = {name: arm.share(strength) for name, arm in exploration.arms.items()}
    known = [f"{name} {share:.0%}" for name, share in shares.items() if share == share]
    return f"Step as a share of the median residual norm: {', '.join(known)}." if known else ""


def _notes(exploration: Exploration) -> str:
    usual = f"Strength 1 costs {exploration.damage:g} nats per token on neutral text, for each vector; below 0 it steers away."
    return "".join(note(text) for text in [usual, *exploration.notes])
