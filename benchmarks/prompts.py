"""Ten fixed prompts continued by one or more runs, and how often each text repeats itself.

    python benchmarks/prompts.py RUN [RUN ...]

Each prompt is continued with the run's own sampling defaults and a fixed seed. A four-gram is four words in a row. The
share of four-grams that occurred earlier in the same text shows a model that is stuck in a loop; in TinyStories itself
it is 0.5 %.
"""

import argparse
import dataclasses

import checkout  # noqa: F401

from slm_np import load, text_of
from slm_np.errors import command
from slm_np.ops.device import CPU

PROMPTS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a boy named Tim found",
    "The dog was very sad because",
    'Mom said, "Please',
    "In the forest there lived",
    '"Can I play with you?" asked',
    "The big red ball",
    "It was raining and",
    "Ben and Mia went to the park.",
    "At the end of the day,",
)
SEED = 7


def repeated(text, size=4):
    """The share of n-grams in `text` that occurred in it earlier. size: n, in words"""
    words = text.split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="Ten prompts continued, and how often each text repeats itself.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run")
    parser.add_argument("--tokens", type=int, default=150, help="length of each text (default: %(default)s)")
    args = parser.parse_args(argv)
    CPU.use_threads(0)
    for path in args.runs:
        run, shares = load(path), []
        sampling = dataclasses.replace(run.sampling, seed=SEED)
        print(f"== {path}, step {run.step}")
        for prompt in PROMPTS:
            text = text_of(run.model, run.tokenizer, prompt, args.tokens, sampling)
            shares.append(repeated(prompt + text))
            print(f"\n[{shares[-1]:.1%}] {prompt}|{text}")
        print(f"\n{path}: {sum(shares) / len(shares):.1%} of four-grams repeated, mean of {len(shares)} prompts\n")


if __name__ == "__main__":
    main()
