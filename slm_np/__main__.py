"""All commands by name: `slm-np VERB` and `python -m slm_np VERB`."""

import sys

from slm_np.errors import UserError, command, near
from slm_np.version import __version__

VERBS = {
    "prepare": "tokenize a corpus once",
    "train": "train a model from scratch",
    "pretrain": "build a vocabulary from a large corpus and train on it",
    "finetune": "continue training a model on new data",
    "generate": "continue a prompt with a trained model",
    "chat": "talk with a trained model",
    "evaluate": "measure the loss of a model on a text",
    "info": "show what a model is and how it was trained",
    "convert": "write a model in another format",
    "gradcheck": "check every derivative on this machine",
    "warmup": "compile the kernels before they are needed",
}


def usage():
    verbs = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    hint = "slm-np VERB --help or slm-np help VERB lists its flags, slm-np --version shows the version."
    return f"usage: slm-np VERB [flags]\n\n{verbs}\n\n{hint}"


def main_of(verb):
    """The `main` of a command. Only that command is imported, so that it starts quickly."""
    match verb:
        case "prepare":
            from slm_np.prepare import main
        case "train":
            from slm_np.train import main
        case "pretrain":
            from slm_np.pretrain import main
        case "finetune":
            from slm_np.finetune import main
        case "generate":
            from slm_np.generate import main
        case "chat":
            from slm_np.chat import main
        case "evaluate":
            from slm_np.evaluate import main
        case "info":
            from slm_np.info import main
        case "convert":
            from slm_np.convert import main
        case "gradcheck":
            from slm_np.gradcheck import main
        case "warmup":
            from slm_np.warmup import main
        case flag if flag.startswith("-"):
            raise UserError(f"{flag} follows a command, as in slm-np train {flag}; known are {', '.join(VERBS)}")
        case _:
            raise UserError(f"the command {verb!r} is unknown; {near(verb, list(VERBS))}")
    return main


@command(prints_result=True)
def main(argv=None):
    """Exit status: that of the command, 2 if it is unknown."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help") or words == ["help"]:
        print(usage())
    elif words[0] == "help":
        main_of(words[1])(["--help"])
    elif words[0] in ("-V", "--version", "version"):
        print(f"slm_np {__version__}")
    else:
        main_of(words[0])(words[1:])


if __name__ == "__main__":
    main()
