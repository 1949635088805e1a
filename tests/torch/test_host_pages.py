"""The pages on hosts say what is so: their examples run and give what they show."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


@pytest.mark.parametrize(("page", "package", "least"), [("huggingface", "transformers", 15), ("timm", "timm", 8)])
def test_the_examples_run_and_give_what_they_show(page, package, least):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    torch.manual_seed(0)
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    assert len(examples.examples) >= least
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)
