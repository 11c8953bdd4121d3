"""Texts about nothing in particular, by which a score is judged: does the query fit an image better than these?"""

_NOUNS = (
    "猫 狗 马 牛 羊 鸟 鱼 花 树 草 山 海 河 天空 云 雪 雨 太阳 月亮 星星 房子 桥 街道 汽车 火车 飞机 船 自行车 人 "
    "孩子 老人 女人 男人 医生 厨师 运动员 苹果 香蕉 面包 米饭 蛋糕 咖啡 茶 水 书 电脑 手机 桌子 椅子 床 灯 钟表 衣服 "
    "裙子 鞋子 帽子 包 眼镜 伞 球 吉他 钢琴 相机 玩具 礼物 地图 旗子 火 工厂 学校 医院 商店 办公室 厨房 卧室 公园 "
    "沙漠 森林 城市 乡村 会议 婚礼 比赛 表格 文字 图标 箭头"
).split()
_SENTENCES = ("一张{}的图片", "{}", "有{}的照片")

RANDOM_TEXTS = tuple(sentence.format(noun) for noun in _NOUNS for sentence in _SENTENCES)
