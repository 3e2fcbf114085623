"""Four rollouts that share turns -> rows of chains, the packed forest and what each turn sees: a picture."""

from docs.pictures.svg import BLUE, GREY, INK, PAPER, TEAL, Picture

ROWS = (("P", "A", "B", "C"), ("P", "A", "B", "D"), ("P", "A", "E", "F"), ("P", "G"))
PACKED = ("P", "A", "B", "C", "D", "E", "F", "G")
CELL, GAP = 44, 5


def path(name: str) -> tuple[str, ...]:
    """Return the turns from the prompt to this one, itself included."""
    row = next(row for row in ROWS if name in row)
    return row[: row.index(name) + 1]


def runs() -> list[tuple[str, ...]]:
    """Cut the packed turns where one does not follow from that before it."""
    found: list[tuple[str, ...]] = []
    for name in PACKED:
        if found and path(name)[:-1] == path(found[-1][-1]):
            found[-1] += (name,)
        else:
            found.append((name,))
    return found


def cell(picture: Picture, x: float, y: float, name: str, colour: str, *, again: bool = False) -> None:
    """Draw a turn, or, in outline, one that was computed before."""
    picture.box(x, y, CELL, CELL, INK if again else colour, faint=again)
    picture.words(x + CELL / 2, y + CELL / 2 + 6, name, INK if again else PAPER, size=17, bold=True)


def colour_of(name: str) -> str:
    """Return grey for the prompt, teal where several rollouts share a turn, blue elsewhere."""
    if name == "P":
        return GREY
    return TEAL if sum(name in row for row in ROWS) > 1 else BLUE


def rows(picture: Picture, left: float, top: float) -> None:
    """Draw the chains, one a row; what an earlier row has too is in outline."""
    picture.words(left, top - 14, f"a row a leaf: {sum(map(len, ROWS))} pieces to compute", at="start", bold=True)
    seen: set[str] = set()
    for number, row in enumerate(ROWS):
        for column, name in enumerate(row):
            cell(
                picture,
                left + column * (CELL + GAP),
                top + number * (CELL + GAP),
                name,
                colour_of(name),
                again=name in seen,
            )
        seen |= set(row)
    picture.words(left, top + 4 * (CELL + GAP) + 16, "broken outline: the same piece again", size=14, at="start")


def packed(picture: Picture, left: float, top: float) -> None:
    """Draw the packed forest with positions and runs."""
    picture.words(left, top - 14, f"packed, depth first: {len(PACKED)} pieces", at="start", bold=True)
    x = left
    for run in runs():
        start = x
        for name in run:
            cell(picture, x, top, name, colour_of(name))
            picture.words(x + CELL / 2, top + CELL + 20, str(len(path(name)) - 1))
            x += CELL + GAP
        y = top + CELL + 30
        picture.line([(start, y), (start, y + 6), (x - GAP, y + 6), (x - GAP, y)])
        picture.words((start + x - GAP) / 2, y + 24, "run", size=14)
        x += 10
    picture.words(left, top + CELL + 88, "numbers: the position that the model is told,", size=14, at="start")
    picture.words(left, top + CELL + 106, "which is the depth in the tree", size=14, at="start")


def seen_by(picture: Picture, left: float, top: float) -> None:
    """Draw which pieces (columns) each piece (row) attends to."""
    side = 22
    picture.words(left - 26, top - 34, "what each piece sees: its own path", at="start", bold=True)
    for column, name in enumerate(PACKED):
        picture.words(left + column * side + side / 2, top - 8, name, size=14)
    for row, name in enumerate(PACKED):
        picture.words(left - 14, top + row * side + 17, name, size=14)
        for column, other in enumerate(PACKED):
            x, y = left + column * side, top + row * side
            if other in path(name):
                picture.box(x + 1, y + 1, side - 2, side - 2, colour_of(other))
            else:
                picture.words(x + side / 2, y + 15, "·", size=14)


def forest(picture: Picture, left: float, top: float) -> None:
    """Draw the tree that the rows share."""
    picture.words(left, top - 14, "the tree that they are", at="start", bold=True)
    places = {
        "P": (120, 0),
        "A": (70, 1),
        "G": (190, 1),
        "B": (40, 2),
        "E": (120, 2),
        "C": (0, 3),
        "D": (60, 3),
        "F": (120, 3),
    }
    step = CELL + 8
    for name in PACKED[1:]:
        (x, depth), (above, _) = places[name], places[path(name)[-2]]
        ends = [(left + above + CELL / 2, top + (depth - 1) * step + CELL), (left + x + CELL / 2, top + depth * step)]
        picture.line(ends)
    for name, (x, depth) in places.items():
        cell(picture, left + x, top + depth * step, name, colour_of(name))


def every_token_once() -> Picture:
    """Draw all four."""
    says = "Four rollouts as rows of 14 pieces, and packed as 8 pieces, each of which sees its own path alone"
    picture = Picture(800, 520, says)
    rows(picture, 10, 40)
    packed(picture, 340, 40)
    forest(picture, 10, 300)
    seen_by(picture, 366, 318)
    return picture
