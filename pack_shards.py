"""Pack the images and captions of a table into WebDataset shards. Run it again to resume; see --help."""

import argparse
import sys
from collections import Counter

from component.ground.command import run_script
from component.ground.options import Parser, output_folder, whole_number
from component.pairs.columns import columns_option


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Write shards of captions and images, as they are, in the order of the table. Missing images and "
        "empty captions are left out and counted. Run the same command again to write the shards that are missing.",
    )
    parser.add_argument(
        "--train_file",
        nargs="+",
        required=True,
        help="table with a column of captions and one of file names: CSV, Parquet, JSON, a folder of such files or "
        "a pattern in quotes; also Parquet with images, and other shards",
    )
    parser.add_argument(
        "--columns", type=columns_option, help="other names of its columns, such as text=caption,filename=path"
    )
    parser.add_argument("--image_path", help="folder of the images, or the tsv of Chinese-CLIP's texts")
    parser.add_argument(
        "--keep_list", metavar="PARQUET", help="pack only the pairs that it keeps; filter_data.py writes it"
    )
    parser.add_argument("--out", required=True, type=output_folder, metavar="FOLDER", help="folder for the shards")
    parser.add_argument(
        "--pairs_per_shard", type=whole_number("pairs"), default=10_000, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--num_workers", type=whole_number("processes", most=1000), help="processes; default: one per core"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    from tqdm import tqdm

    from component.packing.shards import pack_shards
    from component.pairs.keep_list import open_keep_list
    from component.pairs.sources import check_pair_files

    check_pair_files(args.train_file, args.image_path, args.columns)
    keep_list = open_keep_list(args.keep_list, args.train_file)
    packed = pack_shards(
        args.train_file, args.image_path, args.out, args.columns, keep_list, args.pairs_per_shard, args.num_workers
    )
    pairs, old, left_out = 0, 0, Counter()
    with tqdm(unit=" shards", delay=1) as bar:  # a fault of the table is reported before
        for stats, was_there in packed:
            pairs, old = pairs + stats.pairs, old + was_there
            left_out.update(stats.left_out)
            bar.update()
    print(f"\n{bar.n} shards with {pairs} pairs in {args.out}, of which {old} shards were there before.")
    for reason, count in left_out.most_common():
        print(f"left out: {reason:<12} {count:>10}")
    if not pairs:
        hint = ": the file names must be relative to --image_path" if left_out["missing"] else ""
        raise ValueError(f"no pair was packed{hint}.")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped. Run the same command again to resume."))
