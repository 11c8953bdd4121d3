"""How similar are these texts and pictures? Without texts and pictures, those of images/test are compared."""

import argparse
import os
import sys

from component.command import output_file, positive_int
from component.image.folder import list_images

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images", "test")
TASKS = ("image-text", "text-text", "image-image", "all")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s --model FOLDER [options]")
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument("--images", nargs="+", default=[], help="pictures, or folders of pictures")
    parser.add_argument("--texts", nargs="+", default=[], help="texts")
    parser.add_argument("--text_file", help="more texts, one a line (UTF-8)")
    parser.add_argument("--task", choices=TASKS, help="default: what the given texts and pictures allow")
    parser.add_argument("--top_k", type=positive_int, default=5, help="matches per query (%(default)s)")
    parser.add_argument("--batch_size", type=positive_int, default=64, help="per forward pass (%(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all matches as JSON")
    parser.add_argument("--csv", type=output_file, metavar="FILE", help="write all matches as CSV")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="write a page with pictures and a heat map")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        images, texts = find_images(args.images), find_texts(args)
        if not (images or texts):
            folder = os.path.relpath(EXAMPLES)
            images, texts = find_images([folder]), read_lines(os.path.join(folder, "texts.txt"))
        tasks = choose_tasks(args.task, bool(images), bool(texts))
        return predict(args, tasks, images, texts)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"predict_similarity.py: {error}", file=sys.stderr)
        return 2


def find_images(names: list[str]) -> list[str]:
    """The names, with each folder replaced by the pictures in it."""
    paths = []
    for name in names:
        if os.path.isdir(name):
            found = list_images(name)
            if not found:
                raise ValueError(f"--images: the folder {name} holds no picture.")
            paths += found
        else:
            paths.append(name)
    return paths


def find_texts(args: argparse.Namespace) -> list[str]:
    if any(not text.strip() for text in args.texts):
        raise ValueError("--texts holds an empty text.")
    return args.texts + (read_lines(args.text_file) if args.text_file else [])


def read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(
            f"{path} is not UTF-8. Convert it first: iconv -f gb18030 -t utf-8 {path} > utf8.txt"
        ) from None
    if not lines:
        raise ValueError(f"{path} holds no text; one a line is expected.")
    return lines


def choose_tasks(task: str | None, has_images: bool, has_texts: bool) -> list[str]:
    if task is None:
        task = "image-text" if has_images and has_texts else "text-text" if has_texts else "image-image"
    tasks = TASKS[:-1] if task == "all" else [task]
    for kind, has_any in (("image", has_images), ("text", has_texts)):
        if not has_any and any(kind in chosen for chosen in tasks):
            raise ValueError(f"--task {task} needs {kind}s: add --{kind}s.")
    return list(tasks)


def predict(args: argparse.Namespace, tasks: list[str], images: list[str], texts: list[str]) -> int:
    from tqdm import tqdm

    from component.checkpoint import load_checkpoint
    from component.embedding import embed_images, embed_texts
    from component.files import write_text
    from component.report.matches import terminal_table, title, write_matches_csv, write_matches_json
    from component.report.page import similarity_page
    from component.similarity import compare

    model, processor = load_checkpoint(args.model)
    sides = {}
    for kind, embed, items in (("image", embed_images, images), ("text", embed_texts, texts)):
        if any(kind in task for task in tasks):
            with tqdm(total=len(items), unit=kind, desc=f"{kind}s", leave=False, delay=1) as bar:
                sides[kind] = embed(model, processor, items, batch_size=args.batch_size, on_batch=bar.update)
    bad_images = sides["image"].bad_images if "image" in sides else {}
    for row, reason in bad_images.items():
        print(f"left out: {images[row]}: {reason}", file=sys.stderr)

    similarities = []
    for task in tasks:
        query, candidate = task.split("-")
        similarity = compare(model, sides[query], sides[candidate])
        similarities += [similarity] if query == candidate else [similarity, similarity.transposed()]
    for similarity in similarities:
        print(f"\n{title(similarity)}\n{terminal_table(similarity, args.top_k, num_queries=20)}")
    if args.json:
        write_matches_json(args.json, similarities, args.top_k)
    if args.csv:
        write_matches_csv(args.csv, similarities, args.top_k)
    if args.html:
        write_text(args.html, similarity_page(similarities, args.top_k))
    return int(bool(bad_images))


if __name__ == "__main__":
    sys.exit(main())
