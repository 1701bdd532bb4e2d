# Every target sets itself up: a machine with Python 3.11+ and make needs nothing else. `make help` lists them.
# A variable is set on the command line: make test WORKERS=4, make test MARKERS=gpu XDIST=, make test ARGS="-k moments"

# 3.11 first: constraints.txt holds the versions tested with it.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
WORKERS ?= 2
XDIST   ?= -n $(WORKERS) --dist loadfile
# One thread a worker: transformers sets torch's thread count back to the number of cores unless the environment says otherwise.
THREADS ?= 1
MARKERS ?= not slow and not gpu and not network and not browser
ARGS    ?=
OUT     ?= demo-report
# No test reaches the network but those marked so: make test MARKERS=network HF_HUB_OFFLINE=0
HF_HUB_OFFLINE ?= 1
TL4     ?= 4.3.0
# What TransformerLens has a part in; pages, figures of ready tables and files are the same beside either.
TL4_TESTS ?= tests/models tests/adapters tests/baselines tests/exploration tests/moments/test_harvesting.py tests/stitching/test_stitch_loss.py tests/demo

VENV     := .venv
BIN      := $(VENV)/bin
VENV_TL4 := .venv-tl4
STAMP    := $(VENV)/.installed
STAMP_TL4 := $(VENV_TL4)/.installed-$(TL4)
STAMP_DOCS := $(VENV)/.installed-docs
DOCS_OUT := build/docs

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo test test-slow test-tl4 lint types bench figures wheel-check docs docs-check clean distclean

PYTEST_ENV := HF_HUB_OFFLINE=$(HF_HUB_OFFLINE) TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=$(THREADS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## .venv with the package, editable, and what its tests and examples need

$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: lrt_lens needs Python 3.11 or later, and '$(PYTHON)' is none; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,examples]'
	@touch $@

demo: $(STAMP) ## the whole product on the bundled models, offline: a report in demo-report/
	$(BIN)/lrt-lens demo --out '$(OUT)'
	@echo 'The report: $(OUT)/report.html (open it in a browser); its numbers: $(OUT)/results.json'

test: $(STAMP) ## the quick tests
	$(PYTEST_ENV) $(BIN)/python -m pytest $(XDIST) -m '$(MARKERS)' $(ARGS)

# One by one to whoever is free, the longest take minutes; those of one group (a fixture that costs as much) stay together.
test-slow: $(STAMP) ## the slow tests, offline and on the CPU
	$(PYTEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --maxschedchunk 1 --durations 10 -m 'slow and not gpu and not network and not browser' $(ARGS)

test-tl4: $(STAMP_TL4) ## the quick tests of what runs models, on TransformerLens 4.x
	$(PYTEST_ENV) $(VENV_TL4)/bin/python -m pytest $(XDIST) -m '$(MARKERS)' $(TL4_TESTS) $(ARGS)

# A second environment that holds TransformerLens 4.x alone and finds everything else in .venv: its own site-packages come before
# the folders that its .pth file names, so 4.x shadows 3.9. Not an install that pip would resolve: sae-lens caps transformer-lens below 4.
$(STAMP_TL4): $(STAMP)
	rm -rf $(VENV_TL4)
	$(BIN)/python -m venv --without-pip $(VENV_TL4)
	site=$$($(VENV_TL4)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target "$$site" 'transformer-lens==$(TL4)'; \
	{ $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; pwd; } > "$$site/lrt_lens_main_venv.pth"
	@$(VENV_TL4)/bin/python -c 'import importlib.metadata as m; v = m.version("transformer-lens"); print("transformer-lens", v); assert v == "$(TL4)"'
	@touch $@

lint: $(STAMP) ## ruff: rules and format; docstrings that stand alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lint_docstrings.py .ci lrt_lens examples benchmarks build_demo docs tests

types: $(STAMP) ## pyright
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

bench: $(STAMP) ## measure what the documentation claims
	$(BIN)/python -m benchmarks.run $(ARGS)

# One after another, minutes each; one that fails is named at the end and keeps its earlier entry in the gallery. ARGS="--quick" shows that they run.
figures: $(STAMP) ## the papers' figures into figures/, and the gallery in examples/README.md from them
	@failed=; for script in $$(grep -l 'run(reproduce)' examples/*.py); do \
	    echo "==== $$script"; $(PYTEST_ENV) $(BIN)/python "$$script" --out figures $(ARGS) || failed="$$failed $$script"; done; \
	case '$(ARGS)' in *--quick*) ;; *) $(BIN)/python -m lrt_lens.reproduction figures;; esac; \
	test -z "$$failed" || { echo "error: these made no figure:$$failed" >&2; exit 1; }

$(STAMP_DOCS): $(STAMP)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,examples,docs]'
	@touch $@

# Warnings are errors, all of them are shown. Runs the tutorials; needs no network: LRT_LENS_DOCS_ONLINE=1 adds links into other projects.
# The pages are written anew (what was read is kept in build/doctrees): one that is gone would stay, be searched and be checked.
docs: $(STAMP_DOCS) ## the documentation, into build/docs (open build/docs/index.html)
	rm -rf $(DOCS_OUT)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m sphinx -q -W --keep-going -n -j $(WORKERS) -d build/doctrees -b html docs $(DOCS_OUT)
	@echo 'The documentation: $(DOCS_OUT)/index.html'

docs-check: docs ## every page of it, and the explorer, in a headless Chromium: figures, widths, light and dark, search, links
	$(PYTEST_ENV) LRT_LENS_DOCS_BUILT='$(DOCS_OUT)' $(BIN)/python -m pytest -m 'not slow or browser' tests/docs tests/exploration $(ARGS)

# sdist from the tree, wheel from the sdist, both into an environment that has never seen this folder.
wheel-check: $(STAMP) ## build, install in a fresh environment, run the demo there
	@root=$$(pwd); tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; trap 'exit 1' INT TERM; unset PYTHONPATH; \
	$(BIN)/python -m build --outdir "$$tmp/dist" . > "$$tmp/build.log" 2>&1 || { cat "$$tmp/build.log" >&2; exit 1; }; \
	ls -l "$$tmp/dist"; \
	$(BIN)/python -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt "$$tmp"/dist/*.whl; \
	cd "$$tmp"; \
	venv/bin/python -c 'import lrt_lens, pathlib; p = pathlib.Path(lrt_lens.__file__); print(p); assert (p.parent / "py.typed").exists(), "py.typed is not in the wheel"'; \
	HF_HUB_OFFLINE=1 HF_HOME="$$tmp/hf" venv/bin/lrt-lens demo --n-tokens 20000 --n-random 4 --out report; \
	test -s report/report.html || { echo 'error: the demo wrote no report.html' >&2; exit 1; }; \
	cd "$$root"; echo 'wheel-check: the installed wheel ran its demo outside the repository'

clean: ## what the targets above produced; the environments stay
	rm -rf build dist demo-report docs/reference .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and the environments
	rm -rf $(VENV) $(VENV_TL4)
