"""What runs write for a fixed sheet of ten prompts, and how much they repeat themselves: python benchmarks/prompts.py RUN [RUN ...]

Every prompt is continued by 150 tokens with each run's own defaults for sampling and a fixed seed. A four-gram is four words in a row; the
share of those that stood in the same continuation before tells a model that goes round in circles. In TinyStories itself it is 0.5 %.
"""

import argparse

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
    """Share of the four-grams of `text` that stood in it before."""
    words = text.split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--tokens", type=int, default=150)
    args = parser.parse_args(argv)
    import dataclasses

    from slm_np import load, text_of
    from slm_np.ops.device import CPU

    CPU.use_threads(0)
    for path in args.runs:
        run, shares = load(path), []
        print(f"== {path}, step {run.step}")
        for prompt in PROMPTS:
            text = text_of(run.model, run.tokenizer, prompt, args.tokens, dataclasses.replace(run.sampling, seed=SEED))
            shares.append(repeated(prompt + text))
            print(f"\n[{shares[-1]:.1%}] {prompt}|{text}")
        print(f"\n{path}: {sum(shares) / len(shares):.1%} of four-grams repeated, mean of {len(shares)} prompts\n")


if __name__ == "__main__":
    main()
