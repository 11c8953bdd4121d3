"""Configuration of BertCLIP: a BERT text tower and a CLIP vision tower."""

from transformers import BertConfig, CLIPVisionConfig, PretrainedConfig


def _prefer_config_dicts(config: dict) -> dict:
    """Old CLIP files carry `text_config_dict` / `vision_config_dict`; where one is not null, it is the true one."""
    config = dict(config)
    for key in ("text_config", "vision_config"):
        override = config.pop(f"{key}_dict", None)
        if override is not None:
            config[key] = override
    return config


class BertCLIPTextConfig(BertConfig):
    """BertConfig that also finds itself in the `text_config` of a BertCLIP folder."""

    model_type = "bert"
    base_config_key = "text_config"

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        config, kwargs = super().get_config_dict(*args, **kwargs)
        return _prefer_config_dicts(config), kwargs


class BertCLIPConfig(PretrainedConfig):
    """Configuration of `BertCLIPModel`.

    `model_type` is "clip", as in the published checkpoints: with it transformers' own `CLIPVisionModel` and
    `CLIPProcessor` load the same folder.

    Args:
        text_config: settings of the BERT tower (dict or `BertConfig`).
        vision_config: settings of the CLIP vision tower (dict or `CLIPVisionConfig`).
        projection_dim: width of the shared embedding space.
        logit_scale_init_value: logarithm of the inverse temperature at the start (ln(1 / 0.07) = 2.6592).
        logit_bias_init_value: of the bias that a model trained with the sigmoid loss has; None: no bias.
        text_config_dict, vision_config_dict: where not None, taken instead of the plain ones (old files).
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
        **kwargs,
    ):
        kwargs = _prefer_config_dicts({"text_config": text_config, "vision_config": vision_config, **kwargs})
        for key, config_class in self.sub_configs.items():
            config = kwargs.pop(key)
            if isinstance(config, PretrainedConfig):
                config = config.to_dict()
            setattr(self, key, config_class(**(config or {})))
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        self.logit_bias_init_value = logit_bias_init_value
        super().__init__(**kwargs)
