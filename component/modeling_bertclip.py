"""The architecture of BertCLIP in one self-contained file, loaded by transformers with `trust_remote_code=True`.

`save_pretrained` copies this file next to the weights. It imports only torch and transformers (4.57 or later). The
repository's own classes, which add training and read old folders, inherit from these.
Shapes: B texts or images, T tokens, D projection_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.clip.modeling_clip import CLIPOutput

POOLINGS = ("pooler", "cls")


def vision_config_class(settings: dict) -> type[PretrainedConfig]:
    """The class of a vision tower's settings: that of their model_type, such as siglip_vision_model or dinov2.

    The towers of Chinese-CLIP and MetaCLIP 2 have other model_types and are CLIP's own.

    Raises:
        ValueError: this version of transformers has no such tower.
    """
    kind = settings.get("model_type") or CLIPVisionConfig.model_type
    if "clip" in kind:
        return CLIPVisionConfig
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"This version of transformers has no image tower {kind}. Update transformers.")
    return CONFIG_MAPPING[kind]


class BertCLIPConfig(PretrainedConfig):
    """Configuration of `BertCLIPModel`.

    `model_type` is "clip", as in the published checkpoints, so that transformers' own `CLIPProcessor` loads the same
    folder, and `CLIPVisionModel` if the vision tower is CLIP's.

    Args:
        text_config: settings of the BERT tower (dict or `BertConfig`).
        vision_config: settings of the vision tower (dict or config); its model_type says which, by default CLIP's.
        projection_dim: width of the shared embedding space.
        logit_scale_init_value: initial logarithm of the inverse temperature (ln(1 / 0.07) = 2.6592).
        logit_bias_init_value: initial bias of a model trained with the sigmoid loss; None: no bias.
        text_pooling: "pooler": BERT's own pooler over [CLS], as in the published layout; "cls": the last hidden state
            of [CLS], as in Chinese-CLIP, without pooler weights.
        has_image_half: False: a text tower alone, trained for image vectors that another model made. vision_config is
            None then.

    Raises:
        ValueError: text_pooling is neither; see also `vision_config_class`.
    """

    model_type = "clip"
    sub_configs = {"text_config": BertConfig, "vision_config": CLIPVisionConfig}

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        logit_bias_init_value: float | None = None,
        text_pooling: str = "pooler",
        has_image_half: bool = True,
        **kwargs,
    ):
        if text_pooling not in POOLINGS:
            raise ValueError(f"`text_pooling` is {text_pooling!r}; expected {' or '.join(POOLINGS)}.")
        for (key, config_class), config in zip(self.sub_configs.items(), (text_config, vision_config), strict=True):
            if isinstance(config, PretrainedConfig):
                config = config.to_dict()
            config = config or {}
            if key == "vision_config":
                config_class = vision_config_class(config)
            # The towers of a Chinese-CLIP have other model_types and the same settings. Their outputs are read by
            # name below, so return_dict must be True. The path a tower was loaded from would be saved.
            own = {"model_type": config_class.model_type, "return_dict": True, "_name_or_path": ""}
            setattr(self, key, config_class(**{**config, **own}))
        self.text_config.text_pooling = text_pooling
        if hasattr(self.vision_config, "projection_dim"):
            self.vision_config.projection_dim = projection_dim  # for CLIPVisionModelWithProjection
        self.has_image_half = has_image_half
        if not has_image_half:
            self.vision_config = None
        self.text_pooling = text_pooling
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        self.logit_bias_init_value = logit_bias_init_value
        super().__init__(**kwargs)


class FirstToken(nn.Module):
    """Replaces BERT's pooler and returns the last hidden state of [CLS]. Has no weights."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0].clone()  # a view would keep the hidden states of all tokens in memory


def text_tower(config: BertConfig) -> BertModel:
    """BertModel whose pooler_output follows `config.text_pooling`."""
    has_pooler = config.text_pooling == "pooler"
    tower = BertModel._from_config(config, add_pooling_layer=has_pooler)
    if not has_pooler:
        tower.pooler = FirstToken()
    return tower


def fit_to_positions(config: BertConfig, **tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Cut (B, T, …) tensors to the positions of the tower; longer ones are an index error in BertModel."""
    most = config.max_position_embeddings
    return {name: tensor if tensor is None else tensor[:, :most] for name, tensor in tensors.items()}


class BertCLIPPreTrainedModel(PreTrainedModel):
    """Declares to transformers what every BertCLIP model supports."""

    config_class = BertCLIPConfig
    base_model_prefix = "clip"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Older checkpoints store buffers that both towers create themselves, and some a pooler that "cls" pooling ignores.
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.position_ids$", r"^text_model\.pooler\."]

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)


class BertCLIPModel(BertCLIPPreTrainedModel):
    """CLIP with a Chinese BERT as text tower, trained by locked-image tuning (LiT, arXiv:2111.07991)."""

    def __init__(self, config: BertCLIPConfig):
        super().__init__(config)
        self.text_model = text_tower(config.text_config)
        self.vision_model = self.visual_projection = None
        if config.has_image_half:
            tower = AutoModel.from_config(config.vision_config)
            self.vision_model = getattr(tower, "vision_model", tower)  # transformers 4 wraps CLIP's and SigLIP's
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        if config.has_image_half:
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.post_init()

    def _encode_text(
        self, input_ids, attention_mask, token_type_ids, position_ids, **kwargs
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        inputs = fit_to_positions(
            self.config.text_config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        return self.text_model(**inputs, **kwargs)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """(B, T) tokens → (B, D) projected features, not normalised."""
        outputs = self._encode_text(input_ids, attention_mask, token_type_ids, position_ids, **kwargs)
        return self.text_projection(outputs.pooler_output)

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """(B, 3, H, W) pixels → (B, D) projected features, not normalised. ValueError without an image half."""
        if self.vision_model is None:
            raise ValueError("This model is a text tower alone and embeds no images: another model made its vectors.")
        outputs = self.vision_model(pixel_values=pixel_values, **kwargs)
        return self.visual_projection(outputs.pooler_output)

    def contrastive_loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """CLIP's symmetric cross-entropy, or SigLIP's sigmoid loss if the model has a bias: a scalar in fp32."""
        if len(image_embeds) != len(text_embeds):
            raise ValueError(f"The loss needs one text per image: got {len(text_embeds)} and {len(image_embeds)}.")
        logits = self.logit_scale.float().exp() * image_embeds.float() @ text_embeds.float().T
        if self.logit_bias is not None:
            signs = 2 * torch.eye(len(logits), device=logits.device) - 1
            return -F.logsigmoid(signs * (logits + self.logit_bias)).sum() / len(logits)
        matched = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, matched) + F.cross_entropy(logits.T, matched)) / 2

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        token_type_ids: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        vision_pooler_output: Tensor | None = None,
        **kwargs,
    ) -> CLIPOutput:
        """Embed texts, images or both; with both, compare every text with every image.

        Args:
            input_ids: (B_text, T); attention_mask, token_type_ids and position_ids likewise, all optional.
            pixel_values: (B_image, 3, H, W).
            interpolate_pos_encoding: for images of another size than the tower's. (DINO's towers take any size.)
            return_loss: also compute the contrastive loss; text i belongs to image i.
            vision_pooler_output: (B_image, vision_hidden), earlier output of the vision tower, replaces pixel_values.
            return_dict: False returns a tuple in the order of `CLIPOutput`, without the entries that are None.

        Returns:
            `CLIPOutput` with text_embeds (B_text, D) and image_embeds (B_image, D), L2-normalised; the outputs of both
            towers; given both sides, logits_per_image (B_image, B_text) = scale · cosine (plus logit_bias if the model
            has one) and its transpose logits_per_text; and loss.

        Raises:
            ValueError: neither texts nor images, or `return_loss` with unequal numbers of them.
        """
        text_outputs = vision_outputs = text_embeds = image_embeds = logits_per_text = loss = None
        if self.vision_model is None and (vision_pooler_output is not None or pixel_values is not None):
            raise ValueError("This model is a text tower alone and embeds no images: pass input_ids only.")
        if vision_pooler_output is not None:
            vision_outputs = BaseModelOutputWithPooling(pooler_output=vision_pooler_output.to(self.dtype))
        elif pixel_values is not None:
            resize = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
            vision_outputs = self.vision_model(pixel_values=pixel_values, **resize, **kwargs)
        elif input_ids is None:
            raise ValueError("BertCLIPModel embeds texts and images: pass input_ids or pixel_values, or both.")
        if vision_outputs is not None:
            image_embeds = F.normalize(self.visual_projection(vision_outputs.pooler_output), dim=-1)
        if input_ids is not None:
            text_outputs = self._encode_text(input_ids, attention_mask, token_type_ids, position_ids, **kwargs)
            text_embeds = F.normalize(self.text_projection(text_outputs.pooler_output), dim=-1)
        if text_embeds is not None and image_embeds is not None:
            image_embeds = image_embeds.to(text_embeds.device)
            logits_per_text = self.logit_scale.exp().to(text_embeds.device) * text_embeds @ image_embeds.T
            if self.logit_bias is not None:
                logits_per_text = logits_per_text + self.logit_bias
            if return_loss:
                loss = self.contrastive_loss(image_embeds, text_embeds)

        outputs = CLIPOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return outputs if return_dict else outputs.to_tuple()
