"""How many questions about unseen stories a run finetuned on `dialogues` answers exactly.

    python benchmarks/answers.py --model RUN

The stories have a seed that no run is trained on. Each question is asked alone, after its story, and answered greedily.
Prints the first wrong answers, and the share of exact ones by kind of question.
"""

import argparse
from collections import Counter
from itertools import islice

import checkout  # noqa: F401

from slm_np import SamplingConfig, load, text_of
from slm_np.data import chat_template, dialogues
from slm_np.errors import command
from slm_np.inference.generation import encode_prompt
from slm_np.ops.device import CPU

SEED = 777
MAX_TOKENS = 60  # of an answer


def questions():
    """Endless (question after its story, Turn with the right answer)."""
    for dialogue in dialogues.dialogues(SEED):
        for turn in dialogue.turns:
            yield f"{dialogue.story} {turn.question}", turn


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="The share of questions that a run answers exactly.")
    parser.add_argument("--model", required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--questions", type=int, default=200, help="how many to ask (default: %(default)s)")
    parser.add_argument("--wrong", type=int, default=5, help="wrong answers to print (default: %(default)s)")
    args = parser.parse_args(argv)
    wrong, line = score(args.model, args.questions)
    print("\n".join(wrong[: args.wrong]))
    print(line)


def score(model, n):
    """(descriptions of the wrong answers, a line with the share of exact ones) of a model to n questions."""
    CPU.use_threads(0)
    run = load(model)
    template = run.template or chat_template.DEFAULT
    stops, ends, greedy = template.stops(run.tokenizer), template.ends(run.tokenizer), SamplingConfig(temp=0.0)
    asked, exact, wrong = Counter(), Counter(), []
    for question, turn in islice(questions(), n):
        prompt = encode_prompt(run.tokenizer, template.prompt([dict(role="user", content=question)], run.tokenizer))
        answer = text_of(run.model, run.tokenizer, prompt, MAX_TOKENS, greedy, stops, ends=ends).strip()
        asked[turn.kind] += 1
        exact[turn.kind] += answer == turn.answer
        if answer != turn.answer:
            wrong.append(f"{question}\n  answered {answer!r}, right is {turn.answer!r}")
    kinds = "  ".join(f"{kind} {exact[kind]}/{asked[kind]}" for kind in sorted(asked))
    return wrong, f"{exact.total()} of {asked.total()} answered exactly: {exact.total() / asked.total():.1%}  {kinds}"


if __name__ == "__main__":
    main()
