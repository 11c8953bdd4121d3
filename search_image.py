"""Search your own images: index them once, then ask in Chinese, by an image, or in the browser."""

import argparse
import os
import sys

from component.ground.command import run_script
from component.ground.options import (
    Parser,
    expected,
    input_file,
    number,
    output_file,
    output_folder,
    part,
    share,
    unicode_text,
    whole_number,
)
from component.ground.plain_text import one_line
from component.ground.quick_imports import quick_imports
from component.pairs.columns import columns_option

PORT = 8642


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="index | embed | query | serve | export")

    index = commands.add_parser("index", help="bring a gallery up to date: new, changed and deleted images")
    index.add_argument("--model", help="BertCLIP folder, such as output/demo/checkpoint-final")
    index.add_argument("--images", nargs="+", metavar="FOLDER", help="folders, image files, tables or .tar shards")
    index.add_argument("--image_path", metavar="FOLDER", help="of the images that tables (CSV, Parquet) name")
    index.add_argument(
        "--columns",
        type=columns_option,
        metavar="NAMES",
        help="names of the columns of tables, such as text=caption,filename=image",
    )
    index.add_argument(
        "--keep_list", metavar="PARQUET", help="index only the pairs of tables and shards that it keeps"
    )
    index.add_argument(
        "--exclude", nargs="+", default=[], metavar="PATTERN", help="names of files and folders to leave out"
    )
    index.add_argument("--forget", metavar="FOLDER", help="instead: remove all images below it from the gallery")
    index.add_argument("--report", type=output_file, metavar="CSV", help="default: bad_images.csv in the gallery")
    index.add_argument(
        "--dim", type=whole_number("dimensions"), help="keep only the first of an ordered model's vectors"
    )
    index.add_argument("--vectors", metavar="FOLDER", help="of `embed`: vectors of shards that need not be computed")

    embed = commands.add_parser("embed", help="vectors of shards → a Parquet file each, on one or many machines")
    embed.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    embed.add_argument(
        "--images", nargs="+", required=True, metavar="FILE", help=".tar shards, or Parquet with images"
    )
    embed.add_argument("--keep_list", metavar="PARQUET", help="embed only the pairs of the files that it keeps")
    embed.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="every N-th file, from the I-th on")
    embed.add_argument("--vectors", required=True, type=output_folder, metavar="FOLDER", help="of the Parquet files")

    query = commands.add_parser("query", help="print the images that fit best")
    query.add_argument("--text", nargs="+", default=[], type=unicode_text, help="each a query of its own")
    query.add_argument("--image", nargs="+", default=[], type=input_file, help="images, together with each text")
    query.add_argument("--like", nargs="+", default=[], type=whole_number("the gallery", 0), help="images by their id")
    query.add_argument(
        "--minus", nargs="+", default=[], type=unicode_text, metavar="TEXT", help="what should not be in the image"
    )
    query.add_argument("--image_weight", type=share, default=0.5, help="of the images next to a text (%(default)s)")
    query.add_argument("--top_k", type=whole_number("images"), default=10, help="(%(default)s)")
    query.add_argument("--threshold", type=number("a score"), metavar="SCORE", help="least score")
    query.add_argument("--folder", help="only images below it")
    query.add_argument("--since", type=day, metavar="YYYY-MM-DD", help="only images of that day or later")
    query.add_argument("--until", type=day, metavar="YYYY-MM-DD", help="only images from before that day")
    query.add_argument(
        "--fold", type=number("a cosine", 0, 1), metavar="COSINE", help="images this alike are one, such as 0.98"
    )
    query.add_argument("--approximate", action="store_true", help="by a faiss index, for several million images")
    query.add_argument("--json", type=output_file, metavar="FILE", help="also write the answers as JSON")
    query.add_argument("--html", type=output_file, metavar="FILE", help="also write a page with the images")

    server = commands.add_parser("serve", help="a page in the browser")
    server.add_argument("--host", default="127.0.0.1", help="(%(default)s); 0.0.0.0: also for other machines")
    server.add_argument("--port", type=whole_number("a port", 1, 65535), default=PORT, help="(%(default)s)")
    server.add_argument("--name", action="append", default=[], help="a further name of this machine in URLs")

    export = commands.add_parser("export", help="write id, path and vector for other programs")
    export.add_argument("--format", choices=("parquet", "npy"), default="parquet", help="(%(default)s)")
    export.add_argument(
        "--output", required=True, type=output_file, metavar="FILE", help="such as output/gallery.parquet"
    )

    for command in (index, embed):
        command.add_argument(
            "--batch_size", type=whole_number("images"), default=64, help="per forward pass (%(default)s)"
        )
        command.add_argument(
            "--num_workers", type=whole_number("processes", 0, 1000), help="processes that decode; default: by cores"
        )
        command.add_argument(
            "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the towers (%(default)s)"
        )
    for command in (index, query, server, export):
        command.add_argument("--gallery", required=True, metavar="FOLDER", help="folder of vectors and rows")
    for command in (index, embed, query, server):
        command.add_argument("--device", help="such as cpu, cuda:1; default: a GPU if there is one")
    for command in (query, server):
        command.add_argument("--model", help="current path of the gallery's model; default: the recorded one")
    args = parser.parse_args()
    if args.command == "index":
        is_update = args.model and args.images and args.forget is None
        is_forgetting = args.forget and not args.images
        if not (is_update or is_forgetting):
            parser.error("index: give --model and --images, or --forget FOLDER alone")
    if args.command == "query" and not (args.text or args.image or args.like or args.minus):
        parser.error("query: give --text, --image, --like or --minus")
    if args.command == "query":
        parser.require_distinct(args, "image", "json", "html")
    return args


def day(text: str) -> float:
    """Type of an option: a day, as the seconds since 1970 at which it begins here."""
    import datetime

    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").timestamp()
    except (ValueError, OverflowError):
        raise expected(text, "a day such as 2026-01-31") from None


def run_index(args: argparse.Namespace) -> int:
    if args.forget is not None:
        return run_forget(args)
    with quick_imports():
        from accelerate import PartialState
        from tqdm import tqdm

        from component.pairs.keep_list import KeepList
        from component.report.search import bad_images_csv, index_summary
        from component.search.embed import Loading
        from component.search.index import update
        from component.search.open import gallery_to_write
        from component.search.scan import Sources

    is_first = PartialState(cpu=args.device == "cpu").is_main_process
    keep_list = KeepList(args.keep_list) if args.keep_list and is_first else None
    sources = Sources(args.images, args.image_path, args.exclude, args.columns, keep_list, args.vectors)
    with (
        gallery_to_write(args.gallery, args.model, args.device, args.precision, is_first, args.dim) as (
            gallery,
            *model,
        ),
        tqdm(unit=" images", desc="index", disable=not is_first) as bar,
    ):
        loading = Loading(args.batch_size, args.num_workers)
        report = update(gallery, *model, sources, loading, on_total=bar.reset, on_batch=bar.update)
        if is_first:
            bar.close()
            print(index_summary(report, gallery))
            bad_images_csv(args.report or os.path.join(args.gallery, "bad_images.csv"), gallery.bad_images())
    return 0


def run_forget(args: argparse.Namespace) -> int:
    from component.ground.lock import sole_writer
    from component.report.search import bad_images_csv
    from component.search.writer import GalleryWriter

    with sole_writer(args.gallery, inside=True):
        gallery = GalleryWriter(args.gallery)
        print(f"{gallery.forget(args.forget):,} images below {args.forget} removed from {args.gallery}")
        bad_images_csv(os.path.join(args.gallery, "bad_images.csv"), gallery.bad_images())
    return 0


def run_embed(args: argparse.Namespace) -> int:
    with quick_imports():
        from accelerate import PartialState
        from tqdm import tqdm

        from component.pairs.keep_list import open_keep_list
        from component.report.search import bad_images_csv, vectors_line
        from component.search.embed import Loading
        from component.search.vector_files import files_with_images, open_vector_writer

    process, (number, parts), failed = PartialState(cpu=args.device == "cpu"), args.part, False
    files = files_with_images(args.images)[number - 1 :: parts]
    keep_list, loading = open_keep_list(args.keep_list, files), Loading(args.batch_size, args.num_workers)
    writer = open_vector_writer(args.vectors, args.model, loading, args.device, args.precision, keep_list)
    for file in files[process.process_index :: process.num_processes]:
        try:
            with tqdm(unit=" images", leave=False, disable=process.num_processes > 1) as bar:
                written = writer.write(file, bar.update)
        except (ValueError, OSError) as error:  # one damaged shard does not keep the others waiting
            print(f"{file}: {one_line(error)}", file=sys.stderr)
            failed = True
            continue
        print(vectors_line(written), flush=True)
        if written.bad_images:
            # Readers of a folder of Parquet files pass over names that begin with "_".
            name = f"_{os.path.basename(file)}.bad_images.csv"
            bad_images_csv(os.path.join(args.vectors, name), written.bad_images)
    process.wait_for_everyone()  # torchrun ends all processes when one fails
    return 2 if failed else 0


def run_query(args: argparse.Namespace) -> int:
    from component.ground.files import write_json
    from component.ground.plain_text import shown_path
    from component.report.search import answer_table
    from component.search.query import Filter, Query

    queries = [
        Query([text] if text else [], args.image, args.minus, image_weight=args.image_weight, like=args.like)
        for text in args.text or [None]
    ]
    where = Filter(args.folder, args.since, args.until, args.threshold, args.fold)
    answers = answer_by_server(args, queries, where) or answer_here(args, queries, where)
    for name, answer in answers.items():
        print(f"\n{shown_path(name)}\n{answer_table(answer)}")
    if args.json:
        write_json(args.json, answers)
    return 0


def answer_by_server(args: argparse.Namespace, queries: list, where) -> dict[str, dict] | None:
    """Query → answer of the running server of this gallery, seconds sooner than this process could answer itself."""
    from component.search.client import ask_running

    if args.html or args.approximate or args.model or args.device:
        return None
    answers = {}
    for query in queries:
        answer = ask_running(args.gallery, query, args.top_k, where)
        if answer is None:
            return None
        answers[query.name] = answer
    print("Answered by the running server of this gallery.", file=sys.stderr)
    return answers


def answer_here(args: argparse.Namespace, queries: list, where) -> dict[str, dict]:
    from component.ground.files import write_text
    from component.report.search import answers_page

    searcher = open_quickly(args) or open_with_model(args)
    if searcher.approximate:
        print(searcher.approximate, file=sys.stderr)
    answers = {query.name: searcher.answer(query, args.top_k, where).as_json() for query in queries}
    if args.html:
        write_text(args.html, answers_page(answers, searcher.gallery))
    return answers


def open_quickly(args: argparse.Namespace):
    """The searcher for a few texts, ready in a fraction of a second; None if the query or the model needs more."""
    with quick_imports():
        from component.numpy_text_tower import MOST_TEXTS
        from component.search.quick import open_text_searcher

    if args.image or args.device or args.approximate or len(args.text) + len(args.minus) > MOST_TEXTS:
        return None
    return open_text_searcher(args.gallery, args.model)


def open_with_model(args: argparse.Namespace):
    with quick_imports():
        from component.search.open import open_searcher

    return open_searcher(args.gallery, args.model, args.device, args.approximate)


def run_serve(args: argparse.Namespace) -> int:
    from component.search.serving import announced, listen, serve_app

    address = listen(args.host, args.port, args.name)
    if address.access.token:
        print(f"Warning: every machine that reaches {args.host} can ask for this page; it needs the token in the URL.")

    with quick_imports():
        from component.search.open import open_searcher
        from component.search.server import make_app

    searcher = open_searcher(args.gallery, args.model, args.device)
    app = make_app(searcher, address.access)
    print(f"Open {address.url}  (Ctrl-C ends it)", flush=True)
    with announced(searcher.gallery, address):
        serve_app(app, address)
    return 0


def run_export(args: argparse.Namespace) -> int:
    from component.gallery.reader import Gallery
    from component.search.export import export_gallery

    count = export_gallery(Gallery(args.gallery), args.output, args.format)
    print(f"{count} vectors in {args.output}")
    return 0


def main() -> int:
    args = parse_args()

    from component.ground.lock import sole_writers

    commands = {"index": run_index, "embed": run_embed, "query": run_query, "serve": run_serve, "export": run_export}
    with sole_writers(*(getattr(args, output, None) for output in ("json", "html", "output"))):
        return commands[args.command](args)


if __name__ == "__main__":
    raise SystemExit(run_script(main, stopped="Stopped. Run the same command again to continue."))
