"""How many questions about unseen stories a run finetuned on `dialogues` answers exactly: python benchmarks/answers.py --model RUN

The dialogues come from a seed that no run is trained on; every question is asked alone, right after its story, and the likeliest answer
is taken. Prints the share of exact answers, by kind of question, and the first wrong ones.
"""

import argparse
from collections import Counter

SEED = 777


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory of the run")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--wrong", type=int, default=5, help="how many wrong answers to show")
    args = parser.parse_args(argv)
    from slm_np import SamplingConfig, load, text_of
    from slm_np.data import chat_template as template
    from slm_np.data import dialogues
    from slm_np.ops.device import CPU

    CPU.use_threads(0)
    run = load(args.model)
    written = template.load(run.path) or template.DEFAULT
    stops, asked, exact, wrong = written.stops(run.tokenizer.end_of_text), Counter(), Counter(), []
    for dialogue in dialogues.dialogues(SEED):
        for turn in dialogue.turns:
            question = f"{dialogue.story} {turn.question}"
            answer = text_of(
                run.model,
                run.tokenizer,
                written.prompt([dict(role="user", content=question)]).decode(),
                60,
                SamplingConfig(temp=0.0),
                stops,
            ).strip()
            asked[turn.kind] += 1
            exact[turn.kind] += answer == turn.answer
            if answer != turn.answer:
                wrong.append(f"{question}\n  answered {answer!r}, right is {turn.answer!r}")
            if asked.total() == args.questions:
                break
        if asked.total() == args.questions:
            break
    print("\n".join(wrong[: args.wrong]))
    print("  ".join(f"{kind} {exact[kind]}/{asked[kind]}" for kind in sorted(asked)))
    print(f"{exact.total()} of {asked.total()} answered exactly: {exact.total() / asked.total():.1%}")


if __name__ == "__main__":
    main()
