# Needs Python 3.10 or newer. `make venv` installs the requirements of the other targets.
PYTHON ?= python3
BIN := .venv/bin

RUN := demo/runs/checkpoint/GST_somethingv1_resnet14_alpha4_beta2_segment8_demo
DATA := --dataset somethingv1 --root_path demo/data
MODEL := --arch resnet14 --input_size 48 --amp auto
RECIPE := --epochs 5 -b 6 --lr 0.006 --lr_schedule cosine

.PHONY: venv test test-fast demo

venv: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("error: Python 3.10 or newer is needed, \
	not %d.%d; name one, as in: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing PyTorch and the other requirements into .venv: up to 6 GB of disk (on Linux about 3 GB of"
	@echo "downloads), from one minute to a quarter of an hour, depending on the network."
	$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --retries 1 tqdm >.venv/pip.log 2>&1 || { \
	echo "error: pip cannot install from its package index; check the network. Its messages: .venv/pip.log" >&2; exit 1; }
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: venv
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

# --resume auto: a finished demo is not trained again, an interrupted one continues.
demo: venv
	$(BIN)/python tools/make_motion_dataset.py demo/data
	$(BIN)/python main.py $(DATA) $(MODEL) $(RECIPE) --store_name demo --checkpoint_dir demo/runs --resume auto
	$(BIN)/python test_models.py --weights $(RUN)_best.pth.tar $(DATA)
