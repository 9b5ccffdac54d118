# make demo: set up and generate; make test: set up and test; make test-system, lint, docs: what CI checks besides.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where a search visibly beats best-of-N: a showcase of pipelines/packaged.py, with how often it does; in float32, as that
# was measured.
DEMO ?= signs
PROMPT ?= a blue sign that says "LIBRARY" in white
BUDGET ?= 5images
SEED ?= 60

# The processes of a run share what Python compiles, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-system test-slow test-gpu test-comfyui lowest notebooks lint docs measure format release rehearse clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What a search needs, and what reads signs.
$(VENV)/.search: pyproject.toml | $(BIN)/python
	@echo "installing torch, diffusers and what else a search needs into $(VENV), a minute or two"
	$(BIN)/python -m pip install --quiet -e '.[ocr]'
	@touch $@

# What developers need, which includes what a search needs.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing what the tests, the linters and the documentation need into $(VENV), some minutes"
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(VENV)/.search $@

demo: $(VENV)/.search
	$(BIN)/ttsnap generate '$(PROMPT)' --model $(DEMO) --budget "$(BUDGET)" --seed $(SEED) --compare best-of-n --dtype float32

test: $(VENV)/.installed
	$(BIN)/pytest -n auto -m "not slow and not gpu and not system"

# Servers, Ray, a browser, notebooks, the site, a build of the package.
test-system: $(VENV)/.installed
	$(BIN)/pytest -n auto -m "system and not slow and not gpu"

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m "slow and not gpu"

# On this machine's accelerator; it ends with what to send.
test-gpu: $(VENV)/.installed
	$(BIN)/pytest tests/gpu -m gpu

# Searches inside ComfyUI itself: make test-comfyui COMFYUI_PATH=/path/to/ComfyUI. Installs nothing, neither ComfyUI nor what it
# requires.
test-comfyui:
	@test -f "$(COMFYUI_PATH)/comfy/samplers.py" || { echo "COMFYUI_PATH is '$(COMFYUI_PATH)', which is no checkout of" \
		"ComfyUI; clone it, install its requirements.txt into $(VENV), and give its folder"; exit 2; }
	COMFYUI_PATH="$(abspath $(COMFYUI_PATH))" $(BIN)/python -m pytest tests/comfyui

# The fast tests at the lowest versions that pyproject.toml allows, in an environment of their own.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	$(VENV)-lowest/bin/pytest -n auto -m "not slow and not gpu and not system"

# Executes them in place and strips what differs from run to run.
notebooks: $(VENV)/.installed
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p ttsnap
	$(BIN)/python scripts/documented_calls.py
	$(BIN)/python scripts/measure.py --budget

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Signs of how simple the code is.
measure:
	@$(PYTHON) scripts/measure.py

# Warnings are errors, broken links and references among them. Nothing is fetched, and no notebook is run.
docs: $(VENV)/.installed
	@echo "building the documentation, a minute or two"
	$(BIN)/sphinx-build -W --keep-going -n -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

# make release VERSION=0.2.0: dates the changelog, commits and tags.
release:
	$(PYTHON) scripts/release.py $(VERSION)

# What a release does short of publishing: wheel and recipe of the last commit, and the README's commands in an environment of
# their own.
rehearse: $(VENV)/.installed
	$(BIN)/python scripts/rehearse.py

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info
