"""Judge whether a gallery has any image for a text: a search alone always returns something.

If images fit a text, they stand out from the rest; if none fits, many are about equally near. So the measure is the
share that the TOP best images have in softmax(SCALE · cosine) over the whole gallery; five rather than one, because
several may fit. What share a text without an image reaches differs between models and galleries: the threshold is
measured with the gallery's random texts, after leaving out the images that are nearest to each of them.

Shapes: Q texts, N rows, D projection width.
"""

from collections.abc import Iterator

import numpy as np

from component.gallery.reader import Gallery, chunks

SCALE, TOP = 20, 5
_ALIKE = 0.7  # images with at least this cosine to the best image are left out with it
_QUANTILE = 0.85  # share of the random texts without an image that are below the threshold
_NOUNS = (
    "猫 狗 马 牛 羊 鸟 鱼 花 树 草 山 海 河 天空 云 雪 雨 太阳 月亮 星星 房子 桥 街道 汽车 火车 飞机 船 自行车 人 "
    "孩子 老人 女人 男人 医生 厨师 运动员 苹果 香蕉 面包 米饭 蛋糕 咖啡 茶 水 书 电脑 手机 桌子 椅子 床 灯 钟表 衣服 "
    "裙子 鞋子 帽子 包 眼镜 伞 球 吉他 钢琴 相机 玩具 礼物 地图 旗子 火 工厂 学校 医院 商店 办公室 厨房 卧室 公园 "
    "沙漠 森林 城市 乡村 会议 婚礼 比赛 表格 文字 图标 箭头"
).split()
_SENTENCES = ("一张{}的图片", "{}", "有{}的照片")

# What a gallery is asked for when its threshold is measured.
RANDOM_TEXTS = tuple(sentence.format(noun) for noun in _NOUNS for sentence in _SENTENCES)


def concentration(best: np.ndarray, total: np.ndarray) -> np.ndarray:
    """(…) log of the share, at most 0.

    Args:
        best: (…, at most TOP) cosines of the best images.
        total: (…) `log_sum_exp` of SCALE · cosine over the whole gallery.
    """
    return log_sum_exp(SCALE * best) - total


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """(…, n) → (…,) log of the sum of the exponentials; -inf counts as nothing."""
    highest = values.max(axis=-1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):  # the log of 0
        return np.log(np.exp(values - highest).sum(axis=-1)) + highest[..., 0]


def absence_threshold(gallery: Gallery) -> float | None:
    """The concentration below which a text probably has no image; None if the gallery has too few images to judge."""
    texts, living = np.array(gallery.about["random_texts"], np.float32), gallery.rows_where()
    if living.sum() <= 2 * TOP:
        return None
    highest, found = np.full(len(texts), -np.inf, np.float32), np.zeros_like(texts)
    for vectors in _living(gallery, living):
        scores = texts @ vectors.T
        rows = scores.argmax(axis=1)
        scores = scores.max(axis=1)
        found[scores > highest] = vectors[rows[scores > highest]]
        highest = np.maximum(highest, scores)
    best, total = np.full((len(texts), TOP), -np.inf, np.float32), np.full(len(texts), -np.inf, np.float32)
    for vectors in _living(gallery, living):
        scores = texts @ vectors.T
        scores[found @ vectors.T >= _ALIKE] = -np.inf
        best = np.partition(np.concatenate([best, scores], axis=1), -TOP, axis=1)[:, -TOP:]
        total = np.logaddexp(total, log_sum_exp(SCALE * scores))
    left = best.max(axis=1) > -np.inf
    return float(np.quantile(concentration(best[left], total[left]), _QUANTILE)) if left.any() else None


def _living(gallery: Gallery, living: np.ndarray) -> Iterator[np.ndarray]:
    for start, vectors in chunks(gallery.vectors()):
        vectors = vectors[living[start : start + len(vectors)]]
        if len(vectors):
            yield vectors
