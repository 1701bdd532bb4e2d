"""Settings objects whose fields can also be passed as keywords."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from lrt_lens._settings import Settings, resolve, takes


@dataclass(frozen=True)
class Oven(Settings):
    degrees: int = 180
    fan: bool = False


@takes(Oven)
def bake(dough: str, *, settings: Oven | None = None, **options: Any) -> Oven:
    return resolve(Oven, settings, options)


def test_keywords_and_a_settings_object_give_the_same_settings() -> None:
    assert bake("rye", fan=True) == bake("rye", settings=Oven(fan=True)) == Oven(180, fan=True)


def test_keywords_replace_fields_of_the_settings_object() -> None:
    assert bake("rye", settings=Oven(degrees=200), fan=True) == Oven(200, fan=True)


def test_an_unknown_option_is_a_type_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        TypeError, match=r"unknown option temperature; Oven has \['degrees', 'fan'\]"
    ):
        bake("rye", temperature=200)


def test_the_signature_shows_every_field_with_its_default() -> None:
    parameters = inspect.signature(bake).parameters
    assert list(parameters) == ["dough", "settings", "degrees", "fan"]
    assert parameters["degrees"].default == 180


def test_a_function_without_options_is_refused() -> None:
    with pytest.raises(TypeError, match="options"):
        takes(Oven)(lambda dough: dough)
