# make demo   set up, then the main job on built-in synthetic scenes
# make test   set up, then lint, types and all tests
# make docs   set up, then build the pages of docs/ as a site in docs/site
# make bench  set up, then measure, and rewrite the tables in README.md and docs/performance.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check format docs oracle bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,train,report]'
	touch $@

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/wosac synth --n 8 --seed 0 --out demo/scenarios
	$(BIN)/wosac simulate --policy constant_velocity --scenarios demo/scenarios --out demo/rollouts
	$(BIN)/wosac score demo/rollouts --out demo/run

test: check
	$(BIN)/pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs docs/site

# Record the official scorers' results on synthetic scenes, and what the official package finds in
# archives of ours, in tests/official. The official packages pin TensorFlow 2.13 and get an
# environment of their own; the older releases' metric code runs on the same TensorFlow, from a
# folder each.
ORACLE := .venv-oracle
RELEASES := $(ORACLE)/releases
$(ORACLE)/.installed:
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/pip install --quiet 'waymo-open-dataset-tf-2-12-0==1.6.7'
	$(ORACLE)/bin/pip install --quiet --no-deps --target $(RELEASES)/2025 'waymo-open-dataset-tf-2-12-0==1.6.7'
	$(ORACLE)/bin/pip install --quiet --no-deps --target $(RELEASES)/2024 'waymo-open-dataset-tf-2-12-0==1.6.4'
	$(ORACLE)/bin/pip install --quiet --no-deps --target $(RELEASES)/2023 'waymo-open-dataset-tf-2-11-0==1.6.1'
	touch $@

oracle: $(INSTALLED) $(ORACLE)/.installed
	$(BIN)/python tests/official/make_bundles.py
	$(BIN)/python tests/official/make_doctor_scene.py
	for challenge in scenario_gen_2025 2025 2024 2023; do \
	  for folder in tests/official wosac_toolkit/recorded; do \
	    PYTHONPATH=$(RELEASES)/$${challenge#scenario_gen_} $(ORACLE)/bin/python \
	      tests/official/record.py $$challenge $$folder || exit 1; \
	  done; \
	done
	PYTHONPATH=tests $(BIN)/python tests/official/make_packs.py $(ORACLE)/packs
	$(ORACLE)/bin/python tests/official/check_pack.py --challenge sim_agents \
	  $(ORACLE)/packs/sim_agents.tar.gz tests/official/scenes.tfrecord.gz \
	  > tests/official/packed.json
	$(ORACLE)/bin/python tests/official/check_pack.py --challenge scenario_gen \
	  $(ORACLE)/packs/scenario_gen.tar.gz tests/official/scenario_gen/scenes.tfrecord.gz \
	  > tests/official/scenario_gen/packed.json

# Under ten minutes on a quiet machine, without the comparison under five. The comparison needs the
# oracle's environment, or another with the official package:
#   make bench ORACLE_PYTHON=/path/to/python
ORACLE_PYTHON ?= $(ORACLE)/bin/python
RESULTS := benchmarks/results
bench: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,train]'
	$(BIN)/python benchmarks/targets.py --json $(RESULTS)/targets.json
	$(BIN)/python benchmarks/count_work.py --json $(RESULTS)/work.json
	if [ -x $(ORACLE_PYTHON) ]; then \
	  $(BIN)/python benchmarks/compare.py --official $(ORACLE_PYTHON) \
	    --json $(RESULTS)/compare.json; \
	fi
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/simulation.py --json $(RESULTS)/simulation.json
	$(BIN)/python benchmarks/tables.py $(RESULTS) README.md docs/performance.md

clean:
	rm -rf demo docs/site $(VENV) $(ORACLE)
