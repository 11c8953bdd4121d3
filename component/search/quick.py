"""Open a gallery for texts alone, without torch and transformers, which take seconds to import."""

from component.gallery.reader import Gallery
from component.hub.identity import ModelIdentity
from component.numpy_text_tower import open_text_tower
from component.search.searcher import Searcher


def open_text_searcher(folder: str, model_path: str | None = None) -> Searcher | None:
    """A searcher that answers texts and rows of the gallery as `open_searcher` does.

    Returns None if only the model itself can embed texts, or if it is not the gallery's model as it was when the
    gallery was made: `open_searcher` then says what differs.

    Raises:
        ValueError: there is no gallery.
    """
    gallery = Gallery(folder)
    tower = open_text_tower(model_path or gallery.about["model"])
    fingerprint = gallery.about["fingerprint"]
    if tower is None or isinstance(fingerprint, str) or ModelIdentity.from_dict(fingerprint) != tower.identity:
        gallery.close()
        return None
    return Searcher(gallery, tower)
