# What a change goes through, a word each.
.DEFAULT_GOAL := help
.PHONY: help demo check test bench

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo:  ## train on the emoji that come along, then compare the test images with texts (2 minutes)
	python train_clip.py --train_args_file train_args/train_demo.json
	python predict_similarity.py --model output/demo/checkpoint-final --top_k 3

check:  ## style and format, by ruff
	ruff check .
	ruff format --check .

test:  ## all tests, in two processes (9 minutes on 2 cores)
	python -m pytest -n 2

bench:  ## pairs per second beside the published loop and the bare text tower
	python benchmarks/train_bench.py --preset tiny
