"""Shapes and words -> an SVG that reads on white and on black: no background, lines and words in a middle tone."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

INK = "#76808b"  # words and lines on whatever stands behind the picture
BLUE, ORANGE, GREY, TEAL = "#2f6fbf", "#b8541a", "#66707b", "#0f7f77"
PAPER = "#ffffff"  # words on shapes


@dataclass
class Picture:
    """A drawing of `width` by `height` units; `title` is what a screen reader says."""

    width: int
    height: int
    title: str
    shapes: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, colour: str, *, faint: bool = False) -> None:
        """Draw a filled box, or, faint, its broken outline."""
        look = f'fill="none" stroke="{colour}" stroke-dasharray="4 3"' if faint else f'fill="{colour}"'
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" {look}/>')

    def words(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = INK,
        *,
        size: int = 15,
        at: str = "middle",
        bold: bool = False,
    ) -> None:
        """Write a line whose baseline is at y; `at` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{at}"{weight}>'
            f"{escape(text)}</text>"
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str = INK, *, arrow: bool = False) -> None:
        """Draw a line through points, with a head at its end if it is an arrow."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = ' marker-end="url(#head)"' if arrow else ""
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{head}/>')

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="system-ui, Segoe UI, DejaVu Sans, sans-serif">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", marker, *self.shapes, "</svg>"]) + "\n"
