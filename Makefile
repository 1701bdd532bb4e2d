# Every target installs what it needs: a machine with Python 3.11+ and make needs nothing else.
# `make help` lists the targets. Variables are set on the command line: make test WORKERS=4,
# make test MARKERS=gpu XDIST=, make test ARGS="-k moments"

# Python 3.11 is preferred, because constraints.txt has the versions that were tested with it.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
WORKERS ?= 2
XDIST   ?= -n $(WORKERS) --dist loadfile
# One thread per worker, set in the environment, because transformers otherwise sets torch's thread
# count back to the number of cores.
THREADS ?= 1
MARKERS ?= not slow and not gpu and not network and not browser
# .ci/run leaves out the tests that take minutes: make test-slow SLOW='slow and not minutes'
SLOW    ?= slow
ARGS    ?=
OUT     ?= demo-report
# Only tests marked "network" may reach the network: make test MARKERS=network HF_HUB_OFFLINE=0
HF_HUB_OFFLINE ?= 1
TL4     ?= 4.3.0
# Tests that run models. All others (pages, figures, files) do not depend on TransformerLens.
TL4_TESTS ?= tests/models tests/adapters tests/exploration tests/demo \
	tests/moments/test_harvesting.py tests/stitching/test_stitch_loss.py

VENV     := .venv
BIN      := $(VENV)/bin
VENV_TL4 := .venv-tl4
VENV_VLLM    := .venv-vllm
VENV_ENGINES := .venv-engines
STAMP    := $(VENV)/.installed
STAMP_TL4 := $(VENV_TL4)/.installed-$(TL4)
STAMP_DOCS := $(VENV)/.installed-docs
STAMP_VLLM := $(VENV_VLLM)/.installed
STAMP_ENGINES := $(VENV_ENGINES)/.installed
DOCS_OUT := build/docs

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo test test-slow test-tl4 engines-check lint types bench figures \
	wheel-check docs docs-check clean distclean

# Some containers set it; each process would then compile transformers anew, for five seconds.
unexport PYTHONDONTWRITEBYTECODE

PYTEST_ENV := HF_HUB_OFFLINE=$(HF_HUB_OFFLINE) OMP_NUM_THREADS=$(THREADS) \
	TOKENIZERS_PARALLELISM=false
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the package (editable) and the needs of tests and examples

$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: lrt_lens needs Python 3.11 or later, and '$(PYTHON)' is older or missing;" \
	        "name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV)
	$(PIP_INSTALL) --no-compile -c constraints.txt -e '.[dev,examples]'
	@touch $@

demo: $(STAMP) ## run everything once on the bundled models, offline: a report in demo-report/
	$(BIN)/lrt-lens demo --out '$(OUT)'
	@echo 'The report: $(OUT)/report.html (open it in a browser); its numbers: $(OUT)/results.json'

test: $(STAMP) ## run the quick tests
	$(PYTEST_ENV) $(BIN)/python -m pytest $(XDIST) -m '$(MARKERS)' $(ARGS)

# Each free worker gets one test at a time, because the longest take minutes. Tests of one group
# stay in one worker, because they share an expensive fixture. The quick tests check types at run
# time; here that would take a third of the time.
test-slow: $(STAMP) ## the slow tests, offline and on the CPU
	$(PYTEST_ENV) JAXTYPING_DISABLE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --maxschedchunk 1 \
	    --durations 10 -m '$(SLOW) and not gpu and not network and not browser' $(ARGS)

test-tl4: $(STAMP_TL4) ## run the quick tests that run models, on TransformerLens 4.x
	$(PYTEST_ENV) JAXTYPING_DISABLE=1 $(VENV_TL4)/bin/python -m pytest $(XDIST) -m '$(MARKERS)' $(TL4_TESTS) $(ARGS)

# A second environment that holds only TransformerLens 4.x and finds everything else in .venv: its
# own site-packages come before the folders that its .pth file names, so 4.x hides 3.9. pip would
# not resolve such an install, because sae-lens requires transformer-lens below 4.
$(STAMP_TL4): $(STAMP)
	rm -rf $(VENV_TL4)
	$(BIN)/python -m venv --without-pip $(VENV_TL4)
	site=$$($(VENV_TL4)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(PIP_INSTALL) --no-deps --target "$$site" 'transformer-lens==$(TL4)'; \
	{ $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; pwd; } \
	    > "$$site/lrt_lens_main_venv.pth"
	@$(VENV_TL4)/bin/python -c 'import importlib.metadata as m; v = m.version("transformer-lens"); \
	    print("transformer-lens", v); assert v == "$(TL4)"'
	@touch $@

# Exported vectors in the programs that serve them, none of which the package needs. Readings that
# are up to date are kept, so an interrupted run goes on where it was. Each script runs without
# PYTHONPATH, because lrt_lens must not take part.
ENGINES_OUT := engines-check
ENGINES     ?= transformers steering_vectors lm_eval repeng sae_bench vllm vllm_baked vllm_lens
engines-check: $(STAMP) $(STAMP_ENGINES) $(STAMP_VLLM) ## exported vectors in vLLM, repeng, lm-eval, …
	$(PYTEST_ENV) TQDM_DISABLE=1 $(BIN)/python -W ignore tests/engines/produce.py $(ENGINES_OUT)
	@unset PYTHONPATH; for engine in $(ENGINES); do \
	    python=$(VENV_ENGINES)/bin/python; set --; \
	    case "$$engine" in \
	    vllm*) python=$(VENV_VLLM)/bin/python;; \
	    repeng) set -- PYTHONPATH=$(VENV_ENGINES)/numpy1;; \
	    esac; \
	    echo "==== $$engine"; \
	    env $(PYTEST_ENV) TQDM_DISABLE=1 "$$@" "$$python" -W ignore "tests/engines/check_$$engine.py" \
	        $(ENGINES_OUT) || echo "error: $$engine did not run" >&2; done
	$(PYTEST_ENV) TQDM_DISABLE=1 $(BIN)/python -W ignore tests/engines/compare.py $(ENGINES_OUT)
	$(PYTEST_ENV) $(BIN)/python -W ignore tests/engines/states_of_vllm.py request $(ENGINES_OUT)
	@unset PYTHONPATH; for side in source target; do for limit in 30 1000; do \
	    echo "==== hidden states of the $$side in vLLM"; \
	    env $(PYTEST_ENV) VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR $(VENV_VLLM)/bin/python -W ignore \
	        $(ENGINES_OUT)/states/$$side/run_vllm.py --dtype float32 --limit $$limit; done; done
	$(PYTEST_ENV) $(BIN)/python -W ignore tests/engines/states_of_vllm.py compare $(ENGINES_OUT)

# Its own packages, and those of .venv without lrt_lens: the file that makes .venv's install of
# lrt_lens editable is read only in .venv itself.
$(STAMP_ENGINES): tests/engines/requirements-engines.txt $(STAMP)
	rm -rf $(VENV_ENGINES)
	$(BIN)/python -m venv --without-pip $(VENV_ENGINES)
	site=$$($(VENV_ENGINES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(PIP_INSTALL) --no-compile --no-deps --target "$$site" -r $<; \
	$(PIP_INSTALL) --no-compile --no-deps --target $(VENV_ENGINES)/numpy1 'numpy==1.26.4'; \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$site/lrt_lens_main_venv.pth"
	@touch $@

$(STAMP_VLLM): tests/engines/requirements-vllm.txt
	test -x $(VENV_VLLM)/bin/python || '$(PYTHON)' -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-compile \
	    torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps \
	    --ignore-requires-python -r $<
	@touch $@

lint: $(STAMP) ## run ruff (rules and format) and the check of docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lint_docstrings.py .ci lrt_lens examples benchmarks build_demo docs tests

types: $(STAMP) ## run pyright
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

bench: $(STAMP) ## run the benchmarks, whose numbers the documentation shows
	$(BIN)/python -m benchmarks.run $(ARGS)

# The scripts run one after another and take minutes each. A script that fails is named at the end,
# and its earlier entry stays in the gallery. ARGS="--quick" only shows that they run.
#
# PAIR=real runs those that need neither a bundled model nor an SAE, on two models of the hub (or two
# folders), into figures-real/; the gallery stays as it is. It takes hours on a CPU:
#   make figures PAIR=real SOURCE=… TARGET=… DOCUMENTS=web.jsonl.gz SENTIMENT=reviews.jsonl.gz \
#       TOPIC=news.jsonl.gz REAL_SCRIPTS="real_pair stitched_loss"
PAIR         ?= bundled
SOURCE       ?= HuggingFaceTB/SmolLM2-135M-Instruct
TARGET       ?= google/gemma-3-270m
# Layers of the scripts that need some. real_pair surveys all by default; 27 and 15 are its choice for
# these two models (docs/results/smollm2_to_gemma.md), and other models need their own.
USUAL_PAIR   := HuggingFaceTB/SmolLM2-135M-Instruct google/gemma-3-270m
ifeq ($(SOURCE) $(TARGET),$(USUAL_PAIR))
SOURCE_LAYER ?= 27
TARGET_LAYER ?= 15
endif
DOCUMENTS    ?=
SENTIMENT    ?=
TOPIC        ?=
REAL_SCRIPTS ?= real_pair stitched_loss maps_compared probe_transfer strength concept_directions \
	map_similarity weak_to_strong l_cross propensity clamp_steering cross_family_baselines

figures: $(STAMP) ## the papers' figures and the gallery; PAIR=real: on two real models
	@case '$(PAIR)' in \
	bundled) out=figures; scripts=$$(grep -l 'run(reproduce)' examples/*.py);; \
	real) out=figures-real; scripts='$(REAL_SCRIPTS:%=examples/%.py)';; \
	*) echo "error: PAIR=$(PAIR); expected bundled or real" >&2; exit 1;; esac; \
	failed=; for script in $$scripts; do \
	    echo "==== $$script"; set --; \
	    if test '$(PAIR)' = real; then \
	        set -- --source '$(SOURCE)' --target '$(TARGET)'; \
	        takes() { grep -q "^    $$1:" "$$script"; }; \
	        case "$$script" in */real_pair.py) ;; *) \
	            test -z '$(SOURCE_LAYER)' || ! takes source_layer \
	                || set -- "$$@" --source-layer '$(SOURCE_LAYER)'; \
	            test -z '$(TARGET_LAYER)' || ! takes target_layer \
	                || set -- "$$@" --target-layer '$(TARGET_LAYER)';; \
	        esac; \
	        test -z '$(DOCUMENTS)' || grep -q 'UNUSED.*"documents"' "$$script" \
	            || set -- "$$@" --documents '$(DOCUMENTS)'; \
	        test -z '$(SENTIMENT)' || ! takes sentiment || set -- "$$@" --sentiment '$(SENTIMENT)'; \
	        test -z '$(TOPIC)' || ! takes topic || set -- "$$@" --topic '$(TOPIC)'; \
	    fi; \
	    $(PYTEST_ENV) $(BIN)/python "$$script" --out "$$out" "$$@" $(ARGS) \
	        || failed="$$failed $$script"; done; \
	case '$(PAIR) $(ARGS)' in real*|*--quick*) ;; \
	    *) $(BIN)/python -m lrt_lens.reproduction figures;; esac; \
	test -z "$$failed" || { echo "error: these made no figure:$$failed" >&2; exit 1; }

$(STAMP_DOCS): $(STAMP)
	$(PIP_INSTALL) --no-compile -c constraints.txt -e '.[dev,examples,docs]'
	@touch $@

# Warnings are errors, and all of them are shown. The build runs the tutorials and needs no network;
# LRT_LENS_DOCS_ONLINE=1 adds links into other projects. The pages are deleted first, because a page
# whose source is gone would stay in the search and in the checks; build/doctrees stays, for speed.
docs: $(STAMP_DOCS) ## the documentation, into build/docs (open build/docs/index.html)
	rm -rf $(DOCS_OUT)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m sphinx -q -W --keep-going -n \
	    -j $(WORKERS) -d build/doctrees -b html docs $(DOCS_OUT)
	@echo 'The documentation: $(DOCS_OUT)/index.html'

docs-check: docs ## its pages and the explorer in a headless Chromium: figures, search, links, …
	$(PYTEST_ENV) LRT_LENS_DOCS_BUILT='$(DOCS_OUT)' $(BIN)/python -m pytest \
	    -m 'not slow or browser' tests/docs tests/exploration $(ARGS)

# The sdist is built from the tree and the wheel from the sdist; the wheel is installed in a new
# environment, outside this folder.
wheel-check: $(STAMP) ## build, install in a fresh environment, run the demo there
	@root=$$(pwd); tmp=$$(mktemp -d); unset PYTHONPATH; \
	trap 'rm -rf "$$tmp"' EXIT; trap 'exit 1' INT TERM; \
	$(BIN)/python -m build --outdir "$$tmp/dist" . > "$$tmp/build.log" 2>&1 \
	    || { cat "$$tmp/build.log" >&2; exit 1; }; \
	ls -l "$$tmp/dist"; \
	$(BIN)/python -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check \
	    -c constraints.txt "$$tmp"/dist/*.whl; \
	cd "$$tmp"; \
	venv/bin/python -c 'import lrt_lens; print(lrt_lens.__file__)'; \
	test -n "$$(find venv -path '*/lrt_lens/py.typed')" \
	    || { echo 'error: py.typed is not in the wheel' >&2; exit 1; }; \
	HF_HUB_OFFLINE=1 HF_HOME="$$tmp/hf" \
	    venv/bin/lrt-lens demo --n-tokens 20000 --n-random 4 --out report; \
	test -s report/report.html || { echo 'error: the demo wrote no report.html' >&2; exit 1; }; \
	cd "$$root"; echo 'wheel-check: the installed wheel ran its demo outside the repository'

clean: ## remove the output of all targets; the environments stay
	rm -rf build dist demo-report $(ENGINES_OUT) docs/reference .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the output of all targets, and the environments
	rm -rf $(VENV) $(VENV_TL4) $(VENV_VLLM) $(VENV_ENGINES)
