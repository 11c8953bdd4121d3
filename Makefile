# Common commands.
.DEFAULT_GOAL := help
.PHONY: help demo check test test-fast bench images

CORE = argument command docs files image learning_rates loss metrics model pair_table rooms sampler shards similarity train

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo:  ## train on the emoji of this repository, then compare the test images with texts (2 minutes)
	python train_clip.py --train_args_file train_args/train_demo.json
	python predict_similarity.py --model output/demo/checkpoint-final --top_k 3

check:  ## style and format, by ruff
	ruff check .
	ruff format --check .

test:  ## all tests, in two processes (6 minutes on 2 cores)
	python -m pytest -n 2

test-fast:  ## the tests of the core, from a table of pairs to a trained model (1 minute)
	python -m pytest -n 2 $(CORE:%=tests/test_%.py)

bench:  ## pairs per second, next to the published loop and the bare text tower
	python benchmarks/train_bench.py --preset tiny

images:  ## the screenshots of the README, from the demo's checkpoint
	python images/draw_pages.py
