"""One tree with its rewards -> how they travel up to values, and how siblings are compared: the pictures of Credit."""

from dataclasses import dataclass

from docs.pictures.svg import BLUE, GREY, INK, ORANGE, PAPER, Picture

WIDTH, HEIGHT = 136, 50


@dataclass(frozen=True)
class Turn:
    """A turn of the worked tree, with the numbers that docs/concepts/credit.md derives; x and y are its middle."""

    parent: str
    does: str
    x: float
    y: float
    value: float
    advantage: float
    reward: float | None = None


TURNS = {
    "question": Turn("", "the question", 420, 40, 3 / 6, 0.0),
    "A": Turn("question", "search the city", 160, 150, 1 / 2, 0.0),
    "B": Turn("question", "search the country", 500, 150, 2 / 3, 1 / 6),
    "C": Turn("question", "answer at once", 760, 150, 0.0, -1 / 2, 0.0),
    "A1": Turn("A", "answer 856", 80, 260, 1.0, 1 / 2, 1.0),
    "A2": Turn("A", "answer 66", 240, 260, 0.0, -1 / 2, 0.0),
    "B1": Turn("B", "search the code", 500, 260, 2 / 3, 0.0),
    "B1a": Turn("B1", "answer 856", 350, 370, 1.0, 1 / 3, 1.0),
    "B1b": Turn("B1", "answer 856", 500, 370, 1.0, 1 / 3, 1.0),
    "B1c": Turn("B1", "answer 855", 650, 370, 0.0, -2 / 3, 0.0),
}
LEAVES = {"question": 6, "A": 2, "B": 3, "B1": 3}


def edges(picture: Picture, *, up: bool) -> None:
    """Draw a line for each turn and its parent, with a head at the parent if rewards travel up."""
    for turn in TURNS.values():
        if turn.parent:
            above = TURNS[turn.parent]
            lower, upper = (turn.x, turn.y - HEIGHT / 2), (above.x, above.y + HEIGHT / 2)
            picture.line([lower, upper], arrow=up)


def node(picture: Picture, turn: Turn, colour: str, number: str) -> None:
    """Draw a turn: its number in a box, and above the box what it does."""
    left, top = turn.x - WIDTH / 2, turn.y - HEIGHT / 2
    picture.box(left, top, WIDTH, HEIGHT, colour)
    picture.words(turn.x, turn.y - 5, turn.does, PAPER, size=12)
    picture.words(turn.x, turn.y + 16, number, PAPER, size=16, bold=True)


def values() -> Picture:
    """Rewards travel up: the value of a turn is the mean reward of the leaves below it."""
    picture = Picture(840, 430, "Rewards of six leaves travel up a tree: each turn's value is the mean of its leaves")
    edges(picture, up=True)
    for name, turn in TURNS.items():
        if turn.reward is not None:
            node(picture, turn, BLUE if turn.reward else ORANGE, f"reward {turn.reward:g}")
        else:
            node(picture, turn, GREY, f"V = {turn.value:.3f}")
            picture.words(turn.x + WIDTH / 2 + 8, turn.y + 5, f"{LEAVES[name]} leaves", size=14, at="start")
    picture.words(420, 425, "A leaf has a reward. A turn has the mean reward of the leaves below it.", size=15)
    return picture


def siblings() -> Picture:
    """Siblings are compared: a turn's advantage is its value less that of the state it was taken in."""
    picture = Picture(
        840, 466, "Advantages of the same tree by the estimator parent: siblings are compared with each other"
    )
    edges(picture, up=False)
    for left, right, y in ((84, 836, 150), (4, 316, 260), (274, 726, 370)):
        picture.shapes.append(
            f'<rect x="{left}" y="{y - 35}" width="{right - left}" height="70" rx="12" fill="none" stroke="{INK}" '
            'stroke-dasharray="5 4" stroke-width="1.5"/>'
        )
    picture.words(832, 206, "coarse: one strategy or another", size=14, at="end")
    picture.words(160, 316, "fine: this answer or that", size=14)
    picture.words(500, 426, "fine: the same two searches, this answer or that", size=14)
    for turn in TURNS.values():
        picture_number(picture, turn)
    picture.words(420, 458, "▲ blue: better than the state it was taken in · ▼ orange: worse · grey: as good", size=14)
    return picture


def picture_number(picture: Picture, turn: Turn) -> None:
    """Draw a turn with its advantage, told by colour, sign and mark."""
    if not turn.parent:
        node(picture, turn, GREY, "V = 0.500")
    elif turn.advantage == 0:
        node(picture, turn, GREY, "0")
    else:
        mark, colour = ("▲", BLUE) if turn.advantage > 0 else ("▼", ORANGE)
        node(picture, turn, colour, f"{mark} {turn.advantage:+.3f}".replace("-", "−"))
