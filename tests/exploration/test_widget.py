import re
import sys
import threading
import time
from importlib import util
from typing import Any

import pytest

pytest.importorskip("ipywidgets", reason="pip install 'lrt-lens[widgets]'")

from lrt_lens.adapters.vectors import SteeringVector
from lrt_lens.data import ContrastSet
from lrt_lens.exploration import explore
from lrt_lens.exploration._state import Exploration
from lrt_lens.exploration._widget import STRONGEST, ExplorerWidget
from lrt_lens.models import HookedModel

PROMPT = "the little cat was happy because"


@pytest.fixture(scope="module")
def make(pair: Any, passages: list[str]) -> Any:
    """Return a function that builds the widget of a vector learnt on the target."""
    vector = SteeringVector.mean_difference(
        pair.target, ContrastSet(passages[:8], passages[8:16]), at=1
    )
    neutral = [text for text in passages[100:] if len(text.split()) > 15][:2]
    return lambda **options: explore(
        pair, vector, neutral=neutral, prompt=PROMPT, damage=0.05, max_new_tokens=5, **options
    )


@pytest.fixture
def widget(make: Any) -> ExplorerWidget:
    return make()


def test_it_shows_continuations_and_damage_at_once(widget: ExplorerWidget) -> None:
    assert widget.slider.value == 1.0
    assert (widget.slider.min, widget.slider.max) == (-STRONGEST, STRONGEST)
    for word in ("none", "native", "transferred", PROMPT):
        assert word in widget.result.value
    assert (
        len(
            re.findall(
                r"(native|transferred): scale \S+, damage \S+ nats per token", widget.result.value
            )
        )
        == 2
    )
    assert re.search(r"median residual norm: native \d+%, transferred \d+%", widget.sizes.value)


def test_moving_the_slider_runs_again(widget: ExplorerWidget) -> None:
    before = widget.sizes.value
    widget.slider.value = 0.5
    assert widget.sizes.value != before
    arm = widget.exploration.arms["native"]
    damage = widget.exploration.damage_at("native", 0.5)
    assert f"native: scale {arm.scale(0.5):.3g}, damage {damage:.2g} " in widget.result.value
    assert f"native {arm.share(0.5):.0%}" in widget.sizes.value


def test_run_takes_the_prompt_from_the_box_and_escapes_it(widget: ExplorerWidget) -> None:
    widget.prompt.value = "<b>the dog</b>"
    assert "the dog" not in widget.result.value
    widget.run_button.click()
    assert "&lt;b&gt;the dog&lt;/b&gt;" in widget.result.value
    assert "<b>" not in widget.result.value


def test_runs_that_arrive_together_take_turns_and_the_last_one_counts(
    widget: ExplorerWidget, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inside, most, begun = Exploration.run, [], [], threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        begun.set()
        time.sleep(0.2)
        inside.pop()
        return run(*arguments, **options)

    monkeypatch.setattr(Exploration, "run", slow)
    first = threading.Thread(target=widget.update)
    first.start()
    assert begun.wait(10)
    widget.prompt.value = "the dog"
    widget.run_button.click()
    first.join()
    assert most == [1, 1]
    assert "the dog" in widget.result.value


def test_another_draw_has_another_seed_and_the_same_strength(widget: ExplorerWidget) -> None:
    before, sizes = widget.result.value, widget.sizes.value
    widget.draw_button.click()
    assert widget.seed == 1
    assert widget.result.value != before
    assert widget.sizes.value == sizes


def test_an_error_is_said_and_leaves_the_last_result(widget: ExplorerWidget) -> None:
    before = widget.result.value
    widget.prompt.value = "   "
    widget.run_button.click()
    assert "the prompt is empty" in widget.status.value
    assert widget.result.value == before


def test_an_interrupt_is_said_and_leaves_no_hook(
    widget: ExplorerWidget, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = HookedModel.generate

    def stopped(self: HookedModel, *args: Any, **options: Any) -> Any:
        if any(point.fwd_hooks for point in pair.target.bridge.hook_dict.values()):
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(HookedModel, "generate", stopped)
    widget.run_button.click()
    assert "interrupted" in widget.status.value
    assert not any(point.fwd_hooks for point in pair.target.bridge.hook_dict.values())


def test_it_can_be_sent_to_a_notebook(widget: ExplorerWidget) -> None:
    assert "application/vnd.jupyter.widget-view+json" in widget._repr_mimebundle_()


def test_without_ipywidgets_the_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr(
        "lrt_lens.exploration._explore.find_spec",
        lambda name: None if name == "ipywidgets" else found(name),
    )
    monkeypatch.delitem(sys.modules, "ipywidgets")
    with pytest.raises(ImportError, match=r"pip install 'lrt-lens\[widgets\]'"):
        make()


def test_a_run_and_a_cell_that_steers_do_not_disturb_each_other(
    widget: ExplorerWidget, pair: Any
) -> None:
    shown = widget.result.value
    model, name = pair.target, "blocks.0.hook_resid_post"

    def cell() -> Any:
        return model.logits(PROMPT).sum().item()

    with model.intervene({name: lambda x, hook: x + 2}):
        steered = cell()
    during: list[float] = []
    update = threading.Thread(target=widget.update, daemon=True)

    def run_beside(activation: Any, hook: Any) -> Any:
        if not during:
            during.append(0.0)
            # The explorer runs, in a thread of the kernel, while this cell is in its pass.
            update.start()
            update.join(60)
        return activation + 2

    widget.result.value = ""
    with model.intervene({name: run_beside}):
        assert cell() == steered
    assert not update.is_alive()
    assert widget.result.value == shown
    # And while a cell has left a handle open.
    handle = model.intervene({name: lambda x, hook: x + 2})
    widget.result.value = ""
    widget.update()
    assert widget.result.value == shown
    assert cell() == steered
    handle.remove()
