"""The command `softlinalg`: low-rank approximation of a kernel matrix from a file, regression on it, a demonstration, tests of code,
benchmarks, and a look at the installation.

The topmost layer: it reads and shows, the core and the adapters compute. Everything heavy is imported once the options are
understood; without pandas or matplotlib one line names the extra that brings them.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from softlinalg._cli_options import make_parser
from softlinalg.errors import SoftlinalgError, SoftlinalgWarning

__all__ = ["main"]


def _approximate(arguments: argparse.Namespace) -> None:
    from softlinalg import _cli_approximate

    _cli_approximate.run(arguments)


def _demo(arguments: argparse.Namespace) -> None:
    from softlinalg import _cli_demo

    _cli_demo.run(arguments.output_dir, quick=arguments.quick, quiet=arguments.quiet)


def _check(arguments: argparse.Namespace) -> int:
    from softlinalg import _cli_check

    return _cli_check.run(arguments)


def _fit(arguments: argparse.Namespace) -> None:
    from softlinalg import _cli_fit

    _cli_fit.run_fit(arguments)


def _predict(arguments: argparse.Namespace) -> None:
    from softlinalg import _cli_fit

    _cli_fit.run_predict(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from softlinalg import _cli_doctor

    return _cli_doctor.run(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from softlinalg import _cli_bench

    return _cli_bench.run(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from softlinalg import _cli_export

    _cli_export.run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: the arguments of the process.

    Returns
    -------
    int
        Exit status: 0; 1 if `check` found a law that fails, `bench` a ratio that is worse, or `doctor` something broken; 2 after an
        error, told in one line on stderr; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if not debug else "default")
            warnings.simplefilter("always", SoftlinalgWarning)
            if not debug:
                warnings.showwarning = _show_warning
            runs = {
                "approximate": _approximate,
                "fit": _fit,
                "predict": _predict,
                "demo": _demo,
                "check": _check,
                "bench": _bench,
                "doctor": _doctor,
                "export": _export,
            }
            arguments = make_parser(runs).parse_args(given)
            status = arguments.run(arguments)
            sys.stdout.flush()
            return int(status or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", debug=debug, status=130)
    except BrokenPipeError:  # `softlinalg ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        advice = "--dtype float32, a smaller --rank or a smaller --chunk-size needs less"
        return _fail(f"out of memory; {advice}" if not str(error) else f"{error}", debug=debug)
    except (SoftlinalgError, OSError) as error:
        return _fail(str(error), debug=debug)
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)", debug=debug)


def _fail(message: str, *, debug: bool, status: int = 2) -> int:
    """Say on one line what went wrong."""
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"softlinalg: error: {' '.join(message.split())}\n")
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning on one line, without the place in the code."""
    sys.stderr.write(f"softlinalg: warning: {' '.join(str(message).split())}\n")


if __name__ == "__main__":
    sys.exit(main())
