"""The order of imports, the words that the core may not say, the length of files, and what `import softlinalg` costs."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import softlinalg
from softlinalg import errors

PACKAGE = Path(softlinalg.__file__).parent

ROWS = [
    {"errors", "_typing"},
    {"_arrays", "_inputs", "_linalg", "_buffers", "_settings", "_memory", "_rng", "_compiled", "_native"},
    {"_kernel*", "_iterations", "_filters", "_norm_bounds", "_certificates*"},
    {"_pinv", "_inversion", "_newton_pinv", "_ridge_inverse", "_landmark*"},
    {"_nystrom*"},
    {"_ridge_regression", "_ridge_sums", "_ridge_length_scales", "_ridge_landmarks", "_conjugate_gradients", "_spectral"},
    {"_attention*", "_streaming*"},
]
"""The core, from the bottom up: a file may import files of rows above its own here, and of its own family (see `FAMILIES`)."""

FAMILIES = [
    {"errors", "_typing"},
    {"_arrays", "_inputs", "_linalg", "_buffers", "_settings", "_memory", "_native", "_compiled"},
    {"_rng"},
    {"_kernel*"},
    {"_iterations", "_filters", "_norm_bounds"},
    {"_certificates*"},
    {"_pinv", "_inversion", "_newton_pinv", "_ridge_inverse"},
    {"_landmark*"},
    {"_nystrom*"},
    {"_ridge_regression", "_ridge_sums", "_ridge_length_scales", "_ridge_landmarks", "_conjugate_gradients", "_spectral"},
    {"_attention*"},
    {"_streaming*"},
]
"""Files that hold one object together, split for their length; within a family no import may lead back."""

TOPMOST = {"_cli_check", "_cli_bench_workloads", "_cli_export"}
"""Parts of the command that stand above the other adapters: `softlinalg check` shows what `softlinalg.testing` measures, and
`softlinalg bench` times what every adapter does, `softlinalg export` writes models of `softlinalg.torch`. They may
import adapters, in functions only, so that the rest of the command works without them."""

ADAPTERS = [{"cli", "_cli_*"}, {"sklearn", "_sklearn_*"}, {"dask"}, {"jax"}, {"testing", "testing.*"}, {"torch", "torch.*"}]

FRAMEWORKS = {"torch", "jax", "cupy", "sklearn", "dask"}

NUMPY_ALLOWED = {
    "_settings": "True and False of NumPy",
    "_native": "compiled code in the memory of NumPy's arrays",
    "_arrays": "knows array libraries",
    "_inputs": "knows array libraries: numbers and arrays as people pass them",
    "_linalg": "knows array libraries: calls LAPACK where they lack it",
    "_rng": "random numbers are drawn on the host",
    "_typing": "names numpy.random.Generator",
    "_inversion": "what became of each matrix of a batch (converged, bound, ridge) is a small table on the host",
    "_ridge_inverse": "what became of each matrix of a batch (converged, bound, ridge) is a small table on the host",
    "_landmarks": "random choices of rows on the host",
    "_landmark_clusters": "random choices of rows on the host",
    "_landmark_refinement": "hands SciPy's L-BFGS host arrays",
    "_landmark_sampling": "random choices of rows on the host",
    "_landmark_rows": "different rows are found on the host",
    "_ridge_length_scales": "hands SciPy's L-BFGS host arrays",
    "_ridge_landmarks": "pivots are chosen one after the other, on the host",
    "_nystrom_fit": "row numbers, and a random choice of rows, on the host",
    "_nystrom_io": "files are written from host arrays",
    "_streaming": "rows arrive on the host",
    "_streaming_checkpoint": "files are written from host arrays",
    "_streaming_files": "files are read into host arrays",
    "_streaming_plan": "rows arrive on the host",
    "_streaming_sources": "rows arrive on the host",
    "_streaming_tasks": "rows arrive on the host",
}
"""Core files that import NumPy, with the reason. Everything else works on the array API alone."""


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _matches(module: str, patterns: set[str]) -> bool:
    return any(re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), module) for pattern in patterns)


def _place(module: str, groups: list[set[str]]) -> int | None:
    return next((i for i, group in enumerate(groups) if _matches(module, group)), None)


CORE = {module: path for module, path in MODULES.items() if _place(module, ROWS) is not None}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)


def _own_imports(path: Path) -> set[str]:
    """Modules of softlinalg that a file imports."""
    names = {name.removeprefix("softlinalg.") for name in _imported(_tree(path)) if name.startswith("softlinalg.")}
    return {name for name in names if name in MODULES}


def _words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every identifier of a file, split at underscores: imports, names, attributes, arguments."""
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Name):
            found = [node.id]
        elif isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.arg | ast.keyword):
            found = [node.arg or ""]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = [node.name]
        elif isinstance(node, ast.Import):
            found = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            found = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        for name in found:
            yield from ((getattr(node, "lineno", 0), word) for word in [name, *name.lower().split("_")])


# ------------------------------------------------------------------------------------------ order of imports
def test_every_file_has_a_place_in_the_layout() -> None:
    homeless = [m for m in MODULES if m != "" and _place(m, ROWS) is None and _place(m, ADAPTERS) is None]
    assert not homeless, f"add to ROWS or ADAPTERS in {Path(__file__).name}: {homeless}"
    assert all(_place(module, FAMILIES) is not None for module in CORE)


@pytest.mark.parametrize("module", sorted(CORE))
def test_core_files_import_only_what_stands_above_them(module: str) -> None:
    row, family = _place(module, ROWS), _place(module, FAMILIES)
    for other in _own_imports(CORE[module]):
        assert other in CORE, f"{module} imports the adapter {other}"
        above = _place(other, ROWS) < row  # type: ignore[operator]
        assert above or _place(other, FAMILIES) == family, f"{module} imports {other}, which does not stand above it"


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_imports_within_a_family_lead_nowhere_back(family: int) -> None:
    members = {module: _own_imports(path) for module, path in CORE.items() if _place(module, FAMILIES) == family}
    while ready := [module for module, needs in members.items() if not needs & (set(members) - {module})]:
        for module in ready:
            del members[module]
    assert not members, f"imports in a circle: {sorted(members)}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(CORE) - {""}))
def test_adapters_import_no_other_adapter(module: str) -> None:
    home = _place(module, ADAPTERS)
    if module in TOPMOST:
        at_import = {
            name.removeprefix("softlinalg.")
            for node in _tree(MODULES[module]).body
            for name in _imported(node)
            if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef) and name.startswith("softlinalg.")
        }
        assert not {name for name in at_import & set(MODULES) if name not in CORE and _place(name, ADAPTERS) != home}
        return
    strangers = {other for other in _own_imports(MODULES[module]) if other not in CORE and _place(other, ADAPTERS) != home}
    assert not strangers, f"{module} imports {strangers}"


# ---------------------------------------------------------------------------------------- words and functions
@pytest.mark.parametrize("module", sorted(set(CORE) - {"_arrays", "_inputs", "_linalg", "_buffers"}))
def test_the_core_names_no_framework(module: str) -> None:
    found = [(line, word) for line, word in _words(_tree(CORE[module])) if word in FRAMEWORKS]
    assert not found, f"{module} names {found}; put it into _arrays.py or _linalg.py"


@pytest.mark.parametrize("module", sorted(CORE))
def test_numpy_serves_only_host_side_choices(module: str) -> None:
    imported = {name.split(".")[0] for name in _imported(_tree(CORE[module]))}
    if module in NUMPY_ALLOWED:
        assert "numpy" in imported, f"{module} no longer imports NumPy: take it off NUMPY_ALLOWED"
    else:
        assert "numpy" not in imported, f"{module} imports NumPy; use the array API, or say in NUMPY_ALLOWED why not"


def test_only_files_that_exist_may_use_numpy() -> None:
    assert set(NUMPY_ALLOWED) <= set(CORE)


FORBIDDEN_NAMES = {"eval", "exec"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_LOADS = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "joblib.load", "pickle.load", "pickle.loads"}


def _reads_tensors_only(call: ast.Call) -> bool:
    """torch.load with the literal weights_only=True, which refuses every pickle that is more than tensors."""
    settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func) == "torch.load" and settings.get("weights_only") == "True"


def _dangers(tree: ast.AST) -> Iterator[str]:
    """What could run code found in a file."""
    for name in _imported(tree):
        if set(name.split(".")) & FORBIDDEN_MODULES:
            yield f"import of {name}"
    guarded = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _reads_tensors_only(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield f"line {node.lineno}: {node.id}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_LOADS and id(node) not in guarded:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"line {node.value.lineno}: allow_pickle is not the literal False"
        is_load = isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load")
        if is_load and not any(keyword.arg == "allow_pickle" for keyword in node.keywords):
            yield f"line {node.lineno}: np.load without allow_pickle=False"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_can_run_code_that_it_reads(module: str) -> None:
    assert not list(_dangers(_tree(MODULES[module])))


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "f = torch.load",
        "yaml.load(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=flag)",
        "f = exec",
    ],
)
def test_the_search_for_such_code_finds_it(code: str) -> None:
    assert list(_dangers(ast.parse(code)))


# ------------------------------------------------------------------------------------------- length of files
LONGEST = 600
"""Lines of a file that is still read as a whole."""


def test_no_file_is_too_long_to_read() -> None:
    root = Path(__file__).resolve().parents[1]
    files = [path for folder in ("softlinalg", "tests", "examples", "docs") for path in (root / folder).rglob("*.py")]
    lines = {str(path.relative_to(root)): path.read_bytes().count(b"\n") for path in files}
    assert len(lines) > 200, "the files are there to be counted"
    assert not {name: count for name, count in lines.items() if count > LONGEST}, "split them by their sections"


# --------------------------------------------------------------------------------------------- public names
@pytest.mark.parametrize("name", softlinalg.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(softlinalg, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", value)
        return
    text = inspect.getdoc(value)
    assert text
    assert len(text.splitlines()[0]) > 10
    if inspect.isfunction(value):
        assert re.search(r"^Parameters\n-{10}$", text, re.MULTILINE), f"{name} documents no parameters"
        assert re.search(r"^Returns\n-{7}$", text, re.MULTILINE), f"{name} documents no result"
        for parameter in inspect.signature(value).parameters:
            assert re.search(rf"^(.*, )?\*?{parameter}(, .*)?( :|$)", text, re.MULTILINE), f"{name} does not document {parameter}"


def test_an_unknown_name_is_refused_like_anywhere_in_python() -> None:
    with pytest.raises(AttributeError, match="no attribute 'inverse_of_everything'"):
        softlinalg.inverse_of_everything  # noqa: B018
    assert set(softlinalg.__all__) == set(dir(softlinalg))


# -------------------------------------------------------------------------------------------- cost of import
IMPORT = "import time; start = time.perf_counter(); import softlinalg; print(time.perf_counter() - start)"


def test_import_is_quick() -> None:
    runs = [float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(runs) < 0.25, f"seconds: {runs}"


def test_import_loads_no_framework() -> None:
    code = "import sys, softlinalg; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {*FRAMEWORKS, "pandas", "matplotlib", "scipy"}


def test_the_core_loads_no_framework_either() -> None:
    code = "import sys, softlinalg; [getattr(softlinalg, name) for name in softlinalg.__all__]; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {*FRAMEWORKS, "pandas", "matplotlib"}


# ---------------------------------------------------------------------------------------------------- errors
PARENTS = {
    "SoftlinalgError": (Exception,),
    "InputError": (errors.SoftlinalgError, ValueError),
    "ShapeError": (errors.InputError,),
    "NonFiniteError": (errors.InputError,),
    "ParameterError": (errors.InputError,),
    "DTypeError": (errors.SoftlinalgError, TypeError),
    "BackendMismatchError": (errors.SoftlinalgError, TypeError),
    "NumericalError": (errors.SoftlinalgError, ArithmeticError),
    "ConvergenceError": (errors.NumericalError,),
    "RangeError": (errors.NumericalError,),
    "ResourceError": (errors.SoftlinalgError, MemoryError),
    "CheckpointError": (errors.SoftlinalgError, ValueError),
    "CheckpointCorruptError": (errors.CheckpointError,),
    "CheckpointVersionError": (errors.CheckpointError,),
    "SoftlinalgWarning": (UserWarning,),
    "ConvergenceWarning": (errors.SoftlinalgWarning,),
    "RankWarning": (errors.SoftlinalgWarning,),
    "PrecisionWarning": (errors.SoftlinalgWarning,),
    "DuplicateLandmarkWarning": (errors.SoftlinalgWarning,),
}


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_derive_from_ours_and_from_what_people_catch(name: str) -> None:
    assert getattr(errors, name).__bases__ == PARENTS[name]


def test_all_errors_are_listed() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__}
    assert defined == set(errors.__all__) == set(PARENTS)
    assert not defined & set(vars(builtins)), "none hides a built-in"


def test_errors_carry_what_they_promise() -> None:
    assert errors.ConvergenceError("text", info=3).info == 3
    assert errors.ConvergenceError("text").info is None
    error = errors.ResourceError("text", 8, 4)
    assert (error.required_bytes, error.budget_bytes, str(error)) == (8, 4, "text")


@pytest.mark.parametrize("name", ["softlinalg", "softlinalg.testing"])
def test_type_checkers_see_every_name_that_is_imported_late(name: str) -> None:
    module = importlib.import_module(name)
    for_checkers = {
        alias.asname or alias.name
        for node in _tree(Path(str(module.__file__))).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    assert for_checkers == set(module.__all__) - {"__version__"}
