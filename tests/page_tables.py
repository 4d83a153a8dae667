"""The tables of a page as a browser would see them, by the standard library's parser."""

import html.parser
import json


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.tables, self.inside = [], [], None

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "summary":
            self.names.append("")
        if tag in ("th", "td", "summary"):
            self.inside = tag
        elif tag == "small" and self.inside == "td":
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        if self.inside == "summary":
            self.names[-1] += data
        elif self.inside:
            self.tables[-1][-1][-1] += data


def read_tables(path):
    """The table of results, and the tables by group by the name of their row, as lists of text."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    first, *others = [[[" ".join(c.split()) for c in row] for row in t] for t in reader.tables]
    return first, dict(zip(reader.names, others, strict=True))


def check_groups(folder):
    """Every number of the tables by group on the page is that of `summary.json`."""
    results = json.loads((folder / "summary.json").read_text())["results"]
    if "by_group" not in next(iter(results.values())):  # rows of several settings
        results = {f"{a}: {row}": told for a, rows in results.items() for row, told in rows.items()}
    _, tables = read_tables(folder / "report.html")
    assert len(tables) > 1
    for row, (head, *lines) in tables.items():
        told = results[row]["by_group"]
        assert [line[0] for line in lines] == list(told) and head[0] == "group"
        for line, own in zip(lines, told.values(), strict=True):
            assert len(line) == len(own) + 1
            for cell, value in zip(line[1:], own.values(), strict=True):
                if not isinstance(value, dict):
                    assert cell == f"{value:,}"
                elif value["estimate"] is None:
                    assert cell == "undefined"
                else:
                    shown = f"{value['estimate']:.3f}"
                    if value["lower"] is not None:
                        shown += f" [{value['lower']:.3f}, {value['upper']:.3f}]"
                        assert value["lower"] <= value["estimate"] <= value["upper"]
                    assert cell == shown
    return tables
