"""The options of the command `softlinalg`, and the error that it prints on one line.

Light to import: nothing here loads NumPy, so usage errors and Ctrl-C are answered from the first moment.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from softlinalg import __version__
from softlinalg.errors import SoftlinalgError

__all__ = ["CommandError", "make_parser"]

SUFFIXES = (".npy", ".npz", ".csv", ".csv.gz", ".parquet")
STREAM_SUFFIXES = (".npy", ".csv", ".csv.gz", ".parquet")
PREDICTION_SUFFIXES = (".npy", ".csv")
MODEL_SUFFIXES = (".npz", ".safetensors")
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
KERNELS = ("gaussian", "laplacian", "matern12", "matern32", "matern52")
LANDMARKS = ("rpcholesky+lloyd", "kmeans", "rpcholesky", "greedy", "leverage", "uniform")
"""The methods of `softlinalg.select_landmarks` (a test holds them equal), written out so that --help needs no NumPy."""

EXPORT_MODELS = tuple(f"{kind}_{size}" for kind in ("soft", "soft_norm") for size in ("tiny", "small", "medium", "large", "huge"))

EXAMPLES = """\
examples:
  softlinalg approximate measurements.csv --drop id --rank 200 --plot error.png
      approximate the Gaussian kernel matrix of all rows with 200 landmarks; the length
      scale is the median distance; show the exact error, and plot it against the rank
  softlinalg approximate points.npy --kernel matern32 --length-scale 0.7 --tol 0.01 --output points.npz
      find the rank that a relative trace error of 1 % takes, and keep the result for
      softlinalg.NystromDecomposition.load("points.npz")
"""


FIT_EXAMPLES = """\
examples:
  softlinalg fit houses.csv --target price --drop id --output model/
      learn to predict the column "price" from all others but "id"
  softlinalg predict new.csv --model model/ --output prices.csv
      predict it for the rows of another file, whose columns have the same names
"""


class CommandError(SoftlinalgError):
    """What the command prints after `softlinalg: error:`, on one line."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage the way everything else is reported: on one line."""

    def error(self, message: str) -> NoReturn:
        text = f"{message} (see: {self.prog} --help)"
        raise CommandError(text)


def make_parser(
    runs: Mapping[str, Callable[[argparse.Namespace], int | None]],
) -> argparse.ArgumentParser:
    """The options of the command and of its subcommands.

    Parameters
    ----------
    runs : mapping of names to callables
        Each command's function; the parsed options carry it as their attribute `run`.

    Returns
    -------
    ArgumentParser
        Raises CommandError where argparse would print its usage and leave.
    """
    parser = _Parser(
        prog="softlinalg",
        description="Low-rank approximation of kernel matrices too large to form, with the exact error; tests of numerical code.",
        epilog="softlinalg COMMAND --help explains a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"softlinalg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_approximate(commands, runs["approximate"])
    _add_fit(commands, runs["fit"])
    _add_predict(commands, runs["predict"])
    _add_demo(commands, runs["demo"])
    _add_check(commands, runs["check"])
    _add_bench(commands, runs["bench"])
    _add_doctor(commands, runs["doctor"])
    _add_export(commands, runs["export"])
    return parser


def _add_approximate(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "approximate",
        usage="softlinalg approximate DATA (--rank N | --tol T) [options]",
        help="approximate the kernel matrix of the rows of a file",
        description=(
            "Approximate the n x n kernel matrix of the n rows of DATA from a few landmarks (Nystrom),\n"
            "without ever forming it, and report the exact error: the trace of what is left over,\n"
            "relative to the trace of the whole matrix."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=f"a file of numbers, one row per point: {', '.join(SUFFIXES)}")
    size = parser.add_argument_group("how good (one of these is needed)").add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=_whole, metavar="N", help="number of landmarks")
    size.add_argument("--tol", type=_fraction, metavar="T", help="relative trace error to reach, such as 0.01; the rank follows from it")
    _add_method(parser.add_argument_group("kernel and landmarks"))
    _add_data(parser.add_argument_group("data"))
    _add_output(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def _add_last(parser: Any, run: Any) -> None:
    """What every command without groups of options ends with."""
    parser.add_argument("--debug", action="store_true", help="on an error, show the traceback as well")
    parser.set_defaults(run=run)


def _add_method(group: Any) -> None:
    group.add_argument("--kernel", choices=KERNELS, default="gaussian", help="default: gaussian")
    group.add_argument("--length-scale", type=_length_scale, default="median", metavar="NUMBER|median", help="default: median distance")
    group.add_argument(
        "--landmarks", choices=LANDMARKS, default=LANDMARKS[0], metavar="METHOD", help=f"{', '.join(LANDMARKS)}; default: the first"
    )
    group.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of every random choice; default: 0")


def _add_data(group: Any) -> None:
    columns = group.add_mutually_exclusive_group()
    columns.add_argument(
        "--columns", type=_names, metavar="A,B,C", help="use these columns only (numbered from 0 where they have no names)"
    )
    columns.add_argument("--drop", type=_names, action="extend", metavar="A,B", help="use all columns but these; may be repeated")
    group.add_argument("--array", metavar="NAME", help="which array of a .npz file with several")
    group.add_argument(
        "--missing",
        choices=("error", "drop", "mean"),
        default="error",
        help="empty, NaN or infinite values: refuse them (default), drop the row, or put the mean of the column",
    )
    group.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="bring each column to mean 0 and deviation 1; default: yes for .csv and .parquet, whose columns come in unlike "
        "units, no for .npy and .npz",
    )
    _add_reading(group)
    group.add_argument("--dtype", choices=("float32", "float64"), help="default: float32 where the file holds that, otherwise float64")


def _add_output(group: Any) -> None:
    group.add_argument("--output", type=Path, metavar="FILE", help=f"save the approximation: {', '.join(MODEL_SUFFIXES)}")
    group.add_argument("--plot", type=Path, metavar="FILE", help=f"plot error and spectrum: {', '.join(PICTURE_SUFFIXES)}")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the table, the errors of every rank and the spectrum as JSON")
    group.add_argument("--chunk-size", type=_whole, metavar="N", help="rows held at once; default: what fits the cache")
    group.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    group.add_argument("--debug", action="store_true", help="on an error, show the traceback as well")


def _add_fit(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "fit",
        usage="softlinalg fit DATA --target COLUMN --output DIR [options]",
        help="learn to predict columns of a file, however large it is",
        description=(
            "Kernel ridge regression of one or more columns of DATA on the others, by the low-rank approximation.\n"
            "DATA is read in pieces and may be larger than memory. Of many ridges the one with the least score of\n"
            "generalized cross-validation is taken."
        ),
        epilog=FIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=f"a file of numbers, one row per point: {', '.join(STREAM_SUFFIXES)}")
    parser.add_argument(
        "--target",
        type=_names,
        action="extend",
        required=True,
        metavar="COLUMN",
        help="the column to predict, by name or number (from 0; -1 is the last); several between commas",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the model; one that is there is replaced")
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=("ridge",), default="ridge", help="default: ridge")
    group.add_argument("--rank", type=_whole, metavar="N", help="number of landmarks; default: 512, or half the rows where they are few")
    group.add_argument("--ridge", type=_positive_numbers, metavar="A,B,C", help="ridges to choose among; default: 40 of all sizes")
    _add_method(group)
    data = parser.add_argument_group("data")
    columns = data.add_mutually_exclusive_group()
    columns.add_argument("--columns", type=_names, metavar="A,B,C", help="use these columns only as features")
    columns.add_argument("--drop", type=_names, action="extend", metavar="A,B", help="use all columns but these; may be repeated")
    data.add_argument("--missing", choices=("error", "drop"), default="error", help="rows with NaN or infinity: refuse (default), or drop")
    data.add_argument(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        help="bring each feature to mean 0 and deviation 1; the model remembers how; default: yes for .csv and .parquet, no for .npy",
    )
    _add_reading(data)
    data.add_argument("--dtype", choices=("float32", "float64"), help="default: float32 where the file holds that, otherwise float64")
    running = parser.add_argument_group("running")
    running.add_argument("--checkpoint", type=Path, metavar="FILE", help="keep the sums here; the same command goes on where it was killed")
    _add_running(running)
    parser.set_defaults(run=run)


def _add_predict(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "predict",
        usage="softlinalg predict DATA --model DIR --output FILE [options]",
        help="predict with a model that `fit` wrote",
        description="Predict the targets for the rows of DATA, which is read in pieces and may be larger than memory.",
        epilog=FIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help=f"a file of numbers, one row per point: {', '.join(STREAM_SUFFIXES)}")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the folder that fit wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="predictions, one row per row of DATA: .npy or .csv")
    data = parser.add_argument_group("data")
    data.add_argument("--missing", choices=("error", "nan"), default="error", help="rows with NaN or infinity: refuse, or predict NaN")
    _add_reading(data)
    _add_running(parser.add_argument_group("running"))
    parser.set_defaults(run=run)


def _add_reading(group: Any) -> None:
    group.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="CSV: the first row holds names; default: unless it is all numbers"
    )
    group.add_argument(
        "--delimiter", type=_delimiter, default=",", metavar="CHAR", help="CSV: what separates columns, \\t for a tab; default: a comma"
    )


def _add_running(group: Any) -> None:
    group.add_argument("--chunk-size", type=_whole, metavar="N", help="rows held at once; default: by rank and number of columns")
    group.add_argument("--threads", type=_whole, metavar="N", help="default: one per core; changes no result")
    group.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    group.add_argument("--debug", action="store_true", help="on an error, show the traceback as well")


def _add_demo(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it work on real data: handwritten digits and 336,776 flights",
        description=(
            "Approximate two kernel matrices of real data that pip has brought: the 1,797 handwritten digits of scikit-learn, "
            "small enough to check the error against the whole matrix, and the 336,776 flights that left New York in 2013, "
            "whose whole matrix would take 907 GB. Prints a table, and writes plots and one web page (index.html) that shows "
            "and explains them."
        ),
    )
    parser.add_argument("--output-dir", type=Path, default=Path("softlinalg-demo"), metavar="DIR", help="default: softlinalg-demo")
    parser.add_argument("--quick", action="store_true", help="a few seconds: lower ranks, and one flight in twenty")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no table")
    _add_last(parser, run)


CHECK_KINDS = ("pinv", "kernel", "nystrom", "attention")
CHECK_PROFILES = ("smoke", "ci", "deep")
CHECK_DTYPES = ("float32", "float64", "complex64", "complex128")
CHECK_BACKENDS = ("numpy", "torch", "jax", "array-api-strict", "cupy")
"""The choices of `softlinalg.testing.suites` (a test holds them equal), written out so that --help needs no NumPy."""

CHECK_EXAMPLES = """\
examples:
  softlinalg check numpy:linalg.pinv --as pinv
      NumPy's pseudo-inverse in float32 and float64: which laws hold, and the smallest example where one does not
  softlinalg check my_code.py:fast_pinv --as pinv --grade N --profile deep --html report.html
      a function in a file, as accurate as a sound iteration need be, thoroughly; also as a web page
  softlinalg check my_code.py:fast_pinv --as pinv --skip infinity,nan
      without the laws about what is not finite; the table says which laws were left out
  softlinalg check torch:linalg.pinv --as pinv --dtype complex64
      with arrays of PyTorch, which the name of the module suggests (--backend says it)

what a function gets, and gives:
  pinv       f(a) -> (..., n, m)
  kernel     f(x, y=None, *, length_scale) -> (..., n, m), exp(-|x - y|^2 / (2 l^2))
  nystrom    f(x, kernel, *, landmarks) -> (n, r), a factor F of the approximation F F^T
  attention  f(q, v, landmarks) -> (..., n, e), softmax-free: C (W + 0.01 I)^-1 (C^T v)
"""


def _add_check(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "check",
        usage="softlinalg check MODULE:FUNCTION --as KIND [options]",
        help="test your own pseudo-inverse, kernel, low-rank or attention function",
        description=(
            "Measure the laws that a numerical function has to obey, on hundreds or thousands of hard cases, and show\n"
            "for each law the worst ratio of error to rounding and the smallest failing example. The status is 0 if all\n"
            "hold, 1 if one fails, and 2 after an error of usage. The module is imported, which runs its code."
        ),
        epilog=CHECK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="MODULE:FUNCTION", help="an importable module or a file that ends in .py, and a name in it")
    parser.add_argument(
        "--as", dest="kind", choices=CHECK_KINDS, required=True, metavar="KIND", help=f"{', '.join(CHECK_KINDS)}: what it claims to compute"
    )
    parser.add_argument(
        "--dtype", type=_dtypes, default=("float32", "float64"), metavar="A,B", help=f"{', '.join(CHECK_DTYPES)}; default: float32,float64"
    )
    parser.add_argument(
        "--backend", choices=CHECK_BACKENDS, metavar="NAME", help=f"arrays of {', '.join(CHECK_BACKENDS)}; default: by the module"
    )
    parser.add_argument("--profile", choices=CHECK_PROFILES, default="ci", help="about 5 s, a minute, or 10 minutes; default: ci")
    parser.add_argument("--cases", type=_whole, metavar="N", help="number of cases, instead of that of the profile")
    parser.add_argument(
        "--grade",
        choices=("S", "N"),
        default="S",
        help="S: as accurate as a decomposition (default); N: as an iteration by matrix products",
    )
    parser.add_argument("--bitwise", action="store_true", help="hold powers of two and batches to equal bits")
    parser.add_argument("--no-batch", dest="batched", action="store_false", help="it takes one matrix at a time")
    parser.add_argument("--max-cond", type=_condition, metavar="K", help="pinv: the largest condition that it claims to cope with")
    parser.add_argument("--square", action="store_true", help="pinv: it takes square matrices only")
    parser.add_argument("--only", type=_listed, metavar="A,B", help="the laws of these names alone, as the table shows them; default: all")
    parser.add_argument("--skip", type=_listed, default=(), metavar="A,B", help="leave the laws of these names out; the table names them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a web page in one file")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table: the status says it")
    _add_last(parser, run)


def _add_doctor(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        usage="softlinalg doctor [--json]",
        help="show versions, array libraries, devices, threads and known problems",
        description=(
            "What is installed and what it runs on, with a remedy for what is known to go wrong. Each array library is\n"
            "imported in a process of its own and computes something small. The status is 0 unless something is broken, then 1."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for a bug report")
    _add_last(parser, run)


BENCH_EXAMPLES = """\
examples:
  softlinalg bench --group attention --rounds 9 --json attention.json --plot attention.png
  softlinalg bench --smoke --check attention.json
      the quick workloads only; the status is 1 if softlinalg has become slower beside its peers
  softlinalg bench --from inverse.json attention.json --table peers.md --plot peers.png
      measure nothing: a page and a picture of what was measured before
"""


def _add_bench(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "bench",
        usage="softlinalg bench [options]",
        help="time softlinalg beside its peers and beside what the machine allows",
        description=(
            "Time inverses, kernel products, landmarks, Nystrom features, attention and backbones beside every peer that\n"
            "is installed, in interleaved rounds, and beside the time that the same operations take at measured rates."
        ),
        epilog=BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--group", action="append", metavar="NAME", help="inverse, product, landmarks, nystrom, attention or backbone; repeatable"
    )
    parser.add_argument("--smoke", action="store_true", help="the quick workloads only, some seconds in all")
    parser.add_argument("--rounds", type=_whole, default=7, metavar="N", help="of each workload; default: 7")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="for the rounds of one workload, after two; default: 60")
    parser.add_argument("--threads", type=_whole, default=1, metavar="N", help="of every contestant; default: 1")
    parser.add_argument(
        "--from",
        dest="reports",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="reports that --json wrote: join them and measure nothing; the last that has a workload counts",
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="a report to hold the ratios to: worse by 1.5 times fails")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write a page of Markdown, with the picture of --plot")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios")
    parser.add_argument("--quiet", action="store_true", help="print only what has become worse")
    _add_last(parser, run)


def _add_export(commands: Any, run: Any) -> None:
    parser = commands.add_parser(
        "export",
        usage="softlinalg export MODEL --output FILE [options]",
        help="write an image backbone as an ONNX file",
        description="Write a backbone as an ONNX file for any batch and image size, and compare the file with the model at three sizes.",
    )
    parser.add_argument("model", metavar="MODEL", choices=EXPORT_MODELS, help=", ".join(EXPORT_MODELS))
    parser.add_argument("--weights", type=Path, metavar="FILE", help="published or saved weights (.safetensors, .pth); default: random")
    parser.add_argument("--classes", type=_whole, default=1000, metavar="N", help="of the classifier; default: 1000")
    parser.add_argument("--image-size", type=_whole, default=224, metavar="N", help="that position embeddings are stored for; default: 224")
    parser.add_argument("--published", action="store_true", help="the published computation, which weights of others were trained with")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ends in .onnx")
    _add_last(parser, run)


# ------------------------------------------------------------------------------------------ values of options
def _listed(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _dtypes(text: str) -> tuple[str, ...]:
    """Data types between commas, each once."""
    found = _listed(text)
    if unknown := [name for name in found if name not in CHECK_DTYPES]:
        message = f"must be among {', '.join(CHECK_DTYPES)}; got {unknown[0]!r}"
        raise argparse.ArgumentTypeError(message)
    return found


def _delimiter(text: str) -> str:
    """One character; a tab may be written as in most languages, because shells make it hard to type."""
    if len(text) != 1 and text != "\\t":
        message = f"must be one character; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return "\t" if text == "\\t" else text


def _whole(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        message = f"must be a whole number of at least 1; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _seed(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        message = f"must be a whole number of at least 0; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _number(text: str) -> float:
    """A float, or NaN for what is none: every comparison with it fails."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fraction(text: str) -> float:
    """A relative error."""
    number = _number(text)
    if not 0 < number < 1:
        message = f"must be a number between 0 and 1; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return number


def _condition(text: str) -> float:
    """A condition number."""
    number = _number(text)
    if not 1 <= number < math.inf:
        message = f"must be a number of at least 1; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return number


def _positive_numbers(text: str) -> list[float]:
    """Positive numbers between commas."""
    numbers = [_number(part) for part in text.split(",")]
    if not all(0 < number < math.inf for number in numbers):
        message = f"must be positive numbers separated by commas; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return numbers


def _length_scale(text: str) -> float | str:
    """A positive number, or the word median."""
    if text == "median":
        return text
    number = _number(text)
    if not 0 < number < math.inf:
        message = f"must be a positive number or the word median; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return number


def _names(text: str) -> list[str]:
    """Names between commas."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        message = f"must be names separated by single commas; got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return names
