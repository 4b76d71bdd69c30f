"""The nouns of the world: what each is drawn with, called, and able to do. Data only."""

from dataclasses import dataclass

# Roles, one letter each:
#   a  acts: can hold things and ride        f  the glyph is a face seen from the front (not a whole body)
#   t  wears hats                            w  is a hat
#   h  is small enough to be held            m  can be ridden
#   s  has a flat top to put things on       c  has an opening to put things into
#   l  is a body that looks left
ANIMALS = """
cat 🐈 atl kitty; dog 🐕 atl puppy; monkey 🐒 atl; gorilla 🦍 atl; orangutan 🦧 a; poodle 🐩 atl;
wolf 🐺 atf; fox 🦊 atf; raccoon 🦝 atf; lion 🦁 atf; tiger 🐅 atlm; leopard 🐆 atlm; horse 🐎 atlm pony;
unicorn 🦄 atf; zebra 🦓 af; deer 🦌 atlm; bison 🦬 lm; cow 🐄 alm; ox 🐂 lm; pig 🐖 atlm piglet; boar 🐗 af;
ram 🐏 lm; sheep 🐑 atl lamb; goat 🐐 atlm; camel 🐪 lm; llama 🦙 atlm alpaca; giraffe 🦒 atlm;
elephant 🐘 alm; mammoth 🦣 lm; rhino 🦏 lm rhinoceros; hippo 🦛 lm hippopotamus; mouse 🐁 atl;
hamster 🐹 atf; rabbit 🐇 al bunny; squirrel 🐿️ atl chipmunk; beaver 🦫 atl; hedgehog 🦔 al; bat 🦇 -;
bear 🐻 atf; polar~bear 🐻‍❄️ atf; koala 🐨 atf; panda 🐼 atf; sloth 🦥 -; otter 🦦 -; skunk 🦨 al;
kangaroo 🦘 al; badger 🦡 l; turkey 🦃 l; rooster 🐓 l; chick 🐤 atl; bird 🐦 tl; penguin 🐧 atl; dove 🕊️ l;
eagle 🦅 l; duck 🦆 tl; swan 🦢 l; goose 🪿 tl; owl 🦉 atf; flamingo 🦩 l; peacock 🦚 f; parrot 🦜 tl;
frog 🐸 atf; crocodile 🐊 - alligator; turtle 🐢 atlm tortoise; lizard 🦎 - gecko; snake 🐍 tl;
dragon 🐉 l; dinosaur 🦕 alm; t-rex 🦖 atl tyrannosaur; whale 🐋 m; dolphin 🐬 m; seal 🦭 tl; fish 🐟 h;
pufferfish 🐡 -; shark 🦈 m; octopus 🐙 af; shell 🐚 h seashell; snail 🐌 lm; butterfly 🦋 h;
caterpillar 🐛 l; ant 🐜 l; bee 🐝 - honeybee; ladybug 🐞 - ladybird; spider 🕷️ -; scorpion 🦂 -;
crab 🦀 -; lobster 🦞 -; shrimp 🦐 - prawn; squid 🦑 -; moose 🫎 l; jellyfish 🪼 -
"""
PEOPLE = """
robot 🤖 atf android; ghost 👻 atf; skull 💀 tf; alien 👽 atf; clown 🤡 atf; baby 👶 atf infant; boy 👦 atf;
girl 👧 atf; man 👨 atf; woman 👩 atf lady; grandpa 👴 atf; grandma 👵 atf; wizard 🧙 af;
astronaut 🧑‍🚀 af spaceman; policeman 👮 af; vampire 🧛 atf; zombie 🧟 atf; santa 🎅 af; ninja 🥷 af;
snowman ⛄ af
"""
FOOD = """
grapes 🍇 h; melon 🍈 h; watermelon 🍉 h; tangerine 🍊 h mandarin; lemon 🍋 h; banana 🍌 h; pineapple 🍍 h;
mango 🥭 h; apple 🍎 h; pear 🍐 h; peach 🍑 h; cherries 🍒 h; strawberry 🍓 h; blueberries 🫐 h; kiwi 🥝 h;
tomato 🍅 h; coconut 🥥 h; avocado 🥑 h; eggplant 🍆 h aubergine; potato 🥔 h; carrot 🥕 h; corn 🌽 h maize;
pepper 🌶️ h chili; cucumber 🥒 h; broccoli 🥦 h; onion 🧅 h; peanut 🥜 h; bread 🍞 hs; croissant 🥐 h;
baguette 🥖 h; pretzel 🥨 h; waffle 🧇 h; pancakes 🥞 h; cheese 🧀 hs; drumstick 🍗 h; steak 🥩 h;
hamburger 🍔 h burger; fries 🍟 h; pizza 🍕 h; hot~dog 🌭 h; sandwich 🥪 h; taco 🌮 h; egg 🥚 h;
popcorn 🍿 h; ice~cream 🍦 h; donut 🍩 h doughnut; cookie 🍪 h biscuit; birthday~cake 🎂 hs;
cupcake 🧁 h muffin; pie 🥧 h; chocolate 🍫 h; candy 🍬 h sweet; lollipop 🍭 h; honey 🍯 h; bottle 🍼 h;
milk 🥛 h; coffee ☕ h; teapot 🫖 h; wine 🍷 h; beer 🍺 h; mushroom 🍄 h toadstool
"""
THINGS = """
bell 🔔 h; alarm~clock ⏰ h clock; hourglass ⌛ h; umbrella ☂️ h; balloon 🎈 h; gift 🎁 hs present;
trophy 🏆 h; soccer~ball ⚽ h football; basketball 🏀 h; baseball ⚾ h; volleyball 🏐 h; boxing~glove 🥊 h;
gamepad 🎮 h controller; dice 🎲 hs die; teddy~bear 🧸 h; kite 🪁 h; palette 🎨 h; yarn 🧶 h;
glasses 👓 h spectacles; scarf 🧣 h; sock 🧦 h; dress 👗 h; backpack 🎒 h rucksack; sneaker 👟 h; boot 🥾 h;
ring 💍 h; diamond 💎 h gem; microphone 🎤 h; headphones 🎧 h; radio 📻 hs; saxophone 🎷 h; guitar 🎸 h;
trumpet 🎺 h; violin 🎻 h fiddle; drum 🥁 hs; phone 📱 h smartphone; telephone ☎️ h; laptop 💻 h computer;
camera 📷 h; television 📺 s tv; magnifying~glass 🔍 h; candle 🕯️ h; light~bulb 💡 h;
flashlight 🔦 h torch; book 📕 h; newspaper 📰 h; money~bag 💰 h; envelope ✉️ h letter; pencil ✏️ h;
paintbrush 🖌️ h brush; scissors ✂️ h; padlock 🔒 h lock; key 🔑 h; hammer 🔨 h; axe 🪓 h hatchet;
sword 🗡️ h dagger; shield 🛡️ h; bow 🏹 h; saw 🪚 h; wrench 🔧 h spanner; magnet 🧲 h; ladder 🪜 -;
telescope 🔭 h; pill 💊 h; broom 🧹 h; feather 🪶 h; bone 🦴 h; heart ❤️ h; wand 🪄 h; lantern 🏮 h;
compass 🧭 h; vase 🏺 hs amphora; suitcase 🧳 h; handbag 👜 h purse; barrel 🛢️ s; cabinet 🗄️ s; door 🚪 -;
chair 🪑 -; bed 🛏️ -; mirror 🪞 h; basket 🧺 c; bucket 🪣 c pail; bowl 🥣 c; bathtub 🛁 c tub;
shopping~cart 🛒 c trolley; table # s desk; box # c crate
"""
HATS = """
crown 👑 wh; sun~hat 👒 wh; top~hat 🎩 wh; graduation~cap 🎓 wh; baseball~cap 🧢 wh; army~helmet 🪖 wh
"""
VEHICLES = """
car 🚗 s automobile; taxi 🚕 s cab; bus 🚌 s; ambulance 🚑 s; fire~truck 🚒 -; truck 🚚 s lorry;
tractor 🚜 -; race~car 🏎️ m; motorcycle 🏍️ m motorbike; scooter 🛵 m; bicycle 🚲 m bike; skateboard 🛹 m;
sled 🛷 m sledge; train 🚂 m; helicopter 🚁 -; airplane ✈️ h plane; rocket 🚀 h spaceship; ufo 🛸 m;
sailboat ⛵ -; canoe 🛶 m; speedboat 🚤 m; ship 🚢 -
"""
NATURE = """
blossom 🌸 h; rose 🌹 h; sunflower 🌻 h; tulip 🌷 h; pine~tree 🌲 - fir; tree 🌳 -; palm~tree 🌴 -;
cactus 🌵 -; clover 🍀 h shamrock; maple~leaf 🍁 h; rock 🪨 s stone; log 🪵 s; volcano 🌋 -; mountain ⛰️ -;
fire 🔥 - flame; cloud ☁️ s; rainbow 🌈 -; globe 🌍 h earth; castle 🏰 s; house 🏠 -; tent ⛺ -
"""
PLURALS = {
    "fish": "fish", "sheep": "sheep", "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid",
    "shrimp": "shrimp", "dice": "dice", "mouse": "mice", "wolf": "wolves", "goose": "geese", "ox": "oxen",
    "man": "men", "woman": "women", "policeman": "policemen", "spaceman": "spacemen", "snowman": "snowmen",
    "maple leaf": "maple leaves", "pufferfish": "pufferfish", "jellyfish": "jellyfish", "octopus": "octopuses",
    "die": "dice",
}  # fmt: skip
# Names that are plural or a mass already: they take no article and are not counted.
_UNCOUNTED = """
grapes cherries blueberries corn maize broccoli bread pancakes cheese fries popcorn honey milk coffee wine beer
chocolate candy yarn glasses spectacles headphones scissors money fire flame santa earth
"""
UNCOUNTED = frozenset(_UNCOUNTED.split())


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing of the world: its name, the emoji it is drawn with ("#" = drawn by us), roles, kind and other names."""

    name: str
    emoji: str
    roles: str
    kind: str
    synonyms: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the canonical one first."""
        return (self.name, *self.synonyms)


def plural(name: str) -> str:
    """The English plural of a name of the world, say "cherry" -> "cherries"."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")) or name in ("tomato", "potato", "mango"):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2] not in "aeiou" else name + "s"


def _read(table: str, kind: str) -> list[Noun]:
    rows = (entry.split() for entry in table.split(";"))
    return [Noun(r[0].replace("~", " "), r[1], r[2].strip("-"), kind, tuple(r[3:])) for r in rows]


_TABLES = {
    "animal": ANIMALS, "person": PEOPLE, "food": FOOD, "thing": THINGS, "hat": HATS, "vehicle": VEHICLES,
    "nature": NATURE,
}  # fmt: skip
NOUNS: dict[str, Noun] = {noun.name: noun for kind, table in _TABLES.items() for noun in _read(table, kind)}


def with_role(role: str) -> tuple[str, ...]:
    """Names of the nouns that have a role letter, in the order of the tables."""
    return tuple(name for name, noun in NOUNS.items() if role in noun.roles)
