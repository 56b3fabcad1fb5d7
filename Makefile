# demo: from nothing to a trained model.   test: the whole suite.   check: linters, changes nothing.   fix: formatters.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*.py csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*)
CXX_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*)
RUN_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-gpu check fix bench bench-check native clean

demo: $(VENV)/installed
	$(BIN)/python -m setr_fast.train --run-dir $(RUN_DIR)
	@echo "pictures to look at: $(RUN_DIR)/overlays"

# A worker per core with one thread each; a file's tests stay together, since they share what is slow to set up.
test: $(VENV)/test-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-gpu: $(VENV)/test-tools
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/test-tools
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

# Rows of this tree, which may be dirty, against the committed ones of the same machine.
bench-check: $(VENV)/test-tools
	@$(BIN)/python -m pytest benchmarks/test_ops.py --benchmark-only -q --record-to build/rows.jsonl; ended=$$?; \
	$(BIN)/python -m benchmarks.check build/rows.jsonl --again build/rows-again.jsonl && exit $$ended

check: $(VENV)/dev-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs setr_fast kernels csrc benchmarks tests Makefile

fix: $(VENV)/dev-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

native: $(VENV)/installed
	$(BIN)/python setup.py build_ext --inplace

# torch first: the isolated build of the kernels then finds its headers and fetches no second copy.
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	@$(BIN)/python -m setr_fast.doctor | sed -n '/compiled extension/,/^$$/p'
	touch $@

$(VENV)/test-tools: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/dev-tools: $(VENV)/test-tools
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build setr_fast/*.so *.egg-info
