"""Options in a TOML file: precedence, names, types, and the file that every run writes."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from lrt_lens.cli import COMMANDS, main
from lrt_lens.cli._command import Command
from lrt_lens.cli._config import config_values, toml_text
from lrt_lens.cli._parsing import parse


@dataclass(frozen=True, kw_only=True)
class Bake(Command):
    """Bake bread."""

    words: ClassVar[str] = "bake"
    flour: str
    """Kind of flour."""
    n_loaves: int = 1
    """Number of loaves."""
    heat: float = 220.0
    """Degrees."""
    crust: Literal["thin", "thick"] | None = "thin"
    """Kind of crust."""
    seeds: tuple[str, ...] = ()
    """Seeds on top."""
    steam: bool = True
    """Steam at the start."""
    out: Path = Path("oven")
    """Folder."""


@dataclass(frozen=True, kw_only=True)
class SliceLoaf(Command):
    """Slice a loaf."""

    words: ClassVar[str] = "slice loaf"
    thickness: float = 1.0
    """Centimetres."""
    out: Path = Path("plate")
    """Folder."""


@dataclass(frozen=True, kw_only=True)
class SliceCake(Command):
    """Slice a cake."""

    words: ClassVar[str] = "slice cake"
    pieces: int = 8
    """Number of pieces."""
    out: Path = Path("plate")
    """Folder."""


KINDS = (Bake, SliceLoaf, SliceCake)
BY_WORDS = {kind.words: kind for kind in KINDS}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """``config(text)``: a file of options with this text."""

    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def parsed(*words: str) -> Any:
    return parse(words, KINDS, {"slice": "Slice something."}, "A bakery.")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(config: Any) -> None:
    path = str(config('flour = "rye"\nn_loaves = 3\nsteam = false\n[bake]\nheat = 200\n'))
    bake = parsed("bake", "--config", path, "--n-loaves", "4")
    assert (bake.flour, bake.n_loaves, bake.heat, bake.steam) == ("rye", 4, 200.0, False)
    assert parsed("bake", f"--config={path}", "--steam", "--flour", "oat").steam
    assert bake.crust == "thin"


def test_a_table_counts_for_its_command_and_a_group_for_all_of_its_commands(config: Any) -> None:
    text = 'out = "a"\n[slice]\nout = "b"\nthickness = 2\n[slice.cake]\nout = "c"\n[bake]\nheat = 1'
    path = config(text)
    found = {kind: config_values(path, kind, BY_WORDS) for kind in KINDS}
    assert found[Bake] == {"out": Path("a"), "heat": 1.0}
    assert found[SliceLoaf] == {"out": Path("b"), "thickness": 2.0}
    assert found[SliceCake] == {"out": Path("c")}


def test_names_may_have_hyphens_or_underscores_but_not_both(config: Any) -> None:
    assert config_values(config("n-loaves = 2"), Bake, BY_WORDS) == {"n_loaves": 2}
    assert config_values(config("n_loaves = 2"), Bake, BY_WORDS) == {"n_loaves": 2}
    with pytest.raises(ValueError, match=r"has 'n_loaves' twice in the part outside tables"):
        config_values(config("n_loaves = 2\nn-loaves = 2"), Bake, BY_WORDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_loafs = 2", r"run.toml' has 'n_loafs' in .*; did you mean 'n_loaves'\?"),
        (
            "[bake]\nthickness = 2",
            r"'thickness' in \[bake\], which is no option of `lrt-lens bake`",
        ),
        ("[slice]\npiecse = 2", r"'piecse' in \[slice\].*did you mean 'pieces'\?"),
        ("[slise.cake]\npieces = 2", r"the table \[slise\], which is no command; .*'slice'\?"),
        (
            "[slice.cak]\npieces = 2",
            r"\[slice.cak\], which is no command; did you mean 'slice cake'",
        ),
        ('n_loaves = "two"', r'n_loaves = "two" in the part outside.*; expected a whole number'),
        ("n_loaves = 2.5", r"n_loaves = 2.5 in .*; expected a whole number"),
        ("n_loaves = true", r"n_loaves = true in .*; expected a whole number"),
        ("[bake]\nsteam = 1", r"steam = 1 in \[bake\]; expected true or false"),
        ('heat = "hot"', r'heat = "hot" in .*; expected a number'),
        ('crust = "soft"', r'crust = "soft" in .*; expected "thin" or "thick"'),
        ("flour = 3", r"flour = 3 in .*; expected a text"),
        ('seeds = "poppy"', r'seeds = "poppy" in .*; expected a list of texts'),
        ("heat = 1979-05-27", r"heat = .*; expected a number"),
        ("config = 'x.toml'", r"has 'config' in the part outside tables, which is no option"),
        ("flour = rye", r"is no TOML \(.*\); expected lines such as n_tokens = 20_000"),
    ],
)
def test_an_unknown_name_or_another_type_is_one_clear_error(
    config: Any, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        config_values(config(text), Bake, BY_WORDS)
    assert "\n" not in str(refused.value).replace("\\n", "")


def test_what_a_run_writes_is_read_back_as_it_was(config: Any) -> None:
    options = {
        "flour": 'r"y\\e\t\x7fä\n',
        "n_loaves": -3,
        "heat": float("inf"),
        "crust": None,
        "seeds": ["poppy", "a,b"],
        "steam": False,
        "out": "oven",
    }
    text = toml_text("bake", options, Bake)
    assert tomllib.loads(text)["bake"] == options | {"crust": "None"}
    expected = options | {"seeds": ("poppy", "a,b"), "out": Path("oven")}
    assert config_values(config(text), Bake, BY_WORDS) == expected


def test_none_is_left_out_where_it_is_the_default() -> None:
    fit = next(kind for kind in COMMANDS if kind.words == "fit")
    assert toml_text("fit", {"alpha": None, "max_document_tokens": None}, fit) == (
        '[fit]\nmax_document_tokens = "None"\n'
    )


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_bad_file_of_options_ends_with_one_line_and_status_one(
    config: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(config("n_tokenz = 3"))
    assert "did you mean 'n_tokens'?" in failure(capsys, "fit", "--config", path)
    assert "no such file exists" in failure(capsys, "demo", "--config", str(tmp_path / "nowhere"))
    assert "no such file exists" in failure(capsys, "demo", "--config", str(tmp_path))


def test_a_value_out_of_range_is_refused_as_on_the_command_line(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(config("[demo]\nn_tokens = 0"))
    assert "--n-tokens is 0; expected" in failure(capsys, "demo", "--config", path)


def test_a_fit_is_repeated_from_the_file_that_it_wrote(
    model_folder: Path, corpus: list[str], tmp_path: Path
) -> None:
    import json

    (tmp_path / "corpus.txt").write_text("\n\n".join(corpus))
    config = tmp_path / "given.toml"
    config.write_text(
        f'source = "{model_folder}"\ntarget = "{model_folder}"\n'
        f'documents = "{tmp_path / "corpus.txt"}"\ncontext-length = 32\nprogress = false\n'
        '[fit]\nn_tokens = 3000\ntarget-layers = "0,-1"\nnull = "none"\n'
    )
    first, second = tmp_path / "first", tmp_path / "second"
    main(["fit", "--config", str(config), "--out", str(first), "--seed", "3"])
    written = tomllib.loads((first / "run.toml").read_text())
    assert written["fit"]["n_tokens"] == 3000
    assert written["fit"]["out"] == str(first)
    main(["fit", "--config", str(first / "run.toml"), "--out", str(second)])
    results = [json.loads((out / "results.json").read_text()) for out in (first, second)]
    assert results[0]["grid"] == results[1]["grid"]
    assert results[0]["arguments"]["seed"] == results[1]["arguments"]["seed"] == 3
    assert results[0]["command"] == "fit"


@pytest.mark.parametrize("name", ["results.json", "report.html", "run.toml"])
def test_a_file_of_somebody_else_is_not_replaced(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    message = failure(capsys, "demo", "--out", str(tmp_path))
    assert f"{name}' was not written by lrt-lens, and this command would replace it" in message
    assert (tmp_path / name).read_text() == '{"mine": 1}'
