"""Four trees and what their tools take -> who runs when, with a barrier and without: a picture."""

from collections.abc import Sequence

from docs.pictures.svg import BLUE, INK, PAPER, TEAL, Picture

TOOLS = ((1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3))
"""What the calls of each tree take, in turns of the engine: each turn but the last is followed by one."""
UNIT, LANE = 50, 34
Lanes = list[list[int]]


def free() -> Lanes:
    """Return when each turn of each tree begins, if a turn waits for its own tool alone."""
    return [[sum(1 + took for took in calls[:turn]) for turn in range(len(calls) + 1)] for calls in TOOLS]


def lock_step() -> Lanes:
    """Return the same, if a turn waits for the tools of all trees."""
    slowest = [max(calls) for calls in zip(*TOOLS, strict=True)]
    return [[sum(1 + took for took in slowest[:turn]) for turn in range(len(slowest) + 1)] for _ in TOOLS]


def end(lanes: Lanes) -> int:
    """Return when the last turn has been sampled."""
    return max(lane[-1] for lane in lanes) + 1


def batches(lanes: Lanes) -> list[int]:
    """Return how many turns the engine samples in each unit of time."""
    return [sum(time in lane for lane in lanes) for time in range(end(lanes))]


def tree(picture: Picture, left: float, y: float, starts: Sequence[int], calls: Sequence[int]) -> None:
    """Draw the lane of a tree: its turns, its tools, and where it waits for others."""
    for turn, start in enumerate(starts):
        picture.box(left + start * UNIT + 1, y, UNIT - 2, LANE - 8, BLUE)
        if turn < len(calls):
            begin, back = left + (start + 1) * UNIT, left + (start + 1 + calls[turn]) * UNIT
            picture.box(begin + 1, y, back - begin - 2, LANE - 8, TEAL, faint=True)
            picture.words((begin + back) / 2, y + 18, "tool", size=13)
            if (on := left + starts[turn + 1] * UNIT) > back:
                picture.shapes.append(
                    f'<line x1="{back + 6:g}" y1="{y + 13:g}" x2="{on - 6:g}" y2="{y + 13:g}" stroke="{INK}" '
                    'stroke-width="2" stroke-dasharray="1 5"/>'
                )


def panel(picture: Picture, top: float, says: str, lanes: Lanes) -> None:
    """Draw all trees, and below them what the engine has to do."""
    left = 80
    picture.words(8, top - 12, says, at="start", bold=True)
    for number, (starts, calls) in enumerate(zip(lanes, TOOLS, strict=True)):
        y = top + number * LANE
        picture.words(8, y + 18, f"tree {number}", size=14, at="start")
        tree(picture, left, y, starts, calls)
    y = top + len(lanes) * LANE + 8
    picture.words(8, y + 18, "engine", size=14, at="start")
    for time, size in enumerate(batches(lanes)):
        picture.box(left + time * UNIT + 1, y, UNIT - 2, LANE - 8, BLUE if size else INK, faint=not size)
        picture.words(
            left + time * UNIT + UNIT / 2, y + 18, str(size) if size else "idle", PAPER if size else INK, size=13
        )


def scheduling() -> Picture:
    """Draw both schedules on one axis."""
    picture = Picture(
        760, 476, "Four trees with tools of unequal length: lock-step takes 13 units of time, free takes 9"
    )
    panel(picture, 34, f"lock-step: every turn waits for the slowest tool ({end(lock_step())} units)", lock_step())
    panel(picture, 262, f"free: a turn waits for its own tool ({end(free())} units)", free())
    picture.words(
        8,
        466,
        "blue: the engine samples a turn (in the engine's row: how many at once) · dotted: waits for another tree",
        size=14,
        at="start",
    )
    return picture
