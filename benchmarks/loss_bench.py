"""Peak memory and time of the contrastive loss with its gradients, beyond embeddings of width 512.

    python benchmarks/loss_bench.py [--pairs 4096 16384 65536] [--plain_up_to 16384]

Each figure is from a process of its own: the highest resident memory, less that before the loss.
"""

import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = """
import resource, sys, time, torch
from component import loss

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

pairs, plain = int(sys.argv[1]), sys.argv[2] == "plain"
if plain:
    loss._LOGITS_PER_BLOCK = pairs**2
image, text = (torch.nn.functional.normalize(torch.randn(pairs, 512)).requires_grad_() for _ in range(2))
scale = torch.tensor(50.0, requires_grad=True)
loss.clip_loss(image[:64], text[:64], scale).backward()  # allocates the gradients, which belong to the embeddings
before, start = peak(), time.perf_counter()
loss.clip_loss(image, text, scale).backward()
print(f"{pairs:>8} {sys.argv[2]:<8} {peak() - before:>10.0f} {time.perf_counter() - start:>10.2f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--plain_up_to", type=int, default=16_384, help="more pairs than these only in blocks")
    options = parser.parse_args()
    print(f"{'pairs':>8} {'loss':<8} {'MB beyond':>10} {'seconds':>10}", flush=True)
    for pairs in options.pairs:
        for way in ("plain", "ours"):
            if way == "ours" or pairs <= options.plain_up_to:
                subprocess.run([sys.executable, "-c", SCRIPT, str(pairs), way], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
