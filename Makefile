# Needs Python 3.11 or newer, pip and make; everything else is installed into .venv.
PYTHON ?= python3
PIP_ARGS ?=
PY = .venv/bin/python
# Idle threads must not spin beside a browser and a notebook server.
export OMP_WAIT_POLICY = passive
export GOMP_SPINCOUNT = 0

.PHONY: help lab test test-gpu bench lint picture table train clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

lab: .venv/lab.done  ## open JupyterLab on the tour; LAB_ARGS= are passed to it
	.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks/00_tour.ipynb

test: .venv/test.done browser lint  ## run what CI runs: lint, types, tests, notebooks, browser
	$(PY) -m pytest $(ARGS)

test-gpu: .venv/test.done  ## run the tests of core and techniques on a GPU with CUDA; no browser
	$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'PyTorch finds no GPU with CUDA here')"
	CONVIS_TEST_DEVICE=cuda $(PY) -m pytest -m "not browser" tests/test_gpu.py tests/test_techniques.py \
		tests/network tests/attribution tests/synthesis tests/dataset $(ARGS)

bench: .venv/test.done browser  ## print the benchmarks
	$(PY) -m benchmarks $(ARGS)

picture: .venv/test.done browser  ## take the screenshot of the README
	$(PY) -m benchmarks.picture

table: .venv/test.done  ## write COMPATIBILITY.md, what works on which networks
	PYTHONPATH=tests $(PY) -m compatibility > COMPATIBILITY.md.new && mv COMPATIBILITY.md.new COMPATIBILITY.md

train: .venv/lab.done  ## train the demo networks
	$(PY) -m convis_widgets.demo.train

lint: .venv/test.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:  ## remove the virtual environment
	rm -rf .venv

.venv/%.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "convis-widgets needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing; PyTorch with CUDA takes 6 GB on disk and some minutes (the README says how to get the one for CPUs)"
	$(PY) -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[lab,segmentation$(if $(filter test,$*),$(comma)test)]'
	touch $@

comma := ,

.PHONY: browser
browser:  # Chromium for the tests, by apt where it is missing and possible
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	echo "installing Chromium for the tests"; \
	if [ "$$(id -u)" = 0 ]; then as=; else as="sudo -n"; fi; \
	{ command -v apt-get && $$as apt-get update -qq && $$as apt-get install -qq -y chromium; } >/dev/null || \
	echo "Chromium is missing and could not be installed; the tests in a browser will fail until it is"
