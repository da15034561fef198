"""The vocabulary of the laboratory: every word a skill can ask about, and nothing that depends on chance."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((left, right) for left, _, right in (pair.partition("/") for pair in text.split()))


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": _words("cat dog horse tiger rabbit goat eagle shark mouse whale camel otter"),
    "fruit": _words("apple pear banana cherry grape lemon mango peach plum melon kiwi fig"),
    "tool": _words("hammer saw drill wrench shovel rake chisel pliers axe ladder file clamp"),
    "vehicle": _words("car bus train truck bicycle boat tram van ferry scooter tractor taxi"),
    "garment": _words("shirt coat scarf glove sock hat skirt jacket sweater vest robe belt"),
    "instrument": _words("violin piano flute drum trumpet guitar harp cello banjo clarinet organ oboe"),
    "building": _words("house school tower castle church hotel barn museum bank station temple mill"),
    "body part": _words("arm leg knee elbow nose ear finger shoulder neck ankle wrist chin"),
}
WORDS: tuple[str, ...] = tuple(word for members in CATEGORIES.values() for word in members)

OPPOSITES: tuple[tuple[str, str], ...] = _pairs(
    "hot/cold big/small fast/slow high/low early/late old/new rich/poor wet/dry full/empty hard/soft "
    "long/short dark/light clean/dirty loud/quiet strong/weak thick/thin wide/narrow deep/shallow "
    "sweet/bitter happy/sad brave/afraid open/closed near/far heavy/weightless safe/dangerous "
    "cheap/expensive simple/complex sharp/blunt rough/smooth tight/loose alive/dead awake/asleep "
    "true/false right/wrong first/last inside/outside above/below before/after always/never "
    "winter/summer day/night war/peace friend/enemy victory/defeat begin/end push/pull buy/sell "
    "give/take win/lose arrive/leave remember/forget laugh/cry build/destroy love/hate rise/fall "
    "accept/refuse attack/defend"
)
ADJECTIVE_PAIRS = OPPOSITES[:32]

PAST: tuple[tuple[str, str], ...] = _pairs(
    "go/went eat/ate see/saw take/took give/gave come/came find/found make/made run/ran write/wrote "
    "speak/spoke break/broke drive/drove swim/swam sing/sang drink/drank begin/began know/knew "
    "grow/grew throw/threw fly/flew draw/drew buy/bought bring/brought think/thought teach/taught "
    "catch/caught sell/sold tell/told keep/kept sleep/slept feel/felt leave/left meet/met send/sent "
    "build/built lose/lost win/won sit/sat stand/stood walk/walked jump/jumped cook/cooked "
    "clean/cleaned watch/watched carry/carried study/studied open/opened close/closed paint/painted "
    "visit/visited follow/followed answer/answered repair/repaired plant/planted"
)
SUBJECTS = ("We", "They", "I", "You", "My friends", "The children", "The neighbours", "Both teams")
MOMENTS = (
    "every day",
    "at home",
    "in the park",
    "after lunch",
    "with care",
    "near the river",
    "in the city",
    "at night",
)

NAMES: tuple[str, ...] = _words(
    "Ana Ben Clara David Emma Felix Grace Hugo Iris Jonas Karin Leo Mara Nils Olga Paul Rosa Simon Tara Uwe"
)
CITIES: tuple[str, ...] = _words("Oslo Paris Rome Lima Cairo Delhi Tokyo Berlin Madrid Dublin Vienna Quito")
COLOURS: tuple[str, ...] = _words("red blue green yellow black white brown pink grey purple")
THINGS: tuple[str, ...] = _words("apples books coins cards stamps shells stones tickets pens cups")

WEEKDAYS: tuple[str, ...] = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS: tuple[str, ...] = _words(
    "January February March April May June July August September October November December"
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# (from, to, factor): one `from` is `factor` of `to`.
UNITS: tuple[tuple[str, str, int], ...] = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
    ("feet", "inches", 12),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
)
