"""Public names in tab completion and in ``help()``."""

import importlib
import inspect
import pydoc
import subprocess
import sys
from typing import Any

import pytest

import lrt_lens as lrt

NAMES = [name for name in dir(lrt) if not name.startswith("_")]


def members(name: str) -> dict[str, Any]:
    """Return a public name and, for a class, its public methods."""
    thing = getattr(lrt, name)
    own = (
        {f"{name}.{key}": getattr(thing, key) for key in vars(thing) if not key.startswith("_")}
        if inspect.isclass(thing)
        else {}
    )
    return {name: thing} | {key: value for key, value in own.items() if callable(value)}


def test_completion_lists_the_public_names_and_nothing_else() -> None:
    assert set(dir(lrt)) == set(lrt.__all__)
    assert {"fit_stitches", "SteeringVector", "evaluate_steering", "demo_pair"} <= set(NAMES)


def test_no_public_name_stands_for_two_things() -> None:
    found: dict[str, set[int]] = {}
    for package in lrt._PACKAGES:
        module = importlib.import_module(f"lrt_lens.{package}")
        for name in module.__all__:
            found.setdefault(name, set()).add(id(getattr(module, name)))
    assert sorted(name for name, things in found.items() if len(things) > 1) == []


def test_completion_loads_no_model_code() -> None:
    code = "import sys, lrt_lens; dir(lrt_lens); print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize("name", NAMES)
def test_help_says_something_of_every_name(name: str) -> None:
    for key, thing in members(name).items():
        text = inspect.getdoc(thing) or ""
        assert text, f"{key} has no docstring"
        assert not text.startswith(f"{name}("), (
            f"{key} has only the docstring that dataclasses write"
        )


@pytest.mark.parametrize("name", NAMES)
def test_signatures_show_their_defaults(name: str) -> None:
    for key, thing in members(name).items():
        if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, BaseException)):
            shown = str(inspect.signature(thing))
            assert not any(
                word in shown for word in (" at 0x", "<function", "<lambda", "<object")
            ), f"{key}{shown}"


def test_help_of_the_first_call_names_its_arguments() -> None:
    text = pydoc.render_doc(lrt.fit_stitches, renderer=pydoc.plaintext)
    for word in ("pair", "documents", "source_layers", "solver", "n_tokens", "Args:"):
        assert word in text


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'fit_stitch'.*fit_stitches"):
        lrt.fit_stitch  # noqa: B018
