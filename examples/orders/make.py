"""Make the example's files: catalogue, customers, past records, new inbox. Everything is invented; the same seed makes the same files.

    python examples/orders/make.py

A wholesaler for restaurants gets its orders by e-mail, in three languages, the way people write them. What was booked
afterwards is the record's ``expected``: after the business rules (cases, minimum quantities, discontinued goods).
"""

import json
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from random import Random

import workflow

HERE = Path(__file__).parent
RECORDS = 3400
INBOX = 24

# sku | unit it is sold in | pieces in a case | least quantity | successor when discontinued | English | German | Chinese
# Names are separated by commas: the first is the official one, the others are what customers say.
GOODS = """
cherry-tomatoes|case|12|1||cherry tomatoes,cherries toms,little red ones|Kirschtomaten,Cherrytomaten|樱桃番茄,小番茄
tomatoes|case|20|1||tomatoes,toms|Tomaten,Paradeiser|番茄,西红柿
potatoes|bag|1|1||potatoes,spuds|Kartoffeln,Erdäpfel|土豆,马铃薯
sweet-potatoes|bag|1|1||sweet potatoes,orange spuds|Süßkartoffeln|红薯
onions|bag|1|1||onions|Zwiebeln|洋葱
spring-onions|case|10|1||spring onions,scallions|Lauchzwiebeln,Frühlingszwiebeln|小葱
garlic|kg|1|1||garlic|Knoblauch,Knobi|大蒜
carrots|bag|1|1||carrots|Karotten,Möhren|胡萝卜
rocket|case|8|1||rocket,arugula|Rucola|芝麻菜
lettuce|case|6|2||lettuce,lettuces|Salat,Kopfsalat|生菜
cucumbers|case|12|1||cucumbers,cukes|Gurken|黄瓜
aubergines|case|10|1||aubergines,eggplants|Auberginen,Melanzani|茄子
mushrooms|kg|1|2||mushrooms,shrooms|Pilze,Champignons|蘑菇
lemons|case|30|1||lemons|Zitronen|柠檬
limes|case|40|1||limes,green lemons|Limetten|青柠
mint|piece|1|5||mint|Minze|薄荷
basil|piece|1|5||basil|Basilikum|罗勒
parmesan|piece|1|1||parmesan,the hard cheese|Parmesan,Parmi|帕玛森
mozzarella|case|8|1||mozzarella,mozza|Mozzarella,Mozza|马苏里拉
feta|case|6|1||feta,greek cheese|Feta,Hirtenkäse|羊奶酪
butter|case|20|1||butter|Butter|黄油
cream|case|12|1||cream|Sahne,Obers|奶油
oat-milk|case|6|1||oat milk,the barista milk|Hafermilch,Haferdrink|燕麦奶
milk|case|12|1||milk|Milch|牛奶
eggs|case|30|1||eggs|Eier|鸡蛋
sourdough|piece|1|4||sourdough,sourdough loaves|Sauerteigbrot,Bauernbrot|酸面包
burger-buns|bag|1|2||burger buns,buns|Burgerbrötchen,Buns|汉堡面包
pasta|case|24|1||pasta|Pasta,Nudeln|意面
basmati|bag|1|1||basmati,basmati rice|Basmati,Basmatireis|香米
flour|bag|1|1||flour|Mehl|面粉
olive-oil|case|4|1||olive oil,the good oil|Olivenöl|橄榄油
fryer-oil|piece|1|1||fryer oil,frying oil|Frittieröl,Fritteusenfett|炸油
vinegar|case|6|1||vinegar|Essig|醋
soy-sauce|case|6|1||soy sauce,soy|Sojasauce,Soja|酱油,生抽
ketchup|case|12|1||ketchup|Ketchup|番茄酱
mayo|piece|1|1||mayo,mayonnaise|Mayo,Mayonnaise|蛋黄酱
chicken-breast|kg|1|2||chicken breast,breasts|Hähnchenbrust,Hendlbrust|鸡胸
minced-beef|kg|1|2||minced beef,mince|Hackfleisch,Faschiertes|牛肉末
bacon|kg|1|1||bacon|Speck|培根
salmon|kg|1|2||salmon|Lachs|三文鱼
prawns|kg|1|1||prawns,shrimps|Garnelen|虾
tofu|case|10|1||tofu|Tofu|豆腐
coffee|kg|1|1||coffee,beans for the machine|Kaffee|咖啡
green-tea|case|20|1||green tea|Grüntee|绿茶
cola|case|24|1||cola,coke|Cola|可乐
tonic|case|24|1||tonic|Tonic|汤力水
sparkling-water|case|12|1||sparkling water,fizzy water,bubbles|Sprudel,Mineralwasser|气泡水
house-red|case|6|1||house red,the red|Hauswein rot,der Rote|红酒
prosecco|case|6|1||prosecco,fizz|Prosecco,Sekt|起泡酒
napkins|case|10|1||napkins,serviettes|Servietten|餐巾
takeaway-boxes|case|50|1||takeaway boxes,to go boxes|Takeaway-Boxen,Menüschalen|外卖盒
paper-straws|case|20|1||straws,paper straws|Strohhalme|吸管
bin-bags|piece|1|2||bin bags,rubbish bags|Müllsäcke|垃圾袋
gloves|case|10|1||gloves|Handschuhe|手套
plastic-straws|case|20|1|paper-straws|plastic straws|Plastikhalme|塑料吸管
table-wine|case|6|1|house-red|table wine|Tafelwein|餐酒
""".strip().splitlines()

UNITS = {
    "case": (["cases", "case", "crates", "trays", "ctn", "boxes"], ["Kisten", "Karton", "Steigen", "Gebinde"], ["箱"]),
    "piece": (["pcs", "pieces", "units", "single"], ["Stück", "Stk", "einzelne"], ["个", "件"]),
    "kg": (["kg", "kilos"], ["kg", "Kilo"], ["公斤", "kg"]),
    "bag": (["bags", "sacks"], ["Säcke", "Sack"], ["袋"]),
}
WORDS = {
    1: ("one", "eine", "一"),
    2: ("two", "zwei", "两"),
    3: ("three", "drei", "三"),
    4: ("four", "vier", "四"),
    6: ("half a dozen", "sechs", "六"),
    10: ("ten", "zehn", "十"),
    12: ("a dozen", "ein Dutzend", "一打"),
}
WEEKDAYS = (
    ("Monday", "Mon", "Montag", "周一"),
    ("Tuesday", "Tues", "Dienstag", "周二"),
    ("Wednesday", "Weds", "Mittwoch", "周三"),
    ("Thursday", "Thurs", "Donnerstag", "周四"),
    ("Friday", "Fri", "Freitag", "周五"),
)
CUSTOMERS = """
anna@trattoria-lume.example|Anna Conti|Trattoria Lume|0
bo@bowlhaus.example|Bo Larsen|Bowlhaus|0
chef@theanchor.example|Dee Walsh|The Anchor|0
orders@cafe-nine.example|Priya Nair|Cafe Nine|0
mike@smokeshed.example|Mike Doyle|Smoke Shed|0
hello@greenfork.example|Sally Reed|Green Fork|0
kitchen@hotelmarin.example|Jo Peters|Hotel Marin|0
tom@burgerbrew.example|Tom Hale|Burger & Brew|0
rita@tapasdos.example|Rita Sol|Tapas Dos|0
events@oldmill.example|Gwen Frost|Old Mill Events|0
kueche@zumhirschen.example|Franz Huber|Zum Hirschen|1
einkauf@kantine-sued.example|Birgit Lang|Kantine Süd|1
moin@fischbude.example|Hauke Petersen|Fischbude 7|1
info@cafe-morgenrot.example|Lea Kern|Café Morgenrot|1
wirt@goldeneslamm.example|Toni Gruber|Goldenes Lamm|1
bestellung@pizzapronto.example|Marco Bauer|Pizza Pronto|1
li@jadegarten.example|李伟|翡翠园|2
chen@noodlebar88.example|陈静|八八面馆|2
wang@hotpothaus.example|王芳|火锅屋|2
zhao@teehausmond.example|赵明|月亮茶馆|2
""".strip().splitlines()
NOISE = (
    (
        "The last delivery was perfect, thank you.", "Could you send the invoice for March again?", "Kitchen opens at 9.",
        "Please ring at the back door.", "Two crates were damaged last week.", "We are closed on the 3rd.", "New chef, so expect changes :)",
        "Is the driver still Kevin?", "We have a wedding for 80 people.",
    ),
    (
        "Letztes Mal fehlte eine Kiste.", "Bitte hinten anliefern.", "Die Rechnung 4471 ist bezahlt.", "Wir haben ab 9 Uhr auf.",
        "Habt ihr bald wieder Spargel?", "Der neue Fahrer ist super.", "Am Wochenende Hochzeit mit 60 Gästen.",
    ),
    ("上次送得很准时，谢谢。", "请送到后门。", "发票请再发一次。", "这周有宴会，60人。", "我们早上九点开门。"),
)
OPENING = (
    ("Hi,", "Hello team,", "Morning!", "Hi there, for the next delivery:", "Can we please have", "Order from us:", "", "Hiya, need"),
    ("Hallo,", "Guten Morgen,", "Moin,", "wir bräuchten bitte", "Bestellung:", "Servus,", ""),
    ("你好，", "您好，订单如下：", "我们要", "麻烦送：", ""),
)
CLOSING = (("Thanks", "Cheers", "Best", "Ta", ""), ("Danke", "LG", "Viele Grüße", "Gruß", ""), ("谢谢", "辛苦了", ""))
SAME = (
    ("same as last time", "the usual please", "repeat our last order", "same again"),
    ("wie letztes Mal", "das Übliche bitte", "nochmal dasselbe"),
    ("跟上次一样", "老样子", "照旧"),
)
PLUS = ("plus", "dazu", "另外加")


def main() -> None:
    rng = Random(20260301)
    write_catalogue()
    goods = [Good(line) for line in GOODS]
    customers = [tuple(line.split("|")) for line in CUSTOMERS]
    tastes = {mail: rng.sample(goods, 26) for mail, *_ in customers}
    last: dict[str, list[dict]] = {}
    at = datetime(2026, 1, 5, 7, 0)
    records = []
    for number in range(RECORDS):
        at = next_moment(rng, at)
        record = make_record(rng, f"o{number + 1:04d}", at, rng.choice(customers), tastes, last)
        records.append(record)
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (HERE / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (HERE / "last_orders.json").write_text(json.dumps(last, ensure_ascii=False, indent=1, sort_keys=True) + "\n", "utf-8")
    write_inbox(rng, at, customers, tastes, last)


class Good:
    """One line of the catalogue, with what people call it."""

    def __init__(self, line: str) -> None:
        sku, unit, case, least, successor, english, german, chinese = line.split("|")
        self.sku, self.unit, self.case, self.least, self.successor = sku, unit, int(case), int(least), successor
        self.names = [english.split(","), german.split(","), chinese.split(",")]


def write_catalogue() -> None:
    rows = ["sku,unit,case_size,least,successor"]
    rows += [f"{good.sku},{good.unit},{good.case},{good.least},{good.successor}" for good in map(Good, GOODS)]
    (HERE / "catalogue.csv").write_text("\n".join(rows) + "\n", "utf-8")


def next_moment(rng: Random, at: datetime) -> datetime:
    at += timedelta(minutes=rng.randint(5, 50))
    if at.hour >= 19:
        at = at.replace(hour=7) + timedelta(days=1)
    while at.weekday() > 4:
        at += timedelta(days=1)
    return at.replace(second=rng.randrange(60))


def make_record(rng: Random, record_id: str, at: datetime, customer: tuple, tastes: dict, last: dict) -> dict:
    mail, _person, firm, _language = customer
    item, said, day = make_order(rng, at, customer, tastes[mail], last.get(mail, []))
    expected = workflow.finish({"lines": said, "day": int(day[-2:])}, item)
    last[mail] = expected["lines"]
    return {"id": record_id, "at": at.isoformat(), "customer": firm, "input": item, "expected": expected}


def make_order(rng: Random, at: datetime, customer: tuple, taste: list[Good], before: list[dict]) -> tuple[dict, list[dict], str]:
    """Return the e-mail, the lines as the customer meant them, and the day of delivery."""
    mail, person, firm, language = customer[0], customer[1], customer[2], int(customer[3])
    again = bool(before) and rng.random() < 0.08
    picked = rng.sample(taste, rng.choice((0, 1)) if again else rng.choices((1, 2, 3, 4), (4, 5, 3, 1))[0])
    lines = [{"sku": good.sku, "qty": quantity(rng, good), "unit": unit_of(rng, good)} for good in picked]
    texts = [order_line(rng, good, line, language) for good, line in zip(picked, lines, strict=True)]
    after = change_of_mind(rng, picked, lines, language) if len(picked) > 1 and rng.random() < 0.1 else None
    when, day = delivery_day(rng, at, language)
    ordered = join_lines(rng, texts, language)
    if again:
        ordered = rng.choice(SAME[language]) + (f" {PLUS[language]} {ordered}" if ordered else "")
        lines = [dict(line) for line in before if line["sku"] not in {new["sku"] for new in lines}] + lines
    tail = [part for part in (after, when) if part]
    rng.shuffle(tail)
    if rng.random() < 0.35:
        tail.insert(rng.randrange(len(tail) + 1), rng.choice(NOISE[language]))
    parts = [rng.choice(OPENING[language]), ordered, *tail, rng.choice(CLOSING[language]), rng.choice((person, person.split()[0], ""))]
    body = "\n".join(part for part in parts if part) + below(rng, person, firm, language, before)
    item = {"from": mail, "subject": subject(rng, language), "at": at.isoformat(), "body": body}
    if again:
        item["last"] = before
    elif before and rng.random() < 0.02:
        item["last"] = before  # the desk looked it up though the customer did not ask for it
    return item, lines, day


def quantity(rng: Random, good: Good) -> int:
    if good.unit == "piece":
        return rng.choice((4, 5, 6, 8, 10, 12))
    return rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12))


def unit_of(rng: Random, good: Good) -> str:
    """Now and then somebody orders single pieces of what is sold by the case."""
    return "piece" if good.unit == "case" and rng.random() < 0.05 else good.unit


def order_line(rng: Random, good: Good, line: dict, language: int) -> str:
    name = rng.choices(good.names[language], [3, *[1] * (len(good.names[language]) - 1)])[0]
    name = misspelt(rng, name) if language < 2 else name
    qty, unit = line["qty"], rng.choice(UNITS[line["unit"]][language])
    shown = WORDS[qty][language] if qty in WORDS and rng.random() < 0.2 else str(qty)
    if language == 2:
        return rng.choice((f"{name}{shown}{unit}", f"{shown}{unit}{name}", f"{name} {qty}{unit}"))
    of = " of" if language == 0 and rng.random() < 0.4 else ""
    forms = (f"{shown} {unit}{of} {name}", f"{name} x{qty} {unit}", f"{name}: {shown} {unit}", f"{qty}x {unit} {name}", f"- {name}, {shown} {unit}")
    return rng.choice(forms)


def misspelt(rng: Random, name: str) -> str:
    if rng.random() < 0.3:
        name = name.lower()
    if len(name) < 5 or rng.random() > 0.07:
        return name
    at = rng.randrange(1, len(name) - 1)
    return rng.choice((name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]))


def change_of_mind(rng: Random, picked: list[Good], lines: list[dict], language: int) -> str:
    at = rng.randrange(len(lines))
    name = picked[at].names[language][0]
    if rng.random() < 0.3:
        lines.pop(at)
        return (f"actually no {name} this time", f"{name} doch nicht", f"{name}不要了")[language]
    new = rng.choice([number for number in (2, 3, 4, 5, 6, 7, 8, 9) if number != lines[at]["qty"]])
    lines[at]["qty"] = new
    return (
        rng.choice((f"oh wait, make the {name} {new}", f"sorry, {new} {name} not {new + 1}", f"actually {new} {name}")),
        rng.choice((f"ach nein, {new} {name}", f"{name} doch lieber {new}")),
        rng.choice((f"不对，{name}要{new}", f"{name}改成{new}")),
    )[language]


def delivery_day(rng: Random, at: datetime, language: int) -> tuple[str, str]:
    """Return the customer's words for a working day ahead, and that day as ISO date; no words mean the next one."""
    ahead = workflow.working_days(at.date())
    kind = rng.random()
    if kind < 0.3:
        return "", ahead[0].isoformat()
    if kind < 0.4:
        return (rng.choice(("asap please", "as soon as you can")), "so bald wie möglich", "尽快")[language], ahead[0].isoformat()
    if kind < 0.5:
        words = (rng.choice(("in two days", "not the next day but the one after")), "übernächster Liefertag", "大后天前，隔一天送")
        return words[language], ahead[1].isoformat()
    day = rng.choice(ahead)
    long, short, german, chinese = WEEKDAYS[day.weekday()]
    if kind < 0.85:
        return (
            rng.choice((f"for {long}", f"{short} delivery", f"needed {long} morning", f"pls bring on {short}")),
            rng.choice((f"bis {german}", f"Lieferung {german}", f"brauchen wir {german} früh")),
            rng.choice((f"{chinese}送到", f"{chinese}早上要")),
        )[language], day.isoformat()
    return (
        rng.choice((f"for the {day.day}th", f"deliver on {day.day}/{day.month}")),
        rng.choice((f"zum {day.day}.{day.month}.", f"bis zum {day.day}.")),
        f"{day.month}月{day.day}号送",
    )[language], day.isoformat()


def join_lines(rng: Random, texts: list[str], language: int) -> str:
    return rng.choice(("\n", "\n", ", ", (" and ", " und ", "，")[language])).join(texts)


def subject(rng: Random, language: int) -> str:
    return rng.choice((("order", "Order for this week", "Re: delivery", "hi", ""), ("Bestellung", "AW: Lieferung", "Nachschub"), ("订单", "订货", "回复：送货"))[language])


def below(rng: Random, person: str, firm: str, language: int, before: list[dict]) -> str:
    text = ""
    if rng.random() < 0.4:
        text += f"\n-- \n{person}\n{firm}\nTel. +49 40 {rng.randint(100000, 999999)}"
    if before and rng.random() < 0.2:
        intro = ("On Mon the desk wrote:", "Am Montag schrieb das Büro:", "订货台写道：")[language]
        text += f"\n\n{intro}\n" + "\n".join(f"> {line['qty']} {line['unit']} {line['sku']}" for line in before)
    return text


def write_inbox(rng: Random, at: datetime, customers: list[tuple], tastes: dict, last: dict) -> None:
    """Write new e-mails, in the encodings that mail programs use, and a few that are no orders at all."""
    folder, booked = HERE / "inbox", {}
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number in range(INBOX):
        at = next_moment(rng, at)
        customer = customers[number % len(customers)]
        item, said, day = make_order(rng, at, customer, tastes[customer[0]], last[customer[0]])
        name = f"{number + 1:02d}.eml"
        charset = ("utf-8", "utf-8", "iso-8859-1")[number % 3] if int(customer[3]) < 2 else ("utf-8", "gb18030")[number % 2]
        (folder / name).write_bytes(email_bytes(item, customer[1], charset, html=number % 8 == 3))
        booked[Path(name).stem] = workflow.finish({"lines": said, "day": int(day[-2:])}, item | {"last": last[customer[0]]})
    for name, (text, sender) in OTHERS.items():
        item = {"from": sender, "subject": name, "at": next_moment(rng, at).isoformat(), "body": text}
        (folder / f"{name}.eml").write_bytes(email_bytes(item, sender.split("@")[0], "utf-8", html=False))
    (HERE / "inbox_booked.json").write_text(json.dumps(booked, ensure_ascii=False, indent=1) + "\n", "utf-8")


OTHERS = {
    "complaint": ("Hi,\nhalf of yesterday's salmon smelled odd. Please call me, we need to talk about a credit note.\nDee", "chef@theanchor.example"),
    "invoice": ("Guten Tag,\nbitte schicken Sie uns die Rechnung 4471 noch einmal als PDF.\nBirgit Lang", "einkauf@kantine-sued.example"),
    "empty": ("", "tom@burgerbrew.example"),
}


def email_bytes(item: dict, person: str, charset: str, html: bool) -> bytes:
    message = EmailMessage()
    message["From"] = f"{person} <{item['from']}>"
    message["To"] = "orders@hafenmarkt.example"
    message["Subject"] = item["subject"] or "(no subject)"
    message["Date"] = datetime.fromisoformat(item["at"]).strftime("%a, %d %b %Y %H:%M:%S +0000")
    if html:
        markup = "<html><body><p>" + item["body"].replace("&", "&amp;").replace(">", "&gt;").replace("\n", "<br>\n") + "</p></body></html>"
        message.set_content(markup, subtype="html", charset=charset)
    else:
        message.set_content(item["body"], charset=charset)
    return message.as_bytes()


if __name__ == "__main__":
    main()
