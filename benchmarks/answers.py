"""How many questions about unseen stories a run finetuned on `dialogues` answers exactly.

    python benchmarks/answers.py --model RUN [--questions 300] [--plots] [--json FILE]

The stories have a seed that no run is trained on. Each question is asked alone, after its story, and answered greedily.
Prints the first wrong answers, and the share of exact ones by kind of question, and by plot with --plots.
"""

import argparse
from collections import Counter
from itertools import islice

import checkout  # noqa: F401
from measure import write_json

from slm_np import SamplingConfig, arguments, load, text_of
from slm_np.data import chat_template, dialogues
from slm_np.errors import command
from slm_np.inference.generation import encode_prompt
from slm_np.ops.device import CPU

SEED = 777
MAX_TOKENS = 60  # of an answer


def questions():
    """Endless (question after its story, its `stories.Question`, plot)."""
    for dialogue in dialogues.dialogues(SEED):
        for turn in dialogue.turns:
            yield f"{dialogue.story} {turn.question}", turn, dialogue.plot


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="The share of questions that a run answers exactly.")
    parser.add_argument("--model", required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--questions", type=int, default=300, help="how many to ask (default: %(default)s)")
    parser.add_argument("--wrong", type=int, default=5, help="wrong answers to print (default: %(default)s)")
    parser.add_argument("--plots", action="store_true", help="print the share by plot, too")
    parser.add_argument("--json", metavar="FILE", help="write all shares to this file")
    args = parser.parse_args(argv)
    arguments.whole("--questions", args.questions, 1)
    wrong, rows = score(args.model, args.questions)
    print("\n".join(wrong[: args.wrong]))
    print(table(rows, ("kind", "plot") if args.plots else ("kind",)))
    print(line(rows))
    if args.json:
        write_json(args.json, rows)


def score(model, n):
    """What a model answers to n questions: (descriptions of the wrong answers, rows).

    Rows are dicts of `by` (all, kind or plot), `name` (of the kind or the plot), `asked` and `exact`, the number of
    exact answers. The first row is about all questions.
    """
    CPU.use_threads(0)
    run = load(model)
    template = run.template or chat_template.DEFAULT
    stops, ends, greedy = template.stops(run.tokenizer), template.ends(run.tokenizer), SamplingConfig(temp=0.0)
    asked, exact, wrong = Counter(), Counter(), []
    for question, turn, plot in islice(questions(), n):
        prompt = encode_prompt(run.tokenizer, template.prompt([dict(role="user", content=question)], run.tokenizer))
        answer = text_of(run.model, run.tokenizer, prompt, MAX_TOKENS, greedy, stops, ends=ends).strip()
        for group in (("all", ""), ("kind", turn.kind), ("plot", plot)):
            asked[group] += 1
            exact[group] += answer == turn.answer
        if answer != turn.answer:
            wrong.append(f"{question}\n  answered {answer!r}, right is {turn.answer!r}")
    return wrong, [dict(by=by, name=name, asked=asked[by, name], exact=exact[by, name]) for by, name in sorted(asked)]


def table(rows, groups):
    """The rows of some groups as a table, a line for each."""
    return "\n".join(
        f"{row['by']:5} {row['name']:20} {row['exact']:4} of {row['asked']:4} {row['exact'] / row['asked']:6.1%}"
        for row in rows
        if row["by"] in groups
    )


def line(rows):
    """The share of exact answers to all questions."""
    asked, exact = rows[0]["asked"], rows[0]["exact"]
    return f"{exact} of {asked} answered exactly: {exact / asked:.1%}"


if __name__ == "__main__":
    main()
