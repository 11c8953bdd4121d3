"""The labels of figures in English and Chinese. One switch for all: FIGURE_LANGUAGE=zh in the environment."""

import os

CHINESE = {
    "loss": "损失",
    "training": "训练",
    "test_file": "测试集",
    "ln(batch): cannot tell pairs apart": "ln(batch)：分不清图文对",
    "text → image": "文本 → 图片",
    "image → text": "图片 → 文本",
    "recall on test_file (%)": "测试集召回率（%）",
    "upper bound": "上限",
    "logit_scale (1 / temperature)": "logit_scale（1 / 温度）",
    "learning rate": "学习率",
    "pairs per second": "每秒图文对数",
    "waiting for data (% of the time)": "等数据的时间占比（%）",
    "step": "步",
    "not measured": "未测",
    "recall@k (%)": "召回率 @k（%）",
    "query": "查询",
    "ranked first": "排在第一",
    "right answer": "正确答案",
    "rank": "名次",
    "no mistakes": "没有错误",
    "as they are": "原样",
    "mean": "平均",
    "swapped": "对调两字",
    "dropped": "漏一个字",
    "full-width": "全角",
    "half-width": "半角",
    "traditional": "繁体",
    "simplified": "简体",
    "text → image R@1 (%); the mark: the same texts as they are": "文本 → 图片 R@1（%）；竖线：同样的文本原样查询",
    "cosine of image and text": "图文余弦相似度",
    "pairs": "图文对数",
    "own data": "自己的数据",
    "kept data": "要保住的数据",
    "mean of both: decides": "两者平均：由它决定",
    "best alpha": "最好的 alpha",
    "alpha (0: before tuning, 1: after)": "alpha（0：微调前，1：微调后）",
    "mean recall (%)": "平均召回率（%）",
    "share kept at this threshold": "以此为阈值保留的比例",
}


# direction of a retrieval → its label
DIRECTIONS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def is_chinese() -> bool:
    """Whether figures have Chinese labels."""
    return os.environ.get("FIGURE_LANGUAGE", "").lower().startswith("zh")


def label(english: str) -> str:
    """The label in the language of the figures."""
    return CHINESE[english] if is_chinese() else english
