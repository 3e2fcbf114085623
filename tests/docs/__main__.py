"""Writes the reference pages that are made of the source anew: `python -m tests.docs`."""

from tests.docs.reference_pages import PAGES, REFERENCE

if __name__ == "__main__":
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
