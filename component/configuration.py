"""Configuration of BertCLIP: a BERT text tower and a CLIP vision tower."""

from typing import Any

from transformers import BertConfig, CLIPVisionConfig, PretrainedConfig

POOLINGS = ("pooler", "cls")


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


class BertCLIPConfig(PretrainedConfig):
    """Configuration of `BertCLIPModel`.

    `model_type` is "clip", as in the published checkpoints: with it transformers' own `CLIPVisionModel` and
    `CLIPProcessor` load the same folder. The config.json of a `ChineseCLIPModel` is read as one with "cls" pooling.

    Args:
        text_config: settings of the BERT tower (dict or `BertConfig`).
        vision_config: settings of the CLIP vision tower (dict or `CLIPVisionConfig`).
        projection_dim: width of the shared embedding space.
        logit_scale_init_value: logarithm of the inverse temperature at the start (ln(1 / 0.07) = 2.6592).
        logit_bias_init_value: of the bias that a model trained with the sigmoid loss has; None: no bias.
        text_pooling: what stands for a text: "pooler", BERT's own pooler over [CLS], as in the published layout; or
            "cls", the last hidden state of [CLS] as it is, as in Chinese-CLIP. Then there are no pooler weights.
        text_config_dict, vision_config_dict: where not None, taken instead of the plain ones (old files).

    Raises:
        ValueError: another text_pooling.
    """

    model_type = "clip"
    sub_configs = {"text_config": BertCLIPTextConfig, "vision_config": CLIPVisionConfig}

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        logit_bias_init_value: float | None = None,
        text_pooling: str = "pooler",
        **kwargs,
    ):
        if text_pooling not in POOLINGS:
            raise ValueError(f"`text_pooling` is {text_pooling!r}; expected {' or '.join(POOLINGS)}.")
        kwargs = _prefer_config_dicts({"text_config": text_config, "vision_config": vision_config, **kwargs})
        for key, config_class in self.sub_configs.items():
            config = kwargs.pop(key)
            if isinstance(config, PretrainedConfig):
                config = config.to_dict()
            # A Chinese-CLIP's towers have a model_type of their own, and the same settings.
            setattr(self, key, config_class(**{**(config or {}), "model_type": config_class.model_type}))
        self.text_config.text_pooling = text_pooling
        self.text_pooling = text_pooling
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        self.logit_bias_init_value = logit_bias_init_value
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config, kwargs = super().get_config_dict(*args, **kwargs)
        return _as_bert_clip(config), kwargs
