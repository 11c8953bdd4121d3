"""Configuration of BertCLIP: a BERT text tower and a CLIP vision tower."""

import os
import shutil
from typing import Any

from transformers import BertConfig, CLIPVisionConfig

from component import modeling_bertclip


def _prefer_config_dicts(config: dict[str, Any]) -> dict[str, Any]:
    """Old CLIP files carry `text_config_dict` / `vision_config_dict`; where one is not null, it is the true one."""
    config = dict(config)
    for key in ("text_config", "vision_config"):
        override = config.pop(f"{key}_dict", None)
        if override is not None:
            config[key] = override
    return config


def _as_bert_clip(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, of a Chinese-CLIP or of a lone image tower too, as BertCLIP's."""
    kind = config.get("model_type") or ""
    if kind.endswith("clip_vision_model"):
        return {"vision_config": config, "projection_dim": config.get("projection_dim", 512)}
    if kind == "chinese_clip":
        config = {**config, "model_type": "clip", "text_pooling": "cls"}
    return _prefer_config_dicts(config)


class BertCLIPTextConfig(BertConfig):
    """BertConfig that also finds itself in the `text_config` of a BertCLIP folder.

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
    """`modeling_bertclip.BertCLIPConfig` that also reads old files, and leaves that file beside its config.json.

    The config.json of a `ChineseCLIPModel` is read as one with "cls" pooling.

    Args:
        text_config_dict, vision_config_dict: where not None, taken instead of the plain ones (old files).
        kwargs: see the parent.

    Raises:
        ValueError: see the parent.
    """

    sub_configs = {"text_config": BertCLIPTextConfig, "vision_config": CLIPVisionConfig}

    def __init__(self, text_config=None, vision_config=None, projection_dim: int = 512, **kwargs):
        kwargs = _prefer_config_dicts({"text_config": text_config, "vision_config": vision_config, **kwargs})
        super().__init__(projection_dim=projection_dim, **kwargs)
        # Not where the folder came from, which a hub name in it would be. Where no code of ours is, transformers
        # finds the classes by it; CLIP's own stay those of "clip" for whoever has this repository too.
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
        """As the parent's. Where `auto_map` is written, what it names lies beside it, before anything is uploaded."""
        super().to_json_file(json_file_path, *args, **kwargs)
        folder = os.path.dirname(os.fspath(json_file_path))
        shutil.copyfile(modeling_bertclip.__file__, os.path.join(folder, "modeling_bertclip.py"))
