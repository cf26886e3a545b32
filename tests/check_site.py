"""Check the site that ``make docs`` built: every link inside it leads somewhere, nothing comes from the network."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The anchors of a page, where it links to, and what a browser loads to show it."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.formulas = set(), [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.update(given[key] for key in ("id", "name") if given.get(key))
        self.formulas += tag == "math"
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADED.get(tag)) and given.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loaded.append(given[LOADED[tag]])


def main(root):
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    assert pages, f"{root}: no pages"
    wrong, links = [], 0
    for path, page in pages.items():
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data"):
                wrong.append(f"{path.name}: loads {link}")
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                wrong.append(f"{path.name}: no file {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{path.name}: no place {link}")
    formulas = sum(page.formulas for page in pages.values())
    assert formulas > 0, "no formula was rendered"
    assert (root / "searchindex.js").exists(), "no search"
    assert not wrong, "\n".join(wrong)
    print(f"{len(pages)} pages, {links} links and {formulas} formulas: all lead somewhere, nothing loads from afar")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
