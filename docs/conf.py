"""Settings of the site; CONTRIBUTING.md has the command that builds it. Nothing is fetched from the network, by it or by a reader."""

from __future__ import annotations

import os

# Before NumPy is loaded by the gallery: pictures need one thread, and timings on them would mean nothing.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from softlinalg import __version__

project = "softlinalg"
author = "The softlinalg developers"
project_copyright = "2026, the softlinalg developers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax from PyPI, copied beside the pages: formulas show without a network
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "gallery/*.py.md5", "gallery/*.zip"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions, which Sphinx cannot compare between builds

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_dmath_double_inline = True  # the theory pages set displays inside paragraphs
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc shows types with their shapes
autodoc_default_options = {"show-inheritance": True}
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # that page takes its table from a network
    "show_signature": False,
    "abort_on_example_error": True,
    "plot_gallery": "True",
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 1,
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
}

html_theme = "pydata_sphinx_theme"
html_title = f"softlinalg {version}"
html_static_path: list[str] = []
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}

templates_path = ["_templates"]


def bars_are_norms(app, what, name, obj, options, lines):
    """Norms are written |x| in the docstrings, where reStructuredText would look for a substitution."""
    in_math = False
    for i, line in enumerate(lines):
        if line.strip():
            in_math = line.startswith(" ") if in_math else False
        if line.lstrip().startswith(".. math::"):
            in_math = True
        elif not in_math and not line.lstrip().startswith((">>>", "...", "|")):
            # Parts between backticks, at odd places of the split, stay as they are.
            parts = line.split("`")
            lines[i] = "`".join(part if j % 2 else part.replace("|", r"\|") for j, part in enumerate(parts))


def skip_fields(app, what, name, member, skip, options):
    """Fields of named tuples stand in their docstring: what Python says of them is "Alias for field number 0"."""
    routed = name.startswith("set_") and name.endswith("_request")  # made by scikit-learn, described in its own pages
    return True if routed or type(member).__name__ == "_tuplegetter" else None


def setup(app):
    """Hook for Sphinx."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", bars_are_norms, priority=900)  # after numpydoc
