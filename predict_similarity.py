"""Compare texts and images; without any, those of images/test are compared."""

import argparse
import os
import sys

from component.ground.command import run_script
from component.ground.options import Parser, expected, input_file, output_file, unicode_text, whole_number
from component.ground.plain_text import one_line
from component.ground.quick_imports import quick_imports
from component.pairs.caption import is_caption

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images", "test")
TASKS = ("image-text", "text-text", "image-image", "all")  # of component.similarity, which takes seconds to import


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        usage="%(prog)s --model FOLDER [options]",
        epilog="The exit status is 1 if an image could not be read.",
    )
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument("--images", nargs="+", default=[], help="images, or folders of images")
    parser.add_argument("--texts", nargs="+", default=[], type=caption, help="texts")
    parser.add_argument("--text_file", type=input_file, help="more texts, one per line (UTF-8)")
    parser.add_argument("--task", choices=TASKS, help="default: what the given texts and images allow")
    parser.add_argument("--top_k", type=whole_number("matches"), default=5, help="matches per query (%(default)s)")
    parser.add_argument("--batch_size", type=whole_number("items"), default=64, help="per forward pass (%(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all matches as JSON")
    parser.add_argument("--csv", type=output_file, metavar="FILE", help="write all matches as CSV")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write a page with images and a heat map")
    args = parser.parse_args()
    parser.require_distinct(args, "images", "text_file", "json", "csv", "html")
    return args


def caption(given: str) -> str:
    """Option type: a text that shows something."""
    if not is_caption(given):
        raise expected(given, "a text with a visible character")
    return unicode_text(given)


def main() -> int:
    args = parse_args()

    with quick_imports():
        from component.ground.lock import sole_writers
        from component.image.folder import image_files
        from component.pairs.text_file import read_lines
        from component.similarity import choose_tasks

    images, texts = image_files(args.images), list(args.texts)
    if args.text_file:
        texts += read_lines(args.text_file).values()
    if not (images or texts):
        folder = os.path.relpath(EXAMPLES)
        images, texts = image_files([folder]), list(read_lines(os.path.join(folder, "texts.txt")).values())
    tasks = choose_tasks(args.task, bool(images), bool(texts))
    with sole_writers(args.json, args.csv, args.html):
        return predict(args, tasks, images, texts)


def predict(args: argparse.Namespace, tasks: list[str], images: list[str], texts: list[str]) -> int:
    from component.ground.files import write_text
    from component.report.matches import terminal_table, title, write_matches_csv, write_matches_json
    from component.similarity import compare_at

    sides, logit_scale = embed_quickly(args, tasks, texts) or embed_with_model(args, tasks, images, texts)
    bad_images = sides["image"].bad_images if "image" in sides else {}
    for row, reason in bad_images.items():
        print(one_line(f"left out: {images[row]}: {reason}"), file=sys.stderr)

    similarities = []
    for task in tasks:
        query, candidate = task.split("-")
        similarity = compare_at(logit_scale, sides[query], sides[candidate])
        similarities += [similarity] if query == candidate else [similarity, similarity.transposed()]
    for similarity in similarities:
        print(f"\n{title(similarity)}\n{terminal_table(similarity, args.top_k, num_queries=20)}")
    if args.json:
        write_matches_json(args.json, similarities, args.top_k)
    if args.csv:
        write_matches_csv(args.csv, similarities, args.top_k)
    if args.html:
        from component.report.similarity_page import similarity_page

        write_text(args.html, similarity_page(similarities, args.top_k))
    return int(bool(bad_images))


def embed_quickly(args: argparse.Namespace, tasks: list[str], texts: list[str]):
    """Kind → `Embedded`, and the logit_scale; None if this takes more than the text tower in numpy."""
    import torch

    from component.embedded import Embedded
    from component.numpy_text_tower import MOST_TEXTS, open_text_tower

    tower = open_text_tower(args.model) if tasks == ["text-text"] and len(texts) <= MOST_TEXTS else None
    if tower is None:
        return None
    embeds = torch.from_numpy(tower.embed_texts(texts))
    return {"text": Embedded("text", texts, embeds, list(range(len(texts))))}, tower.logit_scale


def embed_with_model(args: argparse.Namespace, tasks: list[str], images: list[str], texts: list[str]):
    """Kind → `Embedded`, and the logit_scale."""
    with quick_imports():
        from functools import partial

        from tqdm import tqdm

        from component.checkpoint import load_checkpoint, load_identified
        from component.embedding import embed_images, embed_texts

    # With the identity, which is kept, the next call can do without the model.
    model, processor = load_identified(args.model)[:2] if tasks == ["text-text"] else load_checkpoint(args.model)
    sides = {}
    by_name = partial(embed_images, folder=os.sep)  # a missing folder is a mistyped name, not an unmounted disk
    for kind, embed, items in (("image", by_name, images), ("text", embed_texts, texts)):
        if any(kind in task for task in tasks):
            with tqdm(total=len(items), unit=kind, desc=f"{kind}s", leave=False, delay=1) as bar:
                sides[kind] = embed(model, processor, items, batch_size=args.batch_size, on_batch=bar.update)
    return sides, model.logit_scale.exp().item()


if __name__ == "__main__":
    sys.exit(run_script(main))
