"""Draw images/model.png: the two towers, and which parts are trained.

python images/draw_model.py
"""

import os

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

LOCKED, LEARNS, DATA = "#d6e4f5", "#fde3c8", "#f2f2f2"


def box(axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0.06", facecolor=colour, edgecolor="#444"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11)


def arrow(axes, x: float, y: float, to_x: float, to_y: float) -> None:
    axes.annotate("", (to_x, to_y), (x, y), arrowprops=dict(arrowstyle="-|>", color="#444", lw=1.4))


def main() -> None:
    figure, axes = plt.subplots(figsize=(10.5, 4.4), dpi=130)
    for y, data, tower, projection, colour in (
        (2.9, "image\npixel_values", "CLIP ViT\n(locked)", "visual_projection", LOCKED),
        (0.3, "Chinese caption\ninput_ids", "BERT\n(mengzi)", "text_projection", LEARNS),
    ):
        box(axes, 0, y, 1.9, 0.9, data, DATA)
        box(axes, 2.6, y, 1.9, 0.9, tower, colour)
        box(axes, 5.2, y, 1.9, 0.9, projection, LEARNS)
        arrow(axes, 2.0, y + 0.45, 2.5, y + 0.45)
        arrow(axes, 4.6, y + 0.45, 5.1, y + 0.45)
        arrow(axes, 7.2, y + 0.45, 8.5, 2.6 if y > 2 else 1.5)
    axes.text(4.85, 2.45, "pooler_output, computed once per image\n(image feature cache)", ha="center", va="top")
    box(axes, 7.75, 1.6, 2.6, 0.9, "logit_scale · cosine\nsymmetric InfoNCE", LEARNS)
    for x, colour, label in ((7.75, LOCKED, "locked"), (9.2, LEARNS, "trained")):
        box(axes, x, 0.3, 0.25, 0.25, "", colour)
        axes.text(x + 0.45, 0.425, label, va="center")
    axes.set(xlim=(-0.2, 10.6), ylim=(0.0, 4.1))
    axes.axis("off")
    figure.savefig(os.path.join(os.path.dirname(__file__), "model.png"), bbox_inches="tight")


if __name__ == "__main__":
    main()
