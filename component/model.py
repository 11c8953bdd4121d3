"""BertCLIP: transformers' BertModel and CLIP's or another ViT with a shared embedding space.

Shapes: B texts or images, T tokens, D projection_dim.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertModel, PretrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import ModelOutput

import component.processor  # noqa: F401, registers the processor files of older versions with transformers
from component import modeling_bertclip
from component.configuration import BertCLIPConfig, BertCLIPTextConfig
from component.hub.pretrained import check_pretrained, load_pretrained, loading, read_config
from component.hub.quiet import no_progress_bars
from component.hub.use import IMAGE_TOWER, TEXT_TOWER, VIT_TOWER, Use
from component.loss import contrastive_loss
from component.modeling_bertclip import BertCLIPPreTrainedModel, fit_to_positions, text_tower
from component.tower_parts import tower_parts

logger = logging.getLogger(__name__)


@dataclass
class GroupedOutput(ModelOutput):
    """The inputs of a contrastive loss.

    Args:
        image_embeds, text_embeds: (B, D), L2-normalised.
        image_as_teacher, text_as_teacher: (B, width of the teacher), L2-normalised: what is compared with the
            embeddings of a teacher; the same as image_embeds and text_embeds unless the widths differ.
        logit_scale: scalar inverse temperature, already exponentiated.
        logit_bias: scalar, if the model has one.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    image_as_teacher: Tensor | None = None
    text_as_teacher: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None


class _Quiet:
    """Mixin whose weights are loaded and saved without a progress bar."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        with no_progress_bars():
            return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        with no_progress_bars():
            return super().save_pretrained(*args, **kwargs)


class BertCLIPTextModel(_Quiet, BertCLIPPreTrainedModel):
    """The text tower of a BertCLIP folder. `forward` is BertModel's, and cuts texts that are too long."""

    config_class = BertCLIPTextConfig
    _keys_to_ignore_on_load_unexpected = [
        r"^vision_model\.",
        r"^logit_(scale|bias)$",
        r"_projection\.weight$",
        *BertCLIPPreTrainedModel._keys_to_ignore_on_load_unexpected,
    ]

    def __init__(self, config: BertCLIPTextConfig):
        super().__init__(config)
        self.text_model = text_tower(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """BertModel's output: last_hidden_state (B, T, text_hidden), pooler_output (B, text_hidden)."""
        inputs = fit_to_positions(
            self.config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        return self.text_model(**inputs, **kwargs)


class BertCLIPModel(_Quiet, modeling_bertclip.BertCLIPModel):
    """CLIP with a Chinese BERT as text tower (LiT, arXiv:2111.07991), with what training adds.

    The architecture is in `modeling_bertclip`, the module that is saved with the weights.

    Attributes:
        ancestors: digests of the weights that it was trained from, see `component.checkpoint`; None: unknown.
        to_teacher: maps embeddings to the width of a teacher, see `set_teacher_width`; None: not needed.
    """

    config_class = BertCLIPConfig

    def __init__(self, config: BertCLIPConfig):
        super().__init__(config)
        self.ancestors: list[str] | None = None
        self.to_teacher: nn.Linear | None = None
        self._locked: list[nn.Module] = []
        # The units of FSDP. (The towers' own lists also name classes that they do not have.)
        towers = filter(None, (self.text_model, self.vision_model))
        self._no_split_modules = {tower_parts(tower).block_class for tower in towers}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # The towers initialise themselves. The projections start like nn.Linear: uniform ±1/sqrt(fan_in).
        if module in (self.text_projection, self.visual_projection):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
            if self.logit_bias is not None:
                init.constant_(self.logit_bias, self.config.logit_bias_init_value)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        clip_path: str,
        bert_path: str,
        dtype: torch.dtype = torch.float32,
        text_pooling: str = "pooler",
        image_use: Use = IMAGE_TOWER,
        text_use: Use = TEXT_TOWER,
    ) -> "BertCLIPModel":
        """Pair two pretrained folders (or hub names) for training.

        Vision tower, visual_projection and logit_scale come from CLIP, the text tower from BERT. text_projection is
        new unless CLIP's own has the same shape. If visual_projection and logit_scale are missing (a vision tower
        without them), or BERT's pooler, they are new too, and a warning is logged.

        Args:
            clip_path: a CLIP, its kin or a BertCLIP, the vision tower of one, or another ViT (`VIT_TOWER`).
            bert_path: a BERT with any head.
            dtype: of all parameters. fp32 by default, which AdamW needs, whatever the folders hold.
            text_pooling: see `BertCLIPConfig`.
            image_use: IMAGE_HALF if visual_projection may not be new.
            text_use: LOCKED_TEXT_TOWER if the pooler may not be new.

        Raises:
            ValueError: a folder does not exist, is damaged or incomplete, or holds another kind of model.
        """
        clip_source = check_pretrained(clip_path, image_use)
        with loading(clip_path):
            config = BertCLIPConfig.from_pretrained(clip_source)
        # The new weights are drawn before CLIP's are loaded, which also draws: the result of a seed must not change.
        model = cls.from_text_pretrained(
            bert_path, config.projection_dim, dtype, text_pooling, text_use, vision_config=config.vision_config
        )
        if read_config(clip_source).get("model_type") in VIT_TOWER.kinds:
            tower = model.vision_model
            vit, _ = load_pretrained(type(tower), clip_path, VIT_TOWER, config=tower.config, dtype=dtype)
            tower.load_state_dict(vit.state_dict())
            logger.warning("%s has no visual_projection: a new one is trained, with a new logit_scale.", clip_path)
            return model
        # The names of a single vision tower's weights have no prefix "vision_model.".
        prefix = {r"^(embeddings|pre_layrnorm|encoder|post_layernorm)\.": r"vision_model.\1."}
        clip, new = load_pretrained(cls, clip_path, image_use, config=model.config, dtype=dtype, key_mapping=prefix)
        weights = {
            name: value
            for name, value in clip.state_dict().items()
            if name not in new and not name.startswith("text_model.")
        }
        model.load_state_dict(weights, strict=False)
        return model

    @classmethod
    def from_text_pretrained(
        cls,
        bert_path: str,
        projection_dim: int,
        dtype: torch.dtype = torch.float32,
        text_pooling: str = "pooler",
        text_use: Use = TEXT_TOWER,
        vision_config: PretrainedConfig | None = None,
    ) -> "BertCLIPModel":
        """A pretrained BERT and a new text_projection, for image vectors of `projection_dim` from another model.

        The other arguments and errors are those of `from_vision_text_pretrained`.

        Args:
            vision_config: of an image half, which is new too; None: the model has no image half.
        """
        bert, new = load_pretrained(
            BertModel, bert_path, text_use, dtype=dtype, add_pooling_layer=text_pooling == "pooler"
        )
        config = BertCLIPConfig(
            text_config=bert.config,
            vision_config=vision_config,
            projection_dim=projection_dim,
            text_pooling=text_pooling,
            has_image_half=vision_config is not None,
        )
        model = cls._from_config(config, dtype=dtype)
        weights = {name: value for name, value in bert.state_dict().items() if name not in new}
        model.text_model.load_state_dict(weights, strict=False)
        return model

    def lock_vision(self, trainable_blocks: int = 0, projection: bool = False):
        """Freeze the vision tower: no gradient, no optimizer state, always in eval mode.

        Args:
            trainable_blocks: number of last blocks that stay unlocked, together with what computes after them.
            projection: freeze visual_projection too, so that image embeddings never change.

        Raises:
            ValueError: the tower has fewer blocks.
        """
        below, blocks = tower_parts(self.vision_model)
        if not 0 <= trainable_blocks <= len(blocks):
            raise ValueError(
                f"The last {trainable_blocks} blocks cannot be unlocked: the vision tower has {len(blocks)}."
            )
        if trainable_blocks:
            self._lock(*below.values(), *list(blocks.values())[:-trainable_blocks])
        else:
            self._lock(self.vision_model)
        if projection:
            self._lock(self.visual_projection)

    def lock_text(self):
        """Freeze the text tower as `lock_vision` freezes the other; text_projection is trained.

        With both towers locked, only the projections and logit_scale learn (ShareLock, arXiv:2410.07173).
        """
        self._lock(self.text_model)

    def _lock(self, *modules: nn.Module):
        self._locked += modules
        for module in modules:
            module.requires_grad_(False)
        self.train(self.training)

    def set_teacher_width(self, width: int):
        """Prepare for learning from the embeddings of a teacher, which have `width` numbers.

        If the model's own have another width, `to_teacher` is learned: one linear map for texts and images, which
        share a space. It belongs to the training and is not saved with the model.
        """
        if width != self.config.projection_dim:
            self.to_teacher = nn.Linear(self.config.projection_dim, width, bias=False)
            self._keys_to_ignore_on_save = {"to_teacher.weight"}

    def set_loss(self, loss_type: str):
        """Prepare the model for "clip" (InfoNCE) or "siglip" (sigmoid loss, with a learned logit_bias).

        A new bias starts at -10, and the scale then at 10 (SigLIP, arXiv:2303.15343, section 3.2).
        """
        if loss_type == "clip":
            self.config.logit_bias_init_value = self.logit_bias = None
        elif self.logit_bias is None:
            self.config.logit_bias_init_value = -10.0
            self.logit_bias = nn.Parameter(torch.full_like(self.logit_scale, -10.0))
            self.logit_scale.data.fill_(math.log(10))

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self._locked:
            module.eval()
        return self

    def contrastive_loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        return contrastive_loss(image_embeds, text_embeds, self.logit_scale.exp(), self.logit_bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args,
        vision_pooler_output: Tensor | None = None,
        text_pooler_output: Tensor | None = None,
        image_embeds: Tensor | None = None,
        text_groups: Sequence[tuple[int, int]] | None = None,
        recompute: bool = False,
        **kwargs,
    ) -> CLIPOutput | GroupedOutput | tuple:
        """Embed texts and images, and compare every text with every image.

        Args:
            input_ids, pixel_values, attention_mask, args, kwargs: see the parent. Both texts and images are required.
            vision_pooler_output: (B_image, vision_hidden), earlier output of a locked vision tower, instead of
                pixel_values.
            text_pooler_output: with text_groups: (B_text, text_hidden), earlier output of a locked text tower, instead
                of input_ids.
            image_embeds: with text_groups: (B_image, D), earlier embeddings of the images, normalised or not.
            text_groups: for training: (pairs, tokens) of consecutive groups. The pairs of a group go through the
                towers together, with their texts cut to that number of tokens; texts sorted by length then need
                little padding. position_ids and token_type_ids are not accepted.
            recompute: with text_groups, keep no activations for the backward pass, which runs the towers again group
                by group. This needs the memory of one group, whatever the batch size, and gives the same gradients,
                dropout included (the gradient cache of arXiv:2101.06983, by activation checkpointing).

        Returns:
            The parent's `CLIPOutput`. With text_groups a `GroupedOutput` with the inputs of the loss. (FSDP has whole
            parameters only within forward.)

        Raises:
            ValueError: texts or images are missing, or differ in number with `return_loss`.
        """
        images = [pixel_values, vision_pooler_output, image_embeds if text_groups is not None else None]
        has_texts = input_ids is not None or (text_groups is not None and text_pooler_output is not None)
        if not has_texts or sum(given is not None for given in images) != 1:
            raise ValueError(
                "BertCLIPModel compares texts with images: pass input_ids, and pixel_values or vision_pooler_output. "
                "For one side alone use get_text_features or get_image_features."
            )
        if text_groups is not None:
            return self._embed_groups(input_ids, attention_mask, text_pooler_output, *images, text_groups, recompute)
        return super().forward(
            input_ids, pixel_values, attention_mask, *args, vision_pooler_output=vision_pooler_output, **kwargs
        )

    # torch_compile compiles the towers. The loop would be compiled again for each number of groups.
    @torch.compiler.disable(recursive=False)
    def _embed_groups(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        text_pooler_output: Tensor | None,
        pixel_values: Tensor | None,
        vision_pooler_output: Tensor | None,
        image_embeds: Tensor | None,
        text_groups: Sequence[tuple[int, int]],
        recompute: bool,
    ) -> GroupedOutput:
        def pool(tower, **inputs):
            if recompute:
                return checkpoint(tower, **inputs, return_dict=True, use_reentrant=False).pooler_output
            return tower(**inputs, return_dict=True).pooler_output

        if text_pooler_output is None:
            text_pooler_output = torch.cat(self._pool_texts(pool, input_ids, attention_mask, text_groups, recompute))
        if pixel_values is not None:
            images = pixel_values.split([size for size, _ in text_groups])
            vision_pooler_output = torch.cat([pool(self.vision_model, pixel_values=group) for group in images])
        if image_embeds is None:
            image_embeds = self.visual_projection(vision_pooler_output.to(self.dtype))
        image_embeds = F.normalize(image_embeds, dim=-1)
        text_embeds = F.normalize(self.text_projection(text_pooler_output.to(self.dtype)), dim=-1)
        return GroupedOutput(
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            image_as_teacher=self._as_teacher(image_embeds),
            text_as_teacher=self._as_teacher(text_embeds),
            logit_scale=self.logit_scale.exp().view(()),  # under FSDP the parameters have one dimension
            logit_bias=None if self.logit_bias is None else self.logit_bias.view(()),
        )

    def _as_teacher(self, embeds: Tensor) -> Tensor:
        return embeds if self.to_teacher is None else F.normalize(self.to_teacher(embeds), dim=-1)

    @torch.compiler.disable(recursive=False)  # as above
    def _pool_texts(self, pool, input_ids, attention_mask, text_groups, recompute: bool) -> list[Tensor]:
        sizes, widths = zip(*text_groups, strict=True)
        texts = fit_to_positions(self.config.text_config, input_ids=input_ids, attention_mask=attention_mask)
        input_ids, attention_mask = texts.values()
        if self.text_model.config._attn_implementation == "sdpa":
            # In the shape of the kernels, or the tower synchronises with the device to find out if there is padding.
            attention_mask = attention_mask[:, None, None].bool()
        texts = [
            {"input_ids": ids[:, :width], "attention_mask": mask[..., :width]}
            for ids, mask, width in zip(input_ids.split(sizes), attention_mask.split(sizes), widths, strict=True)
        ]
        if not recompute:
            # One look-up for all groups, because the gradient of each has the size of the whole vocabulary.
            ids = [text.pop("input_ids") for text in texts]
            embeds = self.get_input_embeddings()(torch.cat([group.flatten() for group in ids]))
            for text, group, own in zip(texts, ids, embeds.split([group.numel() for group in ids]), strict=True):
                text["inputs_embeds"] = own.view(*group.shape, -1)
        return [pool(self.text_model, **text) for text in texts]
