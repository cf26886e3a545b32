# Every target sets itself up: a Python >= 3.11 and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# one thread: the suite's arrays are small, and results must not depend on the machine's cores
export OMP_NUM_THREADS ?= 1

# what `make bench` measures, in an environment that has the released baselines too
VENV_BENCH ?= .venv-bench
TOPICS := advantage confidence entropy

.PHONY: test demo bench lint format types unit package test-trl test-easyr1 bench-easyr1 test-others nightly clean

test: lint types unit package test-trl  ## everything CI runs
	@echo "all checks passed"

demo: $(VENV)/.installed-demo  ## the paper's training loop in miniature: about 3 minutes
	$(BIN)/python -m benchmarks.rlvr

bench: $(VENV_BENCH)/.installed  ## measure the CPU set and write docs/benchmarks.md: under 5 minutes
	for topic in $(TOPICS); do $(VENV_BENCH)/bin/python -m benchmarks.$$topic || exit 1; done
	$(VENV_BENCH)/bin/python -m benchmarks.page

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev  ## tests, docstring and documentation examples, coverage of 100%
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

package: $(VENV)/.installed-dev  ## build wheel and sdist, and import each in an environment of its own
	$(BIN)/python tests/check_package.py

test-trl: $(VENV)-trl/.installed $(VENV)-trl-oldest/.installed  ## the TRL adapter on the newest and the oldest TRL tested
	$(VENV)-trl/bin/pytest tests/trl
	$(VENV)-trl-oldest/bin/pytest tests/trl

# EasyR1 is on no package index: EASYR1 is the path of a checkout (docs/easyr1.md). Without it its tests run on verl 0.2, the
# release it was made from, and say what that leaves out.
EASYR1 ?=
test-easyr1: $(VENV)-easyr1/.parent  ## the EasyR1 adapter
	PYTHONPATH=$(EASYR1) $(VENV)-easyr1/bin/pytest tests/easyr1

$(VENV)-easyr1/.parent: $(VENV)-easyr1/.installed
	$(@D)/bin/pip install --quiet --no-deps verl==0.2
	touch $@

bench-easyr1: $(VENV)-easyr1/.installed  ## EasyR1's advantage stage against ours; needs EASYR1
	PYTHONPATH=$(EASYR1) $(VENV)-easyr1/bin/python -m benchmarks.easyr1_cost

test-others: $(VENV)-others/.installed  ## the example for SkyRL in docs/other-trainers.md
	$(VENV)-others/bin/pytest tests/others

nightly: $(VENV)/.installed-dev  ## the properties, 25 times as many examples
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest -m "not inductor" tests

$(VENV)/.installed-dev: pyproject.toml constraints.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-demo: pyproject.toml constraints.txt requirements-demo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-demo.txt
	touch $@

$(VENV_BENCH)/.installed: pyproject.toml constraints.txt $(wildcard requirements-bench*.txt)
	test -x $(VENV_BENCH)/bin/python || $(PYTHON) -m venv $(VENV_BENCH)
	$(VENV_BENCH)/bin/pip install --quiet --requirement requirements-bench.txt
	$(VENV_BENCH)/bin/pip install --quiet --no-deps --requirement requirements-bench-trainers.txt
	touch $@

$(VENV)-%/.installed: requirements-%.txt constraints.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* dist out .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
