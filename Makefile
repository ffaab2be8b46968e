# make quickstart   the whole story on embedded data, in minutes
# make test         all tests; TESTS=tests/sampling for some of them
# make test-fast    the quick tests of each area, in two minutes
#
# Each makes .venv, installs what was tested, and runs. PYTHON=python3.12 uses
# another interpreter, with an environment of its own.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The first that runs: pyenv's shims exist for versions that are not selected.
RUNS := $(shell for python in $(PYTHON) \
  "$$(pyenv root 2>/dev/null)"/versions/*/bin/$(notdir $(PYTHON)); do \
  $$python -c '' 2>/dev/null && echo $$python && break; done)
VERSION := $(shell $(RUNS) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := $(if $(filter 3.11,$(VERSION)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
LOCK := requirements/lock-$(VERSION).txt
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test test-fast test-recovery mutants lint \
  format lock docs wheel clean check-hugging-face benchmark-peers benchmark-t5x \
  benchmark-ctranslate2

help:
	@sed -n '1,3s/^# \{0,1\}//p' Makefile
	@echo 'make mutants: do the tests find faults that are put into a copy?'
	@echo 'make install | lint | format | docs | lock | wheel | clean'
	@echo 'make test-recovery: files are damaged, commands killed; N= how often'
	@echo 'make check-hugging-face: do exported models load in transformers?'
	@echo 'make benchmark-peers: decoding, speculation and training beside' \
	  'transformers, into runs/peers'
	@echo 'make benchmark-t5x: decoding and fine-tuning beside t5x, likewise;' \
	  'T5X_PYTHON= names a python that has it'
	@echo 'make benchmark-ctranslate2: decoding beside CTranslate2, float32' \
	  'and int8, likewise'

install: $(STAMP)

$(LOCK):
	@echo 'There is no $(LOCK) for PYTHON=$(PYTHON); Python 3.11 and 3.12' \
	  'have one: install python3.11, or name it with PYTHON=.' >&2
	@exit 1

$(STAMP): $(LOCK) requirements/tpu.txt setup.py
	$(RUNS) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/tpu_compiler -r requirements/tpu.txt || \
	  echo 'There is no TPU compiler for this machine; distillspec plan needs it.'
	touch $@

quickstart: install
	$(BIN)/distillspec quickstart --run=runs/quickstart

# A worker takes neighbouring tests, which share compiled programs.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: install
	$(PYTEST) $(TESTS)

# The quick files of each area.
FAST := tests/core tests/losses tests/repository/signatures_test.py \
  tests/repository/imports_test.py tests/repository/tests_test.py \
  $(addprefix tests/data/, files_test.py metrics_test.py batches_test.py) \
  $(addprefix tests/models/, config_test.py layers_test.py) \
  $(addprefix tests/checkpoints/, safetensors_test.py tensors_test.py) \
  $(addprefix tests/sampling/, decoding_test.py warping_test.py \
    drafting_test.py verification/token_test.py verification/block_test.py \
    verification/lenient_test.py) \
  $(addprefix tests/training/, method_test.py settings_test.py \
    schedules_test.py rollouts_test.py) \
  $(addprefix tests/reporting/, naming_test.py headlines_test.py) \
  $(addprefix tests/commands/, flags_test.py gin_configuration_test.py) \
  tests/planning/hlo_test.py tests/mutants

test-fast: install
	$(PYTEST) $(FAST)

# Flips bytes in the files of a run, and kills commands; N= how often.
test-recovery: install
	PYTHONPATH=. $(BIN)/python tests/recovery/flips.py $(or $(N),200)
	PYTHONPATH=. $(BIN)/python tests/recovery/kills.py $(or $(N),100)

# Are faults found? Some forty, one at a time; MUTANTS='residual jsd' for some.
mutants: install
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.mutants.run $(MUTANTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/pyink --check --quiet .
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR .ci/run \
	  tpu_scripts/*.sh tpu_scripts/gke/*.sh

format: install
	$(BIN)/pyink --quiet .
	$(BIN)/ruff check --fix .

# Needs a network; writes the versions that a new machine gets.
lock:
	for version in 3.11 3.12; do \
	  $(BIN)/uv pip compile --quiet --no-header --no-annotate \
	    --no-emit-index-url --python-version $$version --extra dev \
	    --output-file requirements/lock-$$version.txt setup.py \
	    requirements/build.in; \
	done

# The site, into site/; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

# transformers and torch, in an environment of their own.
HF := .venv-hugging-face
HF_STAMP := $(HF)/.installed

$(HF_STAMP): benchmarks/hugging_face/requirements.txt
	$(RUNS) -m venv --clear $(HF)
	$(HF)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

check-hugging-face: install $(HF_STAMP)
	rm -rf runs/exported
	$(BIN)/python benchmarks/hugging_face/export.py runs/exported
	$(HF)/bin/python benchmarks/hugging_face/check_exported.py runs/exported

benchmark-peers: install $(HF_STAMP)
	for script in decoding speculation training_step; do \
	  $(BIN)/python benchmarks/$$script.py --peer=$(HF)/bin/python \
	    --run=runs/peers || exit 1; \
	done
	$(BIN)/python benchmarks/draw.py --run=runs/peers

# t5x is on GitHub alone, and so is its environment, unless you have one.
T5X := .venv-t5x
T5X_STAMP := $(T5X)/.installed

$(T5X_STAMP): benchmarks/t5x/requirements.txt benchmarks/t5x/requirements-git.txt
	$(RUNS) -m venv --clear $(T5X)
	$(T5X)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(T5X)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps -r benchmarks/t5x/requirements-git.txt
	touch $@

ifdef T5X_PYTHON
benchmark-t5x: install
else
T5X_PYTHON := $(T5X)/bin/python
benchmark-t5x: install $(T5X_STAMP)
endif
	for script in decoding training_step; do \
	  $(BIN)/python benchmarks/$$script.py --library=t5x \
	    --peer=$(T5X_PYTHON) --run=runs/peers || exit 1; \
	done
	$(BIN)/python benchmarks/draw.py --run=runs/peers

# CTranslate2, in an environment of its own.
CT2 := .venv-ctranslate2
CT2_STAMP := $(CT2)/.installed

$(CT2_STAMP): benchmarks/ctranslate2/requirements.txt
	$(RUNS) -m venv --clear $(CT2)
	$(CT2)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

benchmark-ctranslate2: install $(CT2_STAMP)
	$(BIN)/python benchmarks/decoding.py --library=ctranslate2 \
	  --peer=$(CT2)/bin/python --weights=float32,int8 --run=runs/ctranslate2

clean:
	rm -rf .venv .venv-* build dist *.egg-info
