"""How well a gallery detects that it has no image for a text. Run it on a gallery of images with captions:

    python search_image.py index --model output/demo/checkpoint-final --gallery output/demo_test \\
        --images data/demo/test.csv --image_path data/demo/images
    python benchmarks/presence_bench.py --gallery output/demo_test

Each caption is searched twice: with its image in the gallery and without it. AUROC is the probability that, for two
captions drawn at random, the search with the image gives the more concentrated answer.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from component.search.open import open_searcher
from component.search.presence import SCALE, TOP, absence_threshold, concentration, log_sum_exp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", required=True, metavar="FOLDER", help="of images with captions")
    searcher = open_searcher(parser.parse_args().gallery)
    images = [image for image in searcher.gallery.images() if image.file.caption]
    if not images:
        parser.error("the gallery has no captions: index a table (CSV, Parquet) or shards")
    vectors = torch.from_numpy(searcher.gallery.vectors()).float()[[image.row for image in images]]
    texts = torch.from_numpy(searcher.towers.embed_texts([image.file.caption for image in images]))
    cosines = texts @ vectors.T
    own = torch.eye(len(images), dtype=torch.bool)
    found_first = cosines.argmax(dim=1) == torch.arange(len(images))
    without_own = cosines.masked_fill(own, -torch.inf)
    threshold = absence_threshold(searcher.gallery)
    print("| captions | measure | AUROC | judged absent (image present) | judged absent (image removed) |")
    print("|---|---|--:|--:|--:|")
    for captions, rows in (("all", torch.ones_like(found_first)), ("whose image is found first", found_first)):
        for name, measure, limit in (("top cosine", best_cosine, None), ("concentration", share_of_best, threshold)):
            present, absent = measure(cosines[rows]), measure(without_own[rows])
            shares = [
                "" if limit is None else f"{(values < limit).float().mean():.0%}" for values in (present, absent)
            ]
            print(
                f"| {captions} ({int(rows.sum()):,}) | {name} | {auroc(present, absent):.3f} | {' | '.join(shares)} |"
            )


def best_cosine(cosines: Tensor) -> Tensor:
    return cosines.amax(dim=1)


def share_of_best(cosines: Tensor) -> Tensor:
    best = cosines.topk(min(TOP, cosines.shape[1])).values
    return torch.from_numpy(concentration(best.numpy(), log_sum_exp(SCALE * cosines.numpy())))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive value is above a negative one; ties count half."""
    above = (positive[:, None] > negative).float().mean() + 0.5 * (positive[:, None] == negative).float().mean()
    return above.item()


if __name__ == "__main__":
    main()
