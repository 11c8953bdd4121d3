"""What a pretrained folder can be used for: which models, and which of their weights, each use needs."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Use:
    """What a pretrained folder is to be used for.

    Attributes:
        name: for the error.
        kinds: the accepted model_types.
        instead: what works, as a sentence for the error.
        towers: the towers that are used: "text", "vision".
        needed: pattern for the beginnings of the names of required weights.
        renewable: the same for weights among them that may be missing; they are new, and a warning is logged.
    """

    name: str
    kinds: tuple[str, ...]
    instead: str
    towers: tuple[str, ...]
    needed: str = ""
    renewable: str = "$"


TEXT_TOWER = Use(
    name="a BERT for the text tower",
    kinds=("bert",),
    towers=("text",),
    instead="A BERT works (model_type bert), such as Langboat/mengzi-bert-base; of a BertCLIP folder, "
    "save_bert_checkpoint.py makes one.",
    needed=r"embeddings\.|encoder\.|pooler\.",
    renewable=r"pooler\.",
)
LOCKED_TEXT_TOWER = replace(
    TEXT_TOWER,
    name="a BERT that can be locked (freeze_text), with a pooler of its own",
    instead="Train its pooler (freeze_text false), or set text_pooling to cls, which needs none.",
    renewable="$",
)
_CLIP = Use(
    name="a CLIP",
    kinds=(
        *("clip", "chinese_clip", "metaclip_2"),  # with CLIP's vision tower
        *("clip_vision_model", "chinese_clip_vision_model", "metaclip_2_vision_model"),
    ),
    towers=("vision",),
    instead="A CLIP with its image tower works (model_type clip), such as openai/clip-vit-base-patch32.",
    needed=r"vision_model\.|visual_projection\.|logit_scale",
)
IMAGE_HALF = replace(
    _CLIP,
    name="a CLIP whose image vectors can stay the same (freeze_visual_projection)",
    renewable="logit_scale",
)
VIT_TOWER = Use(
    name="an image tower",
    kinds=("siglip", "siglip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit"),
    towers=("vision",),
    instead="The image tower of a CLIP, SigLIP, DINOv2, DINOv3 or ViT works (model_type clip, siglip, dinov2, "
    "dinov2_with_registers, dinov3_vit or vit), such as openai/clip-vit-base-patch32. SigLIP 2 works if its images "
    "have one size (model_type siglip).",
    needed=r"(?!.*mask_token)(embeddings|encoder|layers|model|post_layernorm|layernorm|norm|head|pooler)\.",
)
IMAGE_TOWER = replace(
    _CLIP,
    name=VIT_TOWER.name,
    kinds=_CLIP.kinds + VIT_TOWER.kinds,
    instead=VIT_TOWER.instead,
    renewable=r"visual_projection\.|logit_scale",
)
BERT_CLIP = Use(
    name="a BertCLIP checkpoint",
    kinds=("clip", "chinese_clip"),
    towers=("text", "vision"),
    instead="Give a folder that train_clip.py wrote, such as output/demo/checkpoint-final, or a Chinese-CLIP. To pair "
    "a CLIP with a BERT, train with load_from_bert_clip false and bert_pretrain_path.",
)
