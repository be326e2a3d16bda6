"""`slm-np VERB` and `python -m slm_np VERB`: the commands by name."""

import importlib
import sys

from slm_np.errors import near

VERBS = {
    "prepare": "tokenise a corpus once",
    "train": "train a model from scratch",
    "pretrain": "build a vocabulary from a large corpus and train on it",
    "finetune": "go on with a trained model on another text",
    "generate": "continue a prompt with a trained model",
    "chat": "talk with a trained model",
    "evaluate": "the loss of a model over a whole text",
    "info": "what a run is and how it was trained",
    "convert": "take over another program's checkpoint",
    "gradcheck": "check every derivative on this machine",
}


def main():
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print(
            "usage: slm-np VERB [flags]\n\n"
            + "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
            + "\n\nslm-np VERB --help lists the flags of one."
        )
        return
    if verb not in VERBS:
        print(f"slm_np: the command {verb!r} is unknown; {near(verb, list(VERBS))}", file=sys.stderr)
        raise SystemExit(2)
    importlib.import_module(f"slm_np.{verb}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
