"""The rules of this repository that a linter does not check.

Files import without circles, folders import downwards only, nothing hides an import in a function
or in a string, and modules and functions stay small.
"""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lrt_lens"
ORDER = (
    "errors",
    "typing",
    "_messages",
    "_refusals",
    "_terminal",
    "_numbers",
    "_given_tensors",
    "_log_stream",
    "_progress",
    "_settings",
    "_late",
    "_byte_sizes",
    "_repr_html",
    "_short_repr",
    "_files",
    "_folders",
    "_hub",
    "_model_card",
    "_stored_fields",
    "_tensor_files",
    "statistics",
    "models",
    "data",
    "figures",
    "moments",
    "report",
    "stitching",
    "adapters._earlier_files",
    "adapters.vectors",
    "adapters.probes",
    "adapters.labels",
    "adapters.saes",
    "adapters.concepts",
    "adapters.layers",
    "adapters.lenses",
    "diffing",
    "updates",
    "domains",
    "serving",
    "baselines",
    "bundled",
    "exploration",
    "reproduction",
    "demo",
    "cli",
    "__main__",
)
"""Folders and files of the package, lowest first: each imports only from those before it."""
HEAVY = {
    "datasets",
    "datasketch",
    "gguf",
    "huggingface_hub",
    "ipywidgets",
    "IPython",
    "kaleido",
    "lrt_lens",  # only in the files of LATE_IMPORTS
    "pandas",
    "peft",
    "plotly",
    "pyarrow",
    "rich",
    "sae_lens",
    "pydantic",
    "scipy",
    "safetensors",
    "sklearn",
    "torch",
    "transformer_lens",
    "transformers",
    "tyro",
    "vllm",  # in a program that runs in an environment of its own
}
"""Packages that may be imported inside a function, because they take long or are optional."""
LATE_IMPORTS = {f"cli/{path.name}" for path in (PACKAGE / "cli").glob("*.py")}
"""Files that import our own modules inside functions: the command line must start without torch."""
LATE_METHODS = {
    "moments/_cross_moments.py": "CrossMoments.fit, from_activations and update",
    "diffing/_model_diff.py": "ModelDiff.read",
    "stitching/_grid.py": "StitchGrid.compare",
    "stitching/_stitch_data.py": "Stitch.transfer",
    "adapters/vectors/_serving_methods.py": "SteeringVector.export",
    "adapters/vectors/_steering_vector.py": "SteeringVector.load",
    "stitching/_stitch.py": "Stitch.push_to_hub",
    "adapters/probes/_linear_probe.py": "LinearProbe.export",
    "adapters/concepts/_concept_map.py": "ConceptMap.push_to_hub",
}
"""Methods whose function lives in a higher package (`lrt_lens/_late.py`), by file."""
PRIVATE_FOLDERS = {
    "moments/cache",
    "stitching/recipes",
    "adapters/saes/codes",
    "adapters/saes/features",
    "adapters/saes/refit",
    "serving/engines",
    "serving/formats",
    "serving/bake",
}
"""Folders that only group private modules: the package above lists their public names."""


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


FILES = pytest.mark.parametrize("path", python_files(), ids=relative)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files()}


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield each imported dotted name with its statement, at any depth of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), node


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, type checking included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for name, _ in imports(tree) if name in MODULES and name != "lrt_lens"}


def place(module: str) -> int:
    """Return the position in ORDER of the folder or file that holds a module."""
    path = module.removeprefix("lrt_lens.")
    held = [name for name in ORDER if path == name or path.startswith(f"{name}.")]
    assert held, f"{module} is in no folder of ORDER in {Path(__file__).name}"
    return ORDER.index(max(held, key=len))


def test_files_import_without_a_circle() -> None:
    graph = {name: own_imports(path) for name, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_no_chain_of_imports_is_longer_than_twelve_files() -> None:
    graph = {name: own_imports(path) for name, path in MODULES.items()}
    chains: dict[str, list[str]] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        longest = max((chains[below] for below in graph[name]), key=len, default=[])
        chains[name] = [name, *longest]
    longest = max(chains.values(), key=len)
    assert len(longest) <= 12, " → ".join(longest)


@FILES
def test_folders_import_downwards_only(path: Path) -> None:
    if relative(path) in ("__init__.py", "adapters/__init__.py"):
        return  # lists of names: they import nothing until a name is used
    own = place(module_name(path))
    upwards = {name for name in own_imports(path) if place(name) > own}
    assert not upwards, f"{relative(path)} imports upwards: {sorted(upwards)}"


@FILES
def test_no_import_hides_in_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    hidden = {name.split(".")[0] for function in functions for name, _ in imports(function)}
    allowed = HEAVY if relative(path) in LATE_IMPORTS else HEAVY - {"lrt_lens"}
    assert not hidden - allowed, f"imports inside functions: {sorted(hidden - allowed)}"


@FILES
def test_no_module_name_hides_in_a_string(path: Path) -> None:
    if path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    names = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in documented and re.fullmatch(r"lrt_lens(\.\w+)+(:\w+)?", node.value)
        if node.value.partition(":")[0] in MODULES
    ]
    assert not names


def test_only_the_listed_methods_call_a_function_of_a_higher_package() -> None:
    calls = {
        relative(path)
        for path in python_files()
        if "from lrt_lens._late import implementation" in path.read_text(encoding="utf-8")
    }
    assert calls == set(LATE_METHODS)


@FILES
def test_modules_that_are_not_api_begin_with_an_underscore(path: Path) -> None:
    public = {"errors.py", "typing.py", "cli.py"}
    assert path.name.startswith("_") or relative(path) in public


def test_no_class_name_is_defined_in_two_modules() -> None:
    modules: dict[str, list[str]] = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name.lstrip("_"), []).append(relative(path))
    assert not {name: paths for name, paths in modules.items() if len(paths) > 1}


def test_every_folder_lists_its_public_names_or_only_groups_private_modules() -> None:
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")}
    private = {path for path in folders if not (path / "__init__.pyi").exists()}
    # The command line is called, not imported.
    private -= {PACKAGE / "cli"}
    assert {relative(path) for path in private} == PRIVATE_FOLDERS
    for folder in private:
        body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        assert len(body) == 1, f"{relative(folder)}/__init__.py holds more than its docstring"
        stub = (folder.parent / "__init__.pyi").read_text(encoding="utf-8")
        assert f"from .{folder.name}._" in stub, f"nothing in {relative(folder)} is public"


def public_names() -> dict[str, set[str]]:
    """Return the packages that list each public name."""
    packages: dict[str, set[str]] = {}
    for stub in PACKAGE.rglob("__init__.pyi"):
        for _, node in imports(ast.parse(stub.read_text(encoding="utf-8"))):
            for alias in node.names:  # type: ignore[attr-defined]
                packages.setdefault(alias.name, set()).add(module_name(stub.with_suffix(".py")))
    return packages


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples", "build_demo"])
def test_public_names_are_imported_from_a_public_package(folder: str) -> None:
    public, private = public_names(), []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lrt_lens."):
                private += [
                    f"{path.relative_to(ROOT)}:{node.lineno} takes {alias.name} from {node.module}"
                    for alias in node.names
                    if "._" in str(node.module) and alias.name in public
                ]
    assert not private, "\n".join(private)


@FILES
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node, clean=False)
            size = node.end_lineno - node.lineno + 1  # type: ignore[operator]
            size -= len(documented.splitlines()) if documented else 0
            assert size <= 60, f"{node.name} has {size} lines"


@pytest.mark.parametrize("folder", [".ci", "benchmarks", "build_demo", "docs", "examples", "tests"])
def test_what_other_folders_import_from_the_package_is_there(folder: str) -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lrt_lens"
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES
        and not hasattr(importlib.import_module(str(node.module)), alias.name)
    ]
    assert not missing


@FILES
def test_public_functions_take_at_most_twelve_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            names = [
                a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            ]
            count = len([name for name in names if name not in ("self", "cls")])
            assert count <= 12, f"{node.name} takes {count}: group them in a settings object"


@FILES
def test_public_functions_and_classes_have_a_docstring(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_lint_of_docstrings_refuses_fragments_and_nothing_else(tmp_path: Path) -> None:
    def fragments(docstring: str) -> int:
        module = tmp_path / "module.py"
        module.write_text(f'''"""A module."""\n\nSEED = 0\n"""{docstring}"""\n''')
        command = [sys.executable, str(ROOT / ".ci" / "lint_docstrings.py"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == bool(done.stdout)
        return len(done.stdout.splitlines())

    for fragment in ("Of the bootstraps.", "The same of shuffled pairs.", "As it stands.", "[d]."):
        assert fragments(fragment) == 1
    for sentence in ("Seed of the bootstraps.", "Offset of a row.", "Android, for example."):
        assert fragments(sentence) == 0


@pytest.mark.parametrize(
    ("docstring", "n_faults"),
    [("Number of parts: folds.", 1), ("Names, such as ``a: b``.", 0), ("Number of parts.", 0)],
)
def test_the_lint_of_docstrings_refuses_a_colon_in_the_first_line_of_a_property(
    tmp_path: Path, docstring: str, n_faults: int
) -> None:
    lines = ["class A:", "    @property", "    def x(self):", f'        """{docstring}"""', ""]
    (tmp_path / "module.py").write_text("\n".join(lines))
    command = [sys.executable, str(ROOT / ".ci" / "lint_docstrings.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == n_faults
    assert done.returncode == n_faults
