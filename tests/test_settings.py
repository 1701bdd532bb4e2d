"""Settings objects whose fields can also be passed as keywords."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import lrt_lens
from lrt_lens._settings import Settings, resolve, takes

PACKAGE = Path(lrt_lens.__file__).parent


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
    known = r"Oven has \['degrees', 'fan'\], bake has \['dough', 'settings'\]"
    with pytest.raises(TypeError, match=f"unknown option temperature; {known}: use these names"):
        bake("rye", temperature=200)


@pytest.mark.parametrize(("misspelt", "meant"), [("degres", "degrees"), ("setings", "settings")])
def test_a_misspelt_option_or_parameter_gets_a_suggestion(misspelt: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown option {misspelt}; .*did you mean '{meant}'\?"):
        bake("rye", **{misspelt: 200})


def functions_with_settings() -> Iterator[tuple[Callable[..., Any], type[Settings]]]:
    """Yield each function of the package that `takes` settings, with the class of the settings."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "lrt_lens._settings import" not in text:
            continue
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        for scope in ast.walk(ast.parse(text)):
            if isinstance(scope, ast.Module | ast.ClassDef):
                holder = getattr(module, scope.name) if isinstance(scope, ast.ClassDef) else module
                for node in scope.body:
                    for decorator in getattr(node, "decorator_list", []):
                        name, _, kind = ast.unparse(decorator).rstrip(")").partition("(")
                        if name == "takes":
                            yield getattr(holder, node.name), getattr(module, kind)


FUNCTIONS = pytest.mark.parametrize(
    ("function", "kind"),
    [pytest.param(*both, id=both[0].__name__) for both in functions_with_settings()],
)


def test_all_functions_with_settings_are_found() -> None:
    assert {"harvest", "evaluate_steering", "from_model", "train_sae"} <= {
        function.__name__ for function, _ in functions_with_settings()
    }


@FUNCTIONS
def test_every_function_names_its_parameters_and_fields_and_suggests_the_nearest(
    function: Callable[..., Any], kind: type[Settings]
) -> None:
    field = fields(kind)[0].name
    for name in (field, "settings"):
        with pytest.raises(TypeError, match=rf"did you mean '{name}'\?") as raised:
            function(**{f"{name}_": 1})
        assert f"{kind.__name__} has" in str(raised.value)
        assert f"{function.__name__} has" in str(raised.value)


@FUNCTIONS
@pytest.mark.parametrize("wrong", [{"seed": 1}, Oven()], ids=["dict", "other class"])
def test_every_function_refuses_settings_of_another_class(
    function: Callable[..., Any], kind: type[Settings], wrong: Any
) -> None:
    of = type(wrong).__name__
    with pytest.raises(TypeError, match=f"settings is of type {of}; expected {kind.__name__}"):
        function(settings=wrong)


def test_the_signature_shows_every_field_with_its_default() -> None:
    parameters = inspect.signature(bake).parameters
    assert list(parameters) == ["dough", "settings", "degrees", "fan"]
    assert parameters["degrees"].default == 180


def test_a_function_without_options_is_refused() -> None:
    with pytest.raises(TypeError, match="options"):
        takes(Oven)(lambda dough: dough)
