"""The site without Sphinx: links among its pages, lists of pages, the reference against the public names, examples, the gallery."""

from __future__ import annotations

import collections
import doctest
import importlib
import inspect
import os
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from softlinalg import _cli_options

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "gallery", "generated"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not BUILT & set(page.relative_to(DOCS).parts)]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
TUTORIALS = [page for page in PAGES if page.parent.name in ("tutorial", "explanation") or page.name.startswith("migrate-")]
MODULES = (
    "softlinalg",
    "softlinalg.errors",
    "softlinalg.sklearn",
    "softlinalg.dask",
    "softlinalg.jax",
    "softlinalg.torch",
    "softlinalg.torch.gpytorch",
    "softlinalg.testing",
    "softlinalg.testing.gallery",
    "softlinalg.testing.ratios",
    "softlinalg.testing.strategies",
    "softlinalg.testing.suites",
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """The anchor that Markdown gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_among_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        path, _, place = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if other.parent == DOCS / "gallery":  # built by the gallery
            assert other.name == "index.rst"
            continue
        assert other.exists(), f"{target} leads nowhere"
        if place:
            headings = re.findall(r"^#+ (.*)$", text_of(other), re.MULTILINE)
            assert place in map(anchor, headings), f"{target}: no such heading"


def listed(page: Path) -> set[Path]:
    """Pages that the tables of contents of a page name."""
    found: set[Path] = set()
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
        for line in filter(None, (line.strip() for line in block.splitlines())):
            if not line.startswith(":"):
                found |= {path.resolve() for path in page.parent.glob(f"{line}.md")} or {(page.parent / f"{line}.md").resolve()}
    return found


def test_every_page_is_in_a_table_of_contents_and_every_entry_is_a_page() -> None:
    entries = set().union(*map(listed, PAGES)) - {DOCS / "gallery" / "index.md"}
    assert entries - {DOCS / "index.md"} == set(PAGES) - {DOCS / "index.md"}


# -------------------------------------------------------------------------------------------------- reference
def documented() -> set[str]:
    """Full names in the lists of the reference."""
    names: set[str] = set()
    for page in (DOCS / "reference").glob("*.md"):
        module = ""
        for line in text_of(page).splitlines():
            if found := re.match(r"\.\. currentmodule:: ([\w.]+)$", line):
                module = found[1]
            elif module and re.fullmatch(r"   \w+", line):
                names.add(f"{module}.{line.strip()}")
            elif line.startswith("```"):
                module = ""
    return names


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    if "testing" in module:
        pytest.importorskip("hypothesis")
    elif "." in module and module != "softlinalg.errors":
        pytest.importorskip(module.rpartition(".")[2])
    there = documented()
    kit = [name for name in there if name.startswith("softlinalg.testing.")] if "testing" in module else []
    values = {id(getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])) for name in kit}
    space = importlib.import_module(module)
    missing = [
        name
        for name in space.__all__
        if not name.startswith("__")
        and not inspect.ismodule(getattr(space, name))
        and f"{module}.{name}" not in there
        and id(getattr(space, name)) not in values  # named once, where it is defined
    ]
    assert not missing


def test_the_reference_names_nothing_that_is_not_there() -> None:
    for needed in ("torch", "dask", "jax", "gpytorch", "hypothesis", "sklearn"):
        pytest.importorskip(needed)
    for name in documented():
        module, _, last = name.rpartition(".")
        assert last in importlib.import_module(module).__all__, name


def test_the_command_is_described_whole() -> None:
    parser = _cli_options.make_parser(collections.defaultdict(lambda: None))
    (commands,) = (action.choices for action in parser._actions if action.dest == "command")
    page = text_of(DOCS / "reference" / "command.md")
    assert not [name for name in commands if f"`softlinalg {name}`" not in page]


# --------------------------------------------------------------------------------------------------- examples
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_examples_of_the_page_run(page: Path) -> None:
    text = text_of(page)
    if ">>>" not in text:
        pytest.skip("the page has no examples")
    for module in ("torch", "sklearn"):
        if f"softlinalg.{module}" in text:
            pytest.importorskip(module)
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted >= 4


GALLERY = sorted((ROOT / "examples" / "gallery").glob("*.py"))
QUICK = {"plot_3_landmarks_on_an_image", "plot_5_filter_functions", "plot_7_regression_with_deviations"}


def test_gallery_examples_are_found_and_titled() -> None:
    assert len(GALLERY) >= 5
    for path in GALLERY:
        assert path.name.startswith("plot_"), "sphinx-gallery runs files of that name only"
        title, rule = text_of(path).splitlines()[1:3]
        assert set(rule) == {"="}
        assert len(rule) == len(title)


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_gallery_examples_run_and_draw(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem not in QUICK and os.environ.get("HYPOTHESIS_PROFILE") != "thorough":
        pytest.skip("takes seconds: runs with HYPOTHESIS_PROFILE=thorough, and whenever the site is built")
    pytest.importorskip("sklearn")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.close("all")
    monkeypatch.setattr(plt, "show", lambda: None)
    runpy.run_path(str(path))
    assert len(plt.get_fignums()) == 1
    plt.close("all")


# ------------------------------------------------------------------------------------------------- the release
def test_citation_and_package_agree() -> None:
    citation = text_of(ROOT / "CITATION.cff")
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    assert f"\nlicense: {project['license']}\n" in citation
    assert f"\ntitle: {project['name']}\n" in citation
