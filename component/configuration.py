"""Configuration of BertCLIP: a BERT text tower and the vision tower of a CLIP or another ViT."""

import os
import shutil
from typing import Any

from transformers import BertConfig, CLIPVisionConfig

from component import modeling_bertclip
from component.hub.use import VIT_TOWER


def _prefer_config_dicts(config: dict[str, Any]) -> dict[str, Any]:
    """Replace `text_config` and `vision_config` by `text_config_dict` and `vision_config_dict` of old CLIP files.

    Where the latter are not null, they are the ones in effect.
    """
    config = dict(config)
    for key in ("text_config", "vision_config"):
        override = config.pop(f"{key}_dict", None)
        if override is not None:
            config[key] = override
    return config


def _as_bert_clip(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a config.json, also of a Chinese-CLIP or of a single image tower, to BertCLIP's keys."""
    kind = config.get("model_type") or ""
    if kind == "siglip":  # its image vectors are the pooled output of its tower
        kind, config = "siglip_vision_model", {**config["vision_config"], "model_type": "siglip_vision_model"}
    if kind in VIT_TOWER.kinds or kind.endswith("clip_vision_model"):
        return {"vision_config": config, "projection_dim": config.get("projection_dim", 512)}
    if kind == "chinese_clip":
        config = {**config, "model_type": "clip", "text_pooling": "cls"}
    return _prefer_config_dicts(config)


class BertCLIPTextConfig(BertConfig):
    """BertConfig that is also read from the `text_config` of a BertCLIP folder.

    Args:
        text_pooling: see `BertCLIPConfig`.
    """

    model_type = "bert"
    base_config_key = "text_config"
    text_pooling: str = "pooler"

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config, kwargs = super().get_config_dict(*args, **kwargs)
        config = _as_bert_clip(config)
        if isinstance(config.get("text_config"), dict):
            pooling = {"text_pooling": config["text_pooling"]} if "text_pooling" in config else {}
            config["text_config"] = {**config["text_config"], **pooling, "model_type": cls.model_type}
        return config, kwargs


class BertCLIPConfig(modeling_bertclip.BertCLIPConfig):
    """`modeling_bertclip.BertCLIPConfig` that also reads old files and saves that module next to its config.json.

    The config.json of a `ChineseCLIPModel` is read as a BertCLIP with "cls" pooling.

    Args:
        text_config_dict, vision_config_dict: if not None, used instead of text_config and vision_config (old files).
        kwargs: see the parent.

    Raises:
        ValueError: see the parent.
    """

    sub_configs = {"text_config": BertCLIPTextConfig, "vision_config": CLIPVisionConfig}

    def __init__(self, text_config=None, vision_config=None, projection_dim: int = 512, **kwargs):
        kwargs = _prefer_config_dicts({"text_config": text_config, "vision_config": vision_config, **kwargs})
        super().__init__(projection_dim=projection_dim, **kwargs)
        # transformers finds the classes by it with trust_remote_code. Set here, because the entry of a loaded folder
        # may name the Hub repository it came from. "clip" is not registered with AutoModel: it stays CLIP's own.
        self.auto_map = {
            "AutoConfig": "modeling_bertclip.BertCLIPConfig",
            "AutoModel": "modeling_bertclip.BertCLIPModel",
            "AutoModelForZeroShotImageClassification": "modeling_bertclip.BertCLIPModel",
        }

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config, kwargs = super().get_config_dict(*args, **kwargs)
        return _as_bert_clip(config), kwargs

    def to_json_file(self, json_file_path, *args, **kwargs) -> None:
        """Like the parent's, and copy the module that `auto_map` names into the same folder."""
        super().to_json_file(json_file_path, *args, **kwargs)
        folder = os.path.dirname(os.fspath(json_file_path))
        shutil.copyfile(modeling_bertclip.__file__, os.path.join(folder, "modeling_bertclip.py"))
