"""The words of the base's own world: goods in three languages, people, units, numbers, noise. Written by us."""

# English slug, German, Chinese. The slug is what an order line calls the thing when nothing else is known.
GOODS = [
    line.split("|")
    for line in """
tomatoes|Tomaten|番茄
potatoes|Kartoffeln|土豆
onions|Zwiebeln|洋葱
carrots|Karotten|胡萝卜
apples|Äpfel|苹果
pears|Birnen|梨
bananas|Bananen|香蕉
oranges|Orangen|橙子
lemons|Zitronen|柠檬
grapes|Trauben|葡萄
lettuce|Salat|生菜
cucumbers|Gurken|黄瓜
peppers|Paprika|辣椒
garlic|Knoblauch|大蒜
ginger|Ingwer|生姜
mushrooms|Pilze|蘑菇
spinach|Spinat|菠菜
cabbage|Kohl|白菜
beans|Bohnen|豆子
peas|Erbsen|豌豆
corn|Mais|玉米
rice|Reis|大米
flour|Mehl|面粉
sugar|Zucker|白糖
salt|Salz|盐
honey|Honig|蜂蜜
butter|Butter|黄油
milk|Milch|牛奶
cream|Sahne|奶油
yoghurt|Joghurt|酸奶
cheese|Käse|奶酪
eggs|Eier|鸡蛋
bread|Brot|面包
rolls|Brötchen|小面包
noodles|Nudeln|面条
pasta|Pasta|意面
oats|Haferflocken|燕麦
nuts|Nüsse|坚果
olive-oil|Olivenöl|橄榄油
oil|Öl|食用油
vinegar|Essig|醋
mustard|Senf|芥末
ketchup|Ketchup|番茄酱
soy-sauce|Sojasauce|酱油
tea|Tee|茶叶
coffee|Kaffee|咖啡
cocoa|Kakao|可可
juice|Saft|果汁
water|Wasser|矿泉水
cola|Cola|可乐
beer|Bier|啤酒
wine|Wein|葡萄酒
chicken|Hähnchen|鸡肉
beef|Rindfleisch|牛肉
pork|Schweinefleisch|猪肉
ham|Schinken|火腿
sausages|Würste|香肠
fish|Fisch|鱼
salmon|Lachs|三文鱼
shrimp|Garnelen|虾
tofu|Tofu|豆腐
napkins|Servietten|餐巾
cups|Becher|杯子
plates|Teller|盘子
bags|Tüten|袋子
gloves|Handschuhe|手套
soap|Seife|肥皂
towels|Handtücher|毛巾
candles|Kerzen|蜡烛
paper|Papier|纸
foil|Alufolie|锡纸
boxes|Schachteln|盒子
screws|Schrauben|螺丝
paint|Farbe|油漆
brushes|Pinsel|刷子
lamps|Lampen|灯
batteries|Batterien|电池
cables|Kabel|电缆
pens|Stifte|笔
folders|Ordner|文件夹
chairs|Stühle|椅子
tables|Tische|桌子
""".split()
]
# canonical unit, then its spellings by language
UNITS = {
    "case": (["case", "cases", "cs", "crate", "crates", "carton", "cartons"], ["Kiste", "Kisten", "Karton", "Kartons"], ["箱"]),
    "piece": (["pcs", "pieces", "pc", "piece", "units", ""], ["Stück", "Stk", ""], ["个", "件"]),
    "kg": (["kg", "kilos", "kilo"], ["kg", "Kilo"], ["公斤", "kg"]),
    "bag": (["bags", "bag", "sacks"], ["Sack", "Säcke", "Beutel"], ["袋"]),
}
NUMBERS = {
    1: ("one", "eine", "一"), 2: ("two", "zwei", "两"), 3: ("three", "drei", "三"), 4: ("four", "vier", "四"),
    5: ("five", "fünf", "五"), 6: ("six", "sechs", "六"), 8: ("eight", "acht", "八"), 10: ("ten", "zehn", "十"),
    12: ("a dozen", "ein Dutzend", "一打"), 20: ("twenty", "zwanzig", "二十"),
}
DAYS = [
    ("Mon", "Monday", "Montag", "周一"), ("Tue", "Tuesday", "Dienstag", "周二"), ("Wed", "Wednesday", "Mittwoch", "周三"),
    ("Thu", "Thursday", "Donnerstag", "周四"), ("Fri", "Friday", "Freitag", "周五"),
]
MONTHS = "January February March April May June July August September October November December".split()
PEOPLE = """Anna Ben Clara David Emma Felix Grace Hugo Ida Jan Karl Lena Max Nora Oskar Paula Rosa Sam Tina Uwe Vera Wei Li Chen
Mei Jun Maria Tom Lucy Omar Sara Ivan Elif Hans Petra Klaus Sofia Mila Noah Leo Ella Finn""".split()
FAMILIES = """Miller Smith Weber Becker Schulz Wagner Hoffmann Koch Richter Klein Wolf Brown Taylor Wilson Davies Evans Wang
Zhang Liu Yang Zhao Huang Novak Rossi Silva Garcia Martin Dubois Keller Vogel Braun Lang""".split()
CITIES = """Berlin Hamburg Munich Cologne Vienna Zurich London Leeds York Bristol Dublin Paris Lyon Madrid Porto Milan Rome
Prague Oslo Bergen Malmo Helsinki Boston Austin Denver Seattle Chicago Shanghai Beijing Shenzhen Osaka""".split()
NOISE = [
    "The last delivery was late.", "Please call before you come.", "My phone is {n}.", "See invoice {n}.", "Ring the bell at the back.",
    "Hope you are well.", "We have {n} guests this week.", "The new driver is great.", "Our account is {n}.", "It was very hot here.",
    "Die letzte Lieferung war super.", "Bitte vorher anrufen.", "Rechnung {n} ist bezahlt.", "Wir haben {n} Gäste.", "谢谢上次的帮忙。", "请送到后门。",
]
SYLLABLES = "ba be bo da de do fa fi ga go ha ka ke ko la le lo ma me mi mo na ne no pa pe po ra re ri ro sa se si so ta te ti to va ve vi wa za ze zo".split()
