# Each target creates its own environment on first use and needs only Python 3.11+ and make.
# `make help` lists the targets. Variables are set on the command line:
# make test WORKERS=4, make test MARKERS=gpu XDIST=, make test ARGS="-k moments"

# Python 3.11 is preferred, because constraints.txt has the versions that were tested with it.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
WORKERS ?= 2
XDIST   ?= -n $(WORKERS) --dist loadfile
# Threads per worker. Set in the environment, because transformers otherwise resets torch's number
# of threads to the number of cores.
THREADS ?= 1
MARKERS ?= not slow and not gpu and not network and not browser
ARGS    ?=
OUT     ?= demo-report
# Only tests marked `network` use the network: make test MARKERS=network HF_HUB_OFFLINE=0
HF_HUB_OFFLINE ?= 1
TL4     ?= 4.3.0
# Tests that run models. The others do not depend on the version of TransformerLens.
TL4_TESTS ?= tests/models tests/adapters tests/baselines tests/exploration tests/demo \
	tests/moments/test_harvesting.py tests/stitching/test_stitch_loss.py

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

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the package (editable) and the needs of tests and examples

$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: lrt_lens needs Python 3.11 or later, and '$(PYTHON)' is none; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,examples]'
	@touch $@

demo: $(STAMP) ## run everything once on the bundled models, offline: a report in demo-report/
	$(BIN)/lrt-lens demo --out '$(OUT)'
	@echo 'The report: $(OUT)/report.html (open it in a browser); its numbers: $(OUT)/results.json'

test: $(STAMP) ## run the quick tests
	$(PYTEST_ENV) $(BIN)/python -m pytest $(XDIST) -m '$(MARKERS)' $(ARGS)

# Some tests take minutes, so each free worker gets one test at a time. Tests of one xdist group
# share a slow fixture and run on one worker.
test-slow: $(STAMP) ## run the slow tests, offline and on the CPU
	$(PYTEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --maxschedchunk 1 --durations 10 -m 'slow and not gpu and not network and not browser' $(ARGS)

test-tl4: $(STAMP_TL4) ## run the quick tests that run models, on TransformerLens 4.x
	$(PYTEST_ENV) $(VENV_TL4)/bin/python -m pytest $(XDIST) -m '$(MARKERS)' $(TL4_TESTS) $(ARGS)

# A second environment that contains only TransformerLens 4.x and uses .venv for everything else.
# Its own site-packages come before the folders named in its .pth file, so that 4.x is imported
# instead of 3.9. pip would refuse this combination: sae-lens requires transformer-lens below 4.
$(STAMP_TL4): $(STAMP)
	rm -rf $(VENV_TL4)
	$(BIN)/python -m venv --without-pip $(VENV_TL4)
	site=$$($(VENV_TL4)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target "$$site" 'transformer-lens==$(TL4)'; \
	{ $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; pwd; } > "$$site/lrt_lens_main_venv.pth"
	@$(VENV_TL4)/bin/python -c 'import importlib.metadata as m; v = m.version("transformer-lens"); print("transformer-lens", v); assert v == "$(TL4)"'
	@touch $@

lint: $(STAMP) ## run ruff (rules and format) and the check of docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lint_docstrings.py .ci lrt_lens examples benchmarks build_demo docs tests

types: $(STAMP) ## run pyright
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

bench: $(STAMP) ## run the benchmarks, whose numbers the documentation shows
	$(BIN)/python -m benchmarks.run $(ARGS)

# Runs one script after the other; each takes minutes. Scripts that fail are listed at the end and
# keep their earlier entry in the gallery. ARGS="--quick" only checks that they run.
figures: $(STAMP) ## run every example into figures/, and write the gallery examples/README.md
	@failed=; for script in $$(grep -l 'run(reproduce)' examples/*.py); do \
	    echo "==== $$script"; $(PYTEST_ENV) $(BIN)/python "$$script" --out figures $(ARGS) || failed="$$failed $$script"; done; \
	case '$(ARGS)' in *--quick*) ;; *) $(BIN)/python -m lrt_lens.reproduction figures;; esac; \
	test -z "$$failed" || { echo "error: these made no figure:$$failed" >&2; exit 1; }

$(STAMP_DOCS): $(STAMP)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev,examples,docs]'
	@touch $@

# Runs the tutorials and treats warnings as errors. Needs no network; LRT_LENS_DOCS_ONLINE=1 adds
# links to the documentation of other projects. Old pages are removed first, because a page whose
# source was deleted would otherwise stay in the search and in the checks.
docs: $(STAMP_DOCS) ## build the documentation (open build/docs/index.html)
	rm -rf $(DOCS_OUT)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m sphinx -q -W --keep-going -n -j $(WORKERS) -d build/doctrees -b html docs $(DOCS_OUT)
	@echo 'The documentation: $(DOCS_OUT)/index.html'

docs-check: docs ## opens every page and the explorer in a headless Chromium and checks them
	$(PYTEST_ENV) LRT_LENS_DOCS_BUILT='$(DOCS_OUT)' $(BIN)/python -m pytest -m 'not slow or browser' tests/docs tests/exploration $(ARGS)

# Builds the sdist from the working tree and the wheel from the sdist, and installs the wheel in a
# fresh environment.
wheel-check: $(STAMP) ## build a wheel, install it in a fresh environment, run the demo there
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

clean: ## remove the output of all targets; the environments stay
	rm -rf build dist demo-report docs/reference .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the output of all targets, and the environments
	rm -rf $(VENV) $(VENV_TL4)
