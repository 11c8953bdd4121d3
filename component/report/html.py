"""HTML pages that are one file: templates, and images embedded in them."""

import base64
import io
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from component.ground.plain_text import one_line, shown_path

THUMBNAIL_SIDE = 192  # pixels


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"one_line": one_line, "shown_path": shown_path}
    return templates


def render(template: str, **values) -> str:
    """Render a page of `templates/`; values are escaped."""
    return _templates().get_template(template).render(values)


def data_uri(image: Image.Image, side: int = THUMBNAIL_SIDE) -> str:
    """A data URI, for `src` or `url()`, of an RGB image as JPEG of at most `side` pixels per side."""
    image = image.copy()
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
