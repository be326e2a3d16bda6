"""How good the stories of a run are, judged by the grammar of the corpus `stories`.

    python benchmarks/story_quality.py --model RUN [--stories 100] [--temp 0.8] [--seed 1] [--json FILE]

Each story is sampled from the end of another one: after a blank line, up to the next one. Prints the first ten and a
table: stories that the grammar can write, word for word (`stories.read`); sentences that it can write after those
before (`stories.sentences`), so that a wrong name, thing or place counts as an error; stories of the training corpus.
"""

import argparse
import dataclasses

import checkout  # noqa: F401
from measure import write_json

from slm_np import arguments, load
from slm_np.data import stories
from slm_np.data.embedded import SEEDS, SPLIT_BYTES
from slm_np.errors import command
from slm_np.inference.generation import generate
from slm_np.ops.device import CPU

SHOWN = 10
MAX_TOKENS = 1200  # of a story
ROWS = dict(
    whole="stories that the grammar writes",
    accepted="sentences that it accepts",
    memorized="stories of the training corpus",
)


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="How many stories of a run the grammar of the corpus can write.")
    parser.add_argument("--model", required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--stories", type=int, default=100, help="how many to sample (default: %(default)s)")
    parser.add_argument("--temp", type=float, default=0.8, help="temperature (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the samples (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures and the stories into FILE")
    args = parser.parse_args(argv)
    arguments.whole("--stories", args.stories, 1)
    texts = sampled(args.model, args.stories, args.temp, args.seed)
    found = judged(texts)
    for text in texts[:SHOWN]:
        print(f"{text}\n")
    for name, words in ROWS.items():
        of = found["sentences" if name == "accepted" else "stories"]
        print(f"{words:32} {found[name]:5,} of {of:5,}  {found[name] / max(of, 1):6.1%}")
    if args.json:
        write_json(args.json, dict(found, model=args.model, temp=args.temp, seed=args.seed, texts=texts))


def sampled(model, n, temp, seed):
    """n stories of a run, without the blank line after them."""
    CPU.use_threads(0)
    run = load(model)
    sampling = dataclasses.replace(run.sampling, temp=temp, seed=seed)
    parts = generate(
        run.model, run.tokenizer, stories.SEPARATOR, MAX_TOKENS, sampling, stops=stories.SEPARATOR, samples=n
    )
    return ["".join(strings) for strings in zip(*parts)]


def judged(texts):
    """dict(stories, whole, sentences, accepted, memorized) of texts without the blank line after them."""
    trained_on = {text for text, _ in stories.write(SPLIT_BYTES["train"], SEEDS["train"])}
    sentences = [accepted for text in texts for _, accepted in stories.sentences(text)]
    return dict(
        stories=len(texts),
        whole=sum(map(is_story, texts)),
        sentences=len(sentences),
        accepted=sum(sentences),
        memorized=sum(text + stories.SEPARATOR in trained_on for text in texts),
    )


def is_story(text):
    """Whether the grammar can write this text."""
    try:
        stories.read(text + stories.SEPARATOR)
    except stories.StoryError:
        return False
    return True


if __name__ == "__main__":
    main()
