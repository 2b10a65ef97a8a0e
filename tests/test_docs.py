"""Documents that a reader can find and follow: no link leads nowhere, and the index leads everywhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
DOCUMENTS = [*TOP, *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def prose(document: Path) -> str:
    """A document without its code, where brackets mean something else."""
    fenced = re.sub(r"^(```+).*?^\1", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]]", "", code[0]), fenced)


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """The files of this project that a document leads to, each with the heading (`""`: none)."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if not re.match(r"[a-z]+:", target):
            path, _, heading = target.partition("#")
            yield (document.parent / path).resolve() if path else document, heading


def anchors(document: Path) -> set[str]:
    """The headings of a document as the names that links give them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_heading_that_exist(document: Path) -> None:
    for target, heading in links(document):
        assert target.exists(), f"{document.name} leads to {target}"
        assert not heading or heading in anchors(target), f"{document.name} leads to {target.name}#{heading}"


def test_the_index_leads_to_every_document() -> None:
    assert {path for path in DOCS.rglob("*.md") if path != INDEX} <= {path for path, _ in links(INDEX)}


def test_no_document_is_named_where_it_no_longer_lies() -> None:
    """Comments, error texts and settings name documents too, without a link."""
    named = re.compile(r"\bdocs/[\w./-]+\.(?:md|json|svg|png)\b")
    for folder in ("src", "tests", "benchmarks", "reliability", "packages", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".toml", ".json", ".service", ".plist"):
                missing = [name for name in named.findall(path.read_text()) if not (ROOT / name).exists()]
                assert not missing, f"{path.relative_to(ROOT)} names {missing}"
