"""Load saved folders with transformers alone, in a process without this repository.

Usage: without_repository.py OUTPUT FOLDER …; saves a dict of results for each folder to OUTPUT/<name>.pt.
"""

import os
import sys

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPProcessor,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    pipeline,
)

TEXTS = ["一只小狗在摇尾巴", "红色的圆", "小猪" * 40]


def results(folder: str) -> dict:
    trusting = dict(trust_remote_code=True)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **trusting)
    model.eval()
    image = Image.effect_noise((50, 40), 50).convert("RGB")
    processor = CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS, images=[image] * 3, return_tensors="pt", padding=True)
    texts = {key: value for key, value in inputs.items() if key != "pixel_values"}
    images = {"pixel_values": inputs["pixel_values"]}
    found = {
        "inputs": dict(inputs),
        "info": {key: sorted(map(str, value)) for key, value in info.items()},
        "keys": sorted(model.state_dict()),
        "config": AutoConfig.from_pretrained(folder, **trusting).to_dict(),
        "both": {key: model(**inputs, return_loss=True)[key] for key in ("loss", "logits_per_image", "text_embeds")},
        "texts": dict(embeds=model(**texts).text_embeds, features=model.get_text_features(**texts)),
        "images": dict(embeds=model(**images).image_embeds, features=model.get_image_features(**images)),
        "sides": [list(model(**side)) for side in (texts, images)],
    }
    zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(folder, **trusting)
    found["zero_shot_class"] = type(zero_shot).__name__, type(model).__name__
    labels = {"candidate_labels": TEXTS[:2], "hypothesis_template": "{}"}
    found["zero_shot"] = pipeline("zero-shot-image-classification", folder, **trusting)(image, **labels)
    found["feature_extraction"] = pipeline("image-feature-extraction", folder, **trusting)(image)
    found["vision"] = CLIPVisionModel.from_pretrained(folder)(**images).pooler_output
    found["projected"] = CLIPVisionModelWithProjection.from_pretrained(folder)(**images).image_embeds
    # A model that is trained further without this repository is saved as a folder that loads the same way.
    model.save_pretrained(f"{folder}-again")
    again = AutoModel.from_pretrained(f"{folder}-again", **trusting).eval()
    found["saved_again"] = again(**texts).text_embeds
    return found


if __name__ == "__main__":
    output, *folders = sys.argv[1:]
    with torch.no_grad():
        for folder in folders:
            torch.save(results(folder), os.path.join(output, os.path.basename(folder) + ".pt"))
    assert "component" not in sys.modules  # it may be installed, but must not be used
