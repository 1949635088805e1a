"""The conda recipe renders, and asks for what the package asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import softlinalg

ROOT = Path(__file__).parents[1]


def test_the_recipe_asks_for_what_the_package_asks_for() -> None:
    jinja2 = pytest.importorskip("jinja2", reason="renders the recipe")
    yaml = pytest.importorskip("yaml", reason="reads the recipe")
    recipe = yaml.safe_load(jinja2.Template((ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")).render(PYTHON="python"))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, wanted = package["project"], recipe["requirements"]
    python = f"python{project['requires-python']}"

    def words(requirements: list[str]) -> set[str]:
        return {line.replace(" ", "") for line in requirements}

    assert words(wanted["run"]) == words(project["dependencies"]) | {python}
    assert words(wanted["host"]) == words(package["build-system"]["requires"]) | {python, "pip"}
    assert softlinalg.__version__.removesuffix(".dev0") == recipe["package"]["version"]
