# `make demo` and `make test` need nothing but Python 3.10 or newer; `make venv` makes what both use.
PYTHON ?= python3
BIN := .venv/bin

RUN := demo/runs/checkpoint/GST_somethingv1_resnet14_alpha4_beta2_segment8_demo
DATA := --dataset somethingv1 --root_path demo/data
MODEL := --arch resnet14 --input_size 48 --amp auto
RECIPE := --epochs 8 -b 12 --lr 0.02 --lr_schedule cosine --warmup_epochs 2

.PHONY: venv test demo

venv: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# --resume auto: a finished demo is not trained again, an interrupted one goes on.
demo: venv
	$(BIN)/python tools/make_demo_data.py demo/data
	$(BIN)/python main.py $(DATA) $(MODEL) $(RECIPE) --store_name demo --checkpoint_dir demo/runs --resume auto
	$(BIN)/python test_models.py --weights $(RUN)_best.pth.tar $(DATA)
