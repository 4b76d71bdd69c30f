"""Colours, sizes, counts, backgrounds, styles, relations and sign words of the world. Data only."""

RGB = tuple[int, int, int]
# Name -> what the darkest and the lightest grey of a glyph become. The lighter one is also the flat background.
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((110, 0, 0), (255, 70, 60)),
    "orange": ((190, 80, 0), (255, 160, 45)),
    "yellow": ((180, 130, 0), (255, 235, 70)),
    "green": ((0, 70, 10), (90, 205, 80)),
    "blue": ((0, 20, 120), (75, 135, 255)),
    "purple": ((60, 0, 100), (175, 90, 230)),
    "pink": ((200, 60, 130), (255, 170, 210)),
    "brown": ((50, 25, 10), (165, 105, 60)),
    "black": ((0, 0, 0), (75, 75, 80)),
    "white": ((150, 150, 155), (255, 255, 255)),
    "gray": ((65, 65, 70), (180, 180, 185)),
}
# Side of a thing's glyph cell in units of the picture's side, smallest and largest; "" = no size said.
SIZES: dict[str, tuple[float, float]] = {
    "tiny": (0.14, 0.18),
    "small": (0.21, 0.26),
    "": (0.30, 0.40),
    "big": (0.46, 0.52),
    "huge": (0.70, 0.88),
}
# The same for the one that holds, wears or rides: what it has with it needs room.
GROUP_SIZES: dict[str, tuple[float, float]] = {"small": (0.26, 0.32), "": (0.46, 0.58)}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "tiny": ("tiny", "very small"),
    "small": ("small", "little"),
    "big": ("big", "large"),
    "huge": ("huge", "giant"),
}
COUNTS: dict[int, str] = {2: "two", 3: "three", 4: "four"}

SCENES = ("night", "beach", "snow", "meadow", "desert", "sunset", "underwater", "space", "city", "forest")
STYLES = ("flat", "outline", "pixelated", "grayscale")
# "right of" and "below" are "left of" and "above" told from the other end: the same scene, the same combination.
INVERSES = {"right of": "left of", "below": "above"}
SPATIAL = ("left of", "above", "next to")
TOUCHING = ("holding", "wearing", "riding", "on top of", "inside")
RELATIONS = (*SPATIAL, *INVERSES, *TOUCHING)
SYMMETRIC = frozenset({"next to"})
# What else is then true of subject and object, and of object and subject.
IMPLIES = {"on top of": "above", "riding": "above"}
IMPLIES_INVERSE = {"wearing": "above"}

_SIGN_WORDS = """
HELLO HI STOP GO YES NO OPEN LOVE HOME CAFE EXIT SALE PARK ZOO TAXI HELP WOW OK LOL FUN JOY ART MUSIC SHOP BANK
HOTEL NORTH SOUTH EAST WEST MENU FREE WARM COLD QUIET JAZZ DREAM LUCKY MAGIC PEACE SMILE THANKS PLEASE SORRY
PARTY DANCE QUIZ VOTE NEWS FARM LAKE RIVER HILL ROAD MILE FAST SLOW DOWN KEEP OUT IN NEW OLD HOT WET DRY SUNNY
RAIN WIND STORM BAKERY TEA JUICE LUNCH DINNER FRESH SWEETS TOYS GAMES KIDS TEAM GOAL WIN PLAY RUN JUMP SWIM READ
WRITE LEARN THINK CODE DATA LATENT
"""
SIGN_WORDS = tuple(_SIGN_WORDS.split())
