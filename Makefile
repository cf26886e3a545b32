# Every target sets itself up: a Python >= 3.11 and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# one thread: the suite's arrays are small, and results must not depend on the machine's cores
export OMP_NUM_THREADS ?= 1
# compiling takes longer than installing: a module is compiled when it is first imported, and kept. But for trainers, whose
# workers on Ray would all begin with that
export PYTHONDONTWRITEBYTECODE :=

# what `make bench` measures, in an environment that has the released baselines too
VENV_BENCH ?= .venv-bench
TOPICS := advantage confidence entropy

.PHONY: test lint records format types unit newest compiled fusion kernels kernels-80 kernels-90 package nightly demo bench evidence evidence-all docs dist fuzz endurance mutants clean
.PHONY: test-trl test-swift test-entropy test-verl train-verl test-verl-older test-openrlhf test-openrlhf-older test-easyr1 test-others test-unsloth test-axolotl
.PHONY: bench-verl bench-openrlhf bench-easyr1

# JOBS checks at a time, the longest first; what a check prints comes in one piece if this make can do that
JOBS ?= 2
CHECKS := unit lint types compiled test-verl test-trl test-swift fusion test-openrlhf test-entropy test-unsloth docs package
test:  ## everything CI runs: about 35 minutes on two idle cores, 7 GB of disk
	@$(MAKE) --no-print-directory $(VENV)/.installed-dev  # else the longest check would wait for all environments
	@$(MAKE) --no-print-directory --jobs=$(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync) $(CHECKS)
	@echo "all checks passed"

demo: $(VENV)/.installed-demo  ## the paper's training loop in miniature: about 3 minutes
	$(BIN)/python -m benchmarks.rlvr

# --- the library ---

lint: records
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

records: $(VENV)/.installed-dev  ## the committed records against the pages and pictures made from them
	$(BIN)/pytest -q tests/pages

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev  ## tests, docstring and documentation examples, coverage of 100%
	$(BIN)/coverage run -m pytest -m "not inductor"
	$(BIN)/coverage report

newest: $(VENV)-newest/.installed  ## the same tests on the newest release of every package: torch is a CUDA build of several GB
	$(VENV)-newest/bin/pytest -m "not inductor"

compiled: $(VENV)/.installed-dev  ## the tests that compile with inductor: they need a C++ compiler
	$(BIN)/pytest -m inductor tests

kernels: kernels-80 kernels-90  ## what a GPU would run, without one: kernels against tests/records/kernels.csv, and their bits

kernels-80 kernels-90: kernels-%: $(VENV)-kernels/.installed
	KERNELS_CAPABILITY=$* $(VENV)-kernels/bin/pytest tests/kernels

fusion: $(VENV)-kernels/.installed  ## the kernels of the first call of every function, for one GPU: what make test has of it
	$(VENV)-kernels/bin/pytest tests/kernels/test_kernels_record.py --first

package: $(VENV)/.installed-dev  ## build wheel and sdist, and import each in an environment of its own
	$(BIN)/python tests/check_package.py

nightly: $(VENV)/.installed-dev  ## the properties, 50 times as many examples
	HYPOTHESIS_PROFILE=nightly $(BIN)/pytest -m "not inductor" tests

fuzz: $(VENV)/.installed-dev  ## 100,000 calls with anything, checked against the reference; writes tests/records/fuzz.csv
	$(BIN)/python tests/fuzz.py

endurance: $(VENV)/.installed-dev  ## 10,000 calls: memory and compilations; writes tests/records/endurance.csv
	$(BIN)/python tests/endurance.py

mutants: $(VENV)-mutants/.installed  ## mutation testing; stop and resume at will; writes tests/records/mutants.csv
	$(VENV)-mutants/bin/python tests/mutants.py

# --- trainers and data tools, each in an environment of its own ---

test-trl: $(VENV)-trl/.installed $(VENV)-trl-oldest/.installed  ## the TRL adapter on the newest and the oldest TRL tested
	$(VENV)-trl/bin/pytest tests/trl
	$(VENV)-trl-oldest/bin/pytest tests/trl

test-unsloth: $(VENV)-unsloth/.installed  ## the TRL adapter on Unsloth
	$(VENV)-unsloth/bin/pytest tests/unsloth

test-axolotl: $(VENV)-axolotl/.installed  ## the TRL adapter in trainings by axolotl
	$(VENV)-axolotl/bin/pytest tests/axolotl

test-entropy: $(VENV)-trl/.installed $(VENV)-trl-oldest/.installed  ## entropies on two versions of transformers, in datasets, on Ray
	$(VENV)-trl/bin/pytest tests/entropy
	$(VENV)-trl-oldest/bin/pytest tests/entropy/test_entropy_encoders.py

test-swift: $(VENV)-swift/.installed  ## the ms-swift adapter on the ms-swift tested, with short trainings
	$(VENV)-swift/bin/pytest tests/swift

test-verl: $(VENV)-verl/.installed  ## the verl adapter, with a short training by main_ppo
	$(VENV)-verl/bin/pytest tests/verl

train-verl: $(VENV)-verl/.installed  ## whole trainings by main_ppo on text and images, v0 and v1: 15 minutes
	$(VENV)-verl/bin/pytest tests/verl -m training

# older releases, each without what it requires, before the environment that has it
VERL_OLDER := 0.6.1 0.7.0 0.7.1 0.8.0
test-verl-older: $(VERL_OLDER:%=$(VENV)-verl-older/older/%/.installed) $(VENV)-verl/older/0.9.0/.installed  ## the verl adapter on older verl
	for version in $(VERL_OLDER); do \
		PYTHONPATH=$(abspath $(VENV)-verl-older)/older/$$version $(VENV)-verl-older/bin/pytest tests/verl || exit 1; \
	done
	PYTHONPATH=$(abspath $(VENV)-verl)/older/0.9.0 $(VENV)-verl/bin/pytest tests/verl

$(VENV)-verl-older/older/%/.installed: | $(VENV)-verl-older/.installed
	$(VENV)-verl-older/bin/pip install --quiet --no-deps --target $(@D) verl==$*
	touch $@

$(VENV)-verl/older/%/.installed: | $(VENV)-verl/.installed
	$(VENV)-verl/bin/pip install --quiet --no-deps --target $(@D) verl==$*
	touch $@

test-openrlhf: $(VENV)-openrlhf/.installed  ## the OpenRLHF adapter on the newest OpenRLHF tested
	$(VENV)-openrlhf/bin/pytest tests/openrlhf

OPENRLHF_OLDER := 0.10.2 0.10.3 0.10.4 0.11.0 0.11.1
OPENRLHF_REFUSED := 0.8.11 0.9.10 0.10.0 0.10.1
test-openrlhf-older: $(patsubst %,$(VENV)-openrlhf/older/%/.installed,$(OPENRLHF_OLDER) $(OPENRLHF_REFUSED))  ## older OpenRLHF, refused ones too
	for version in $(OPENRLHF_REFUSED) $(OPENRLHF_OLDER); do \
		PYTHONPATH=$(abspath $(VENV)-openrlhf)/older/$$version $(VENV)-openrlhf/bin/pytest tests/openrlhf || exit 1; \
	done

$(VENV)-openrlhf/older/%/.installed: | $(VENV)-openrlhf/.installed
	$(VENV)-openrlhf/bin/pip install --quiet --no-deps --target $(@D) openrlhf==$*
	touch $@

# EasyR1 is on no package index: EASYR1 is the path of a checkout (docs/easyr1.md). Without it its tests run on verl 0.2, the
# release it was made from, and say what that leaves out.
EASYR1 ?=
test-easyr1: $(VENV)-easyr1/.parent  ## the EasyR1 adapter
	PYTHONPATH=$(EASYR1) $(VENV)-easyr1/bin/pytest tests/easyr1

$(VENV)-easyr1/.parent: $(VENV)-easyr1/.installed
	$(@D)/bin/pip install --quiet --no-deps verl==0.2
	touch $@

# SkyRL is 0.4.0 on Python 3.12 (PYTHON=python3.12 VENV=.venv-3.12), 0.3.0 before. SLIME, MILES, NEMO_RL, RLLM, PRIME_RL and
# TORCHTITAN are paths of checkouts, for which requirements/others-checkouts.txt has to be installed; without one, stand-ins
test-others: $(VENV)-others/.installed  ## the examples of docs/other-trainers.md
	$(VENV)-others/bin/pytest -c tests/others/pytest.ini tests/others tests/test_other_*.py

# --- measurements ---

bench: $(VENV_BENCH)/.installed  ## measure the CPU set and write docs/benchmarks.md: under 5 minutes
	for topic in $(TOPICS); do $(VENV_BENCH)/bin/python -m benchmarks.$$topic || exit 1; done
	$(VENV_BENCH)/bin/python -m benchmarks.page

bench-verl: $(VENV)-verl/.installed  ## verl's advantage stage and ours, side by side
	$(VENV)-verl/bin/python -m benchmarks.verl_cost

bench-openrlhf: $(VENV)-openrlhf/.installed  ## OpenRLHF's advantage stage and ours, side by side
	$(VENV)-openrlhf/bin/python -m benchmarks.openrlhf_cost

bench-easyr1: $(VENV)-easyr1/.installed  ## EasyR1's advantage stage against ours; needs EASYR1
	PYTHONPATH=$(EASYR1) $(VENV)-easyr1/bin/python -m benchmarks.easyr1_cost

evidence: $(VENV)-evidence/.installed  ## mechanism, and 4 arms x 6 seeds x 25 steps: under 10 minutes
	$(VENV)-evidence/bin/python -m studies.evidence quick

evidence-all: $(VENV)-evidence/.installed  ## every run that has no record yet: hours; may be killed, and goes on
	$(VENV)-evidence/bin/python -m studies.evidence run
	$(VENV)-evidence/bin/python -m studies.evidence collect
	$(VENV)-evidence/bin/python -m studies.evidence page

# --- documentation and releases ---

docs: $(VENV)-docs/.installed  ## the documentation as a site, out/site/index.html; a broken link or reference fails
	rm -rf out/site
	$(VENV)-docs/bin/sphinx-build --fresh-env --fail-on-warning --keep-going --nitpicky --quiet docs out/site
	$(VENV)-docs/bin/python tests/check_site.py out/site

dist: $(VENV)-release/.installed  ## wheel and sdist in dist/, checked, installed into a clean environment and tested there
	rm -rf dist
	$(VENV)-release/bin/python -m build
	$(VENV)-release/bin/twine check --strict dist/*
	$(VENV)-release/bin/check-wheel-contents dist
	$(VENV)-release/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)-release/bin/python tests/check_dist.py dist

# --- environments ---

# What all of them need is installed once, in this one (torch alone is 0.8 GB), and a .pth file shows it to the others. pip
# leaves what it finds there, and what an environment needs in another version goes into that environment, before it.
BASE := $(VENV)-base
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
define environment
test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
$(BASE)/bin/python -c '$(SITE)' > "$$($(@D)/bin/python -c '$(SITE)')/base.pth"
endef

$(BASE)/.installed: requirements/base.txt requirements/constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-compile --requirement $<
	touch $@

$(VENV)/.installed-dev $(VENV)/.installed-demo: $(VENV)/.installed-%: $(BASE)/.installed pyproject.toml
	$(environment)
	$(BIN)/pip install --quiet --no-compile --constraint requirements/constraints.txt --editable ".[$*]"
	touch $@

$(VENV)-evidence/.installed: $(BASE)/.installed pyproject.toml
	$(environment)
	$(@D)/bin/pip install --quiet --no-compile --constraint requirements/constraints.txt --editable ".[evidence]"
	touch $@

$(VENV_BENCH)/.installed: $(BASE)/.installed pyproject.toml $(wildcard requirements/bench*.txt)
	$(environment)
	$(@D)/bin/pip install --quiet --no-compile --requirement requirements/bench.txt
	$(@D)/bin/pip install --quiet --no-compile --no-deps --requirement requirements/bench-trainers.txt
	touch $@

# nothing is capped here, so nothing comes from the common environment
$(VENV)-newest/.installed: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable ".[dev]"
	touch $@

# what cannot be installed with all that it requires comes from a file of its own
$(VENV)-%/.installed: requirements/%.txt $(BASE)/.installed pyproject.toml $(wildcard requirements/*-nodeps.txt)
	$(environment)
	$(@D)/bin/pip install --quiet --requirement $<
	test ! -e requirements/$*-nodeps.txt || $(@D)/bin/pip install --quiet --no-deps --requirement requirements/$*-nodeps.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* dist out .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
